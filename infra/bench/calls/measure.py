"""Runs a command and tells its CPU time and memory, all processes that it starts included. Linux."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_EVERY_S = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MARK = "SWITCHGEAR_BENCH_MARK"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a command took. `finished` is False when it was stopped at its time limit.

    `peak_mib` counts mapped files, too, which the system can drop; `private_mib` does not. `first_mib` is the
    most that the command's own process had at a time, by the system's high-water mark, without those that it
    has started. `samples` are instants of the monotonic clock with the CPU seconds used until then, and the
    seconds that threads were ready to run and had no core. `cpu_of` are the CPU seconds by what the processes
    run: the module after `-m`, else `other`.
    """

    finished: bool
    returncode: int
    wall_s: float
    cpu_s: float
    peak_mib: float
    last_words: str
    private_mib: float = 0.0
    samples: tuple[tuple[float, float, float], ...] = ()
    first_mib: float = 0.0
    cpu_of: Mapping[str, float] = field(default_factory=dict)

    def cores(self, start: float, end: float) -> float:
        """How many cores were kept busy between two instants, on average."""
        return self._between(1, start, end)

    def cores_missed(self, start: float, end: float) -> float:
        """How many more could have been: threads that were ready to run and had no core, on average."""
        return self._between(2, start, end)

    def _between(self, figure: int, start: float, end: float) -> float:
        if end <= start:
            return 0.0
        return (self._at(figure, end) - self._at(figure, start)) / (end - start)

    def _at(self, figure: int, instant: float) -> float:
        before = after = (0.0, 0.0, 0.0)
        for sample in self.samples:
            before, after = after, sample
            if sample[0] >= instant:
                break
        if after[0] <= before[0] or instant >= after[0]:
            return after[figure]
        part = (instant - before[0]) / (after[0] - before[0])
        return before[figure] + (after[figure] - before[figure]) * part


class _Watch:
    """Adds up the processes that carry a mark in their environment, wherever they were moved to."""

    def __init__(self, mark: str, first: int) -> None:
        self._mark = mark.encode()
        self._first = Path("/proc", str(first), "status")
        self.first_peak = 0
        self._cpu: dict[tuple[int, str], float] = {}
        self._module: dict[tuple[int, str], str] = {}
        self._ready: dict[str, float] = {}
        self.peak = self.private_peak = 0
        self.samples: list[tuple[float, float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(_EVERY_S):
            self.look()

    def look(self) -> list[int]:
        """One sample; gives the processes that are alive."""
        resident, private, alive = 0, 0, []
        self.first_peak = max(self.first_peak, _high_water(self._first))
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                if self._mark not in (folder / "environ").read_bytes():
                    continue
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                pages = [int(word) for word in (folder / "statm").read_text().split()[1:3]]
            except (OSError, IndexError):
                continue
            resident += pages[0] * _PAGE
            private += (pages[0] - pages[1]) * _PAGE
            alive.append(int(folder.name))
            self._ready.update(_ready(folder))
            process = (int(folder.name), fields[19])
            self._cpu[process] = (int(fields[11]) + int(fields[12])) / _TICKS
            self._module[process] = _module(folder)  # each time: it begins as a fork of who has started it
        self.peak, self.private_peak = max(self.peak, resident), max(self.private_peak, private)
        self.samples.append((time.monotonic(), sum(self._cpu.values()), sum(self._ready.values())))
        return alive

    def end(self) -> float:
        """CPU seconds of all of them."""
        self._over.set()
        self._thread.join()
        return sum(self._cpu.values())

    def by_module(self) -> dict[str, float]:
        """CPU seconds by what was run."""
        found: dict[str, float] = {}
        for process, seconds in self._cpu.items():
            found[self._module[process]] = found.get(self._module[process], 0.0) + seconds
        return found


def measure(command: Sequence[str], environ: Mapping[str, str], limit_s: float, log: Path) -> Measured:
    """Runs `command` for at most `limit_s` seconds; what it prints goes to `log`."""
    mark = secrets.token_hex(8)
    started, before = time.monotonic(), _waited_for()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env={**environ, _MARK: mark}, stdout=out, stderr=out, start_new_session=True
        )
        watch = _Watch(f"{_MARK}={mark}", process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(limit_s)
        wall, finished = time.monotonic() - started, process.poll() is not None
        for pid in watch.look():  # only what carries this run's mark
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait()
    cpu = max(
        watch.end(), _waited_for() - before
    )  # samples miss the last moments, the system's count strangers
    words = log.read_text(errors="replace").strip().splitlines()
    return Measured(
        finished,
        process.returncode,
        wall,
        cpu,
        watch.peak / 2**20,
        words[-1][:160] if words else "",
        watch.private_peak / 2**20,
        tuple(watch.samples),
        watch.first_peak / 2**20,
        watch.by_module(),
    )


def _module(process: Path) -> str:
    """What a Python process runs."""
    with contextlib.suppress(OSError):
        words = process.joinpath("cmdline").read_bytes().decode(errors="replace").split("\0")
        return words[words.index("-m") + 1] if "-m" in words[:-1] else "other"
    return "other"


def _ready(process: Path) -> dict[str, float]:
    """For how many seconds each thread was ready to run and had no core."""
    found: dict[str, float] = {}
    for thread in process.joinpath("task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):
            found[thread.parent.name] = int(thread.read_text().split()[1]) / 1e9
    return found


def _high_water(status: Path) -> int:
    """The most bytes that a process had in memory so far; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _waited_for() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
