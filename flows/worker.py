"""One worker process: started, listened to, stopped, and never left behind.

A worker is `python -m pipelines.enrich …`. It speaks in lines of JSON on its standard output, logs to
its standard error (here: a file), and takes its secrets from the inherited environment, never from its
command line. It has a session of its own, so that a Ctrl-C in the terminal reaches the launcher alone,
which then stops its workers in order; and it dies with the launcher (see `pipelines.leash`).
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipelines.leash import leashed

STOP_GRACE_S = 20.0
_POLL_MS = 500
_CHUNK = 1 << 16
_CONFIGURATION = 2
_TAIL_BYTES = 8192
_TAIL_LINES = 3
_OF_COURSE = re.compile(r'^\S+ INFO |"level": "INFO"')  # lines of the log that explain no end
_MAX_LINE = 8 << 20

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """What to start: the program's arguments, the file for its log, and what it inherits.

    `inherit` are file descriptors, such as that of the output's lock: the lock then lasts as long as
    any worker. `environment` is added to the inherited one.
    """

    arguments: tuple[str, ...]
    log: Path
    inherit: tuple[int, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """How a worker ended. `error` is empty when it ran to its end, else a plain sentence.

    `exit_code` is negative for a signal; `configuration` says that the user must mend something first.
    """

    exit_code: int
    error: str = ""
    configuration: bool = False
    stopped: bool = False


class Worker:
    """One worker process. `run` starts it, hands on its events and waits; `stop` may come from any thread."""

    def __init__(self, command: WorkerCommand, on_event: Callable[[Event], None]) -> None:
        self._command = command
        self._on_event = on_event
        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self, grace_s: float = STOP_GRACE_S) -> WorkerEnd:
        """Run the worker to its end. It must be waited for in the thread that started it: so here it is.

        Whatever interrupts the waiting stops the worker first: SIGTERM, `grace_s` seconds, SIGKILL.
        """
        self._command.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._command.log, "ab") as log:
            with self._guard:
                if self._stopping:
                    return WorkerEnd(-signal.SIGTERM, "it was stopped before it started", stopped=True)
                self._process = self._start(log)
            try:
                seen = self._listen(self._process, log)
                code = self._process.wait()
            except BaseException:
                self.stop(grace_s)
                raise
            finally:
                if self._process.stdout is not None:
                    self._process.stdout.close()
        return self._end(code, seen)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """End the worker: SIGTERM, and SIGKILL if it is still there after `grace_s` seconds."""
        self.terminate()
        process = self._process
        if process is None:
            return
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            _signal_group(process, signal.SIGKILL)
            process.wait()

    def terminate(self) -> None:
        """Ask the worker to end, and don't wait."""
        with self._guard:
            self._stopping = True
            if self._process is not None:
                _signal_group(self._process, signal.SIGTERM)

    def _start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            leashed(self._command.arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            pass_fds=self._command.inherit,
            env={**os.environ, **dict(self._command.environment)},
        )

    def _listen(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> _Seen:
        seen = _Seen()
        for line in _lines(process):
            event = _parse(line)
            if event is None:  # some library printed: it belongs into the log, not into the protocol
                log.write(b"stdout: " + line + b"\n")
                log.flush()
            elif event["event"] == "done":
                seen.done = True
            elif event["event"] == "error":
                seen.error = event
            else:
                self._on_event(event)
        return seen

    def _end(self, code: int, seen: _Seen) -> WorkerEnd:
        if code == 0 and seen.done:
            return WorkerEnd(code, stopped=self._stopping)
        if self._stopping:
            return WorkerEnd(code, "it was stopped before it was through", stopped=True)
        if seen.error is not None:
            text = str(seen.error.get("message") or seen.error.get("class") or "no message")
            if code == _CONFIGURATION:
                return WorkerEnd(code, text, configuration=True)
            return WorkerEnd(code, f"{text}. Log: {self._command.log}")
        return WorkerEnd(code, f"{_how(code)}{_last_words(self._command.log)}. Log: {self._command.log}")


class _Seen:
    """What the worker has said about its own end."""

    def __init__(self) -> None:
        self.done = False
        self.error: Event | None = None


def _lines(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Lines of the worker's standard output, until it closes it or has ended.

    A grandchild may hold the pipe open after the worker's end; its silence does not keep us waiting.
    """
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    waiting = select.poll()  # not select.select, which can't take descriptors from 1024 up
    waiting.register(descriptor, select.POLLIN)
    rest, ended = b"", False
    while True:
        if not waiting.poll(0 if ended else _POLL_MS):
            if ended:
                break
            ended = process.poll() is not None  # what it wrote before it ended is in the pipe now: look again
            continue
        chunk = os.read(descriptor, _CHUNK)
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > _MAX_LINE:
            yield rest
            rest = b""
    if rest:
        yield rest


def _parse(line: bytes) -> Event | None:
    if not line.startswith(b"{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _how(code: int) -> str:
    if code < 0:
        return f"it was killed by signal {signal.Signals(-code).name}"
    if code == 0:
        return "it ended without saying that it was through"
    return f"it ended with exit code {code}"


def _last_words(log: Path) -> str:
    """The last lines of the log, for the sentence that says why; empty if there is none."""
    with open(log, "rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - _TAIL_BYTES))
        text = stream.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _OF_COURSE.search(line)]
    return f": {' | '.join(lines[-_TAIL_LINES:])}" if lines else ""


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the worker and its children; nothing happens if it has ended (and was waited for)."""
    if process.returncode is not None:
        return
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
