"""`make bench-calls`: this checkout beside what one would use instead, in one run.

Every contestant reads the same Parquet file of short documents, asks the same loopback provider, and
writes Parquet; each in an environment of its own under build/bench. In each round they take turns, in
another order, so that whatever else the machine does meets all of them. A contestant that is not done
at the time limit is stopped, and its rate is what the provider has counted until then.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq

from infra.bench.calls.measure import Measured, measure

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PEERS = ("openai_sdk", "daft_prompt", "daft_func", "ray_data", "curator_llm")
ENVIRONMENTS = {"daft_func": "daft_prompt"}  # of a contestant that shares another's
OURS = "switchgear"
TABLES = ("race", "in-flight", "memory")
SENTENCE = "The quarterly report said that revenue rose while the costs of energy fell across the region. "
# curator counts tokens with files that it would download; litellm, which it brings, has them.
_COUNTERS = "lib/python3.11/site-packages/litellm/litellm_core_utils/tokenizers"


@dataclass(frozen=True, slots=True)
class Result:
    """One contestant in one round: what it took, and what the provider counted."""

    name: str
    measured: Measured
    count: dict[str, float]

    @property
    def rate(self) -> float:
        """Rows a second, from start to end of the process."""
        return self.count["requests"] / self.measured.wall_s

    @property
    def calling_rate(self) -> float:
        """Rows a second between the first request and the last answer."""
        return self.count["requests"] / max(self.count["last_at"] - self.count["first_at"], 1e-9)

    @property
    def cpu_per_1000(self) -> float:
        """CPU seconds per 1,000 rows, imports included."""
        return 1000 * self.measured.cpu_s / self.count["requests"] if self.count["requests"] else math.nan


def install(build: Path, name: str) -> str:
    """Makes the contestant's environment; gives why it can't be had, or nothing."""
    name = ENVIRONMENTS.get(name, name)
    home = build / name
    if (home / ".ready").exists():
        return ""
    uv = [sys.executable, "-m", "uv", "--quiet", "--no-progress"]
    steps = (
        [*uv, "venv", "--clear", "--python", "3.11", str(home)],
        [
            *uv,
            "pip",
            "install",
            "--python",
            str(home / "bin/python"),
            "-r",
            str(HERE / f"requirements/{name}.txt"),
        ],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            return lines[-1] if lines else f"exit status {done.returncode}"
    (home / ".ready").touch()
    return ""


@contextmanager
def provider(latency_ms: float) -> Iterator[int]:
    """The stub on a free port."""
    with subprocess.Popen(
        [sys.executable, str(HERE / "stub.py"), "0", str(latency_ms)], stdout=subprocess.PIPE, text=True
    ) as stub:
        assert stub.stdout is not None
        try:
            yield int(stub.stdout.readline())
        finally:
            stub.terminate()


def counted(port: int) -> dict[str, float]:
    """What the provider has counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/count", timeout=10) as reply:
        return json.loads(reply.read())


def run_one(name: str, options: argparse.Namespace, build: Path, latency_ms: float) -> Result:
    """One contestant, once."""
    target = build / "out" / f"{name}-{os.urandom(4).hex()}"
    target.parent.mkdir(parents=True, exist_ok=True)
    script = HERE / ("switchgear_run.py" if name == OURS else f"peers/{name}.py")
    home = build / ENVIRONMENTS.get(name, name)
    python = sys.executable if name == OURS else str(home / "bin/python")
    environ = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(build / "home"),
        "OPENAI_API_KEY": "none",
        "TIKTOKEN_CACHE_DIR": str(home / _COUNTERS),
        "CURATOR_DISABLE_CACHE": "1",
        "DO_NOT_TRACK": "1",
        "TELEMETRY_ENABLED": "0",
        "PYTHONPATH": str(ROOT) if name == OURS else "",
    }
    (build / "home").mkdir(exist_ok=True)
    with provider(latency_ms) as port:
        command = [python, str(script), str(source(build, options.rows)), str(target)]
        command += [f"http://127.0.0.1:{port}/v1", str(options.in_flight)]
        measured = measure(command, environ, options.limit, build / "out" / f"{name}.log")
        return Result(name, measured, counted(port))


def source(build: Path, rows: int) -> Path:
    """The documents."""
    path = build / f"documents-{rows}.parquet"
    if not path.exists():
        texts = [f"{row} {SENTENCE * 6}"[:500] for row in range(rows)]
        table = pa.table({"id": [f"d{row}" for row in range(rows)], "text": texts})
        pq.write_table(table, path, row_group_size=4096)
    return path


def show(results: list[Result], options: argparse.Namespace, latency_ms: float) -> None:
    """The table of one latency: medians, with the range of the ratios to ours over the rounds."""
    ideal = f"; the ideal is {options.in_flight / latency_ms * 1000:,.0f} rows/s" if latency_ms else ""
    print(f"\n{options.rows:,} rows, {latency_ms:g} ms latency, {options.in_flight} in flight{ideal}")
    head = f"{'':14}{'rows/s':>8}{'calling':>9}{'CPU s/1000':>12}{'peak MiB':>10}{'requests':>10}"
    print(f"{head}   CPU against ours")
    ours = [r for r in results if r.name == OURS]
    for name in dict.fromkeys(result.name for result in results):
        of_it = [r for r in results if r.name == name]
        ratios = [a.cpu_per_1000 / b.cpu_per_1000 for a, b in zip(of_it, ours, strict=False)]
        line = f"{name:14}{median(r.rate for r in of_it):8,.0f}{median(r.calling_rate for r in of_it):9,.0f}"
        line += (
            f"{median(r.cpu_per_1000 for r in of_it):12.2f}{max(r.measured.peak_mib for r in of_it):10,.0f}"
        )
        line += f"{median(r.count['requests'] for r in of_it):10,.0f}"
        print(f"{line}   {min(ratios):.1f} to {max(ratios):.1f} times{_remarks(of_it)}")


def _remarks(results: list[Result]) -> str:
    late = sum(not r.measured.finished for r in results)
    silent = sum(not r.count["requests"] for r in results)
    failed = [r for r in results if r.measured.finished and r.measured.returncode]
    said = f"  stopped at the limit {late} times" if late else ""
    said += f", {silent} of them without a single request" if silent else ""
    return said + (f"  FAILED: {failed[0].measured.last_words}" if failed else "")


def show_in_flight(options: argparse.Namespace, build: Path) -> None:
    """Ours alone: how near it comes to the ideal, and how full the cores are, by calls in flight.

    `cores` are those that the run itself kept busy while it called; its Python code runs on one at a
    time. `machine` is how busy all of them were, whoever kept them so.
    """
    latency_ms = max(options.latency)
    print(f"\nours alone, {latency_ms:g} ms latency, while calling")
    print(f"{'in flight':>10}{'rows/s':>9}{'ideal':>8}{'of ideal':>10}{'cores':>8}{'machine':>9}")
    for in_flight in (32, 64, 128, 256, 512):
        rows = min(options.rows, 80 * in_flight)
        asked = argparse.Namespace(**{**vars(options), "rows": rows, "in_flight": in_flight})
        before = _machine()
        result = run_one(OURS, asked, build, latency_ms)
        busy, total = (after - was for after, was in zip(_machine(), before, strict=True))
        cores = result.measured.cores(result.count["first_at"], result.count["last_at"])
        ideal = in_flight / latency_ms * 1000
        print(
            f"{in_flight:10,}{result.calling_rate:9,.0f}{ideal:8,.0f}{result.calling_rate / ideal:10.0%}"
            f"{cores:8.2f}{busy / total:9.0%}",
            flush=True,
        )


def show_memory(options: argparse.Namespace, build: Path) -> None:
    """Ours alone: peak memory and CPU by the number of rows."""
    print(f"\nours alone, no latency, {options.in_flight} in flight")
    print(f"{'rows':>10}{'peak MiB':>10}{'private':>9}{'CPU s/1000':>12}")
    for rows in (5_000, 50_000, 200_000):
        asked = argparse.Namespace(**{**vars(options), "rows": rows, "limit": 10 * options.limit})
        result = run_one(OURS, asked, build, 0.0)
        measured = result.measured
        line = f"{rows:10,}{measured.peak_mib:10,.0f}{measured.private_mib:9,.0f}"
        print(f"{line}{result.cpu_per_1000:12.2f}", flush=True)


def _machine() -> tuple[float, float]:
    """Busy and all ticks of the machine's cores so far."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def main() -> None:
    """Installs, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--latency", type=float, nargs="+", default=[50.0, 0.0], help="milliseconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one contestant and round")
    parser.add_argument("--only", nargs="*", choices=PEERS, default=list(PEERS), help="beside ours")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    options = parser.parse_args()
    build = ROOT / "build" / "bench"
    build.mkdir(parents=True, exist_ok=True)
    if "race" in options.tables:
        race(options, build)
    if "in-flight" in options.tables:
        show_in_flight(options, build)
    if "memory" in options.tables:
        show_memory(options, build)


def race(options: argparse.Namespace, build: Path) -> None:
    """Ours beside the others, latency by latency."""
    names = [OURS]
    for name in options.only:
        why_not = install(build, name)
        print(f"{name}: " + (f"not installed, and left out: {why_not}" if why_not else "ready"), flush=True)
        if not why_not:
            names.append(name)
    for latency_ms in options.latency:
        results: list[Result] = []
        for number in range(options.rounds):
            turn = number % len(names)
            load = os.getloadavg()[0]
            for name in names[turn:] + names[:turn]:
                results.append(run_one(name, options, build, latency_ms))
                last = results[-1]
                print(
                    f"  round {number + 1} (load {load:.1f}) {name}: {last.rate:,.0f} rows/s, "
                    f"{last.cpu_per_1000:.2f} CPU s per 1,000",
                    flush=True,
                )
        results.sort(key=lambda result: names.index(result.name))
        show(results, options, latency_ms)


if __name__ == "__main__":
    main()
