"""`make bench-plan`: seconds, memory and store operations of planning 10 k, 100 k and 1 M batches.

The input are objects of a store that is nowhere: listed by pages, read by ranges, and every range takes
`--latency-ms`. The footers are real, read by reader processes as in a run. The output is a folder under
build/. Each size has a process of its own. Repeated ids are measured apart, on hashes: their files are
nowhere.

Exit code 1 says that a batch took more than 300 bytes, or that something grows faster than the input.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.bench.scale.memory import forget_peak, peak
from schemas.load import LoadedWorkload
from schemas.run import RunContext
from schemas.workload import Workload
from transforms.files import OBJECTS_AT_ONCE, collect_files, describe
from transforms.gcs.inputs import locate_in
from transforms.gcs.objects import ObjectInfo
from transforms.plan import find_due, freeze_plan
from transforms.plan_file import read_group
from transforms.repeated_hashes import RepeatedHashes
from transforms.store import LocalStore

FOLDER = Path("build/bench/plan")
BATCHES_A_FILE = 10
MOST_BYTES = 300
MOST_SLOPE = 1.1
JUDGED_FROM = 100_000
"""Below, memory is what is on its way, not what stays."""

_BATCH_ROWS = 100
_PAGE = 1000  # of a listing of Cloud Storage
_GROUPS = 200
_MIB = 1 << 20


class Bucket:
    """Objects that all have the same bytes; every range takes some time, as over a network."""

    def __init__(self, count: int, data: bytes, latency_s: float) -> None:
        self._count = count
        self._data = data
        self._latency_s = latency_s
        self._guard = threading.Lock()
        self.pages = 0
        self.ranges = 0

    def list(self) -> Iterator[ObjectInfo]:
        """The objects by name, as a listing's pages show them."""
        for number in range(self._count):
            if number % _PAGE == 0:
                self.pages += 1
                time.sleep(self._latency_s)
            yield ObjectInfo(f"gs://bucket/input/{number:09}.parquet", len(self._data), f"{number:016}")

    def fetch(self, _name: str, start: int, length: int, _generation: str) -> bytes:
        """A range of an object."""
        with self._guard:
            self.ranges += 1
        time.sleep(self._latency_s)
        return self._data[start : start + length]


@dataclass(frozen=True, slots=True)
class Planned:
    """What planning so many batches took. Seconds by step; memory in bytes above that of the program."""

    batches: int
    files: int
    footers_s: float
    due_s: float
    freeze_s: float
    group_s: float
    cpu_s: float
    peak: int
    pages: int
    ranges: int
    writes: int
    plan_bytes: int


def plan(batches: int, latency_s: float, folder: Path, batches_a_file: int = BATCHES_A_FILE) -> Planned:
    """Plan a run over so many batches in this process."""
    shutil.rmtree(folder, ignore_errors=True)
    loaded = _loaded(folder / "output")
    settings = loaded.workload.input
    data = _file(batches_a_file)
    _describe(Bucket(1, data, 0), loaded)  # what is imported when it is used first
    files = -(-batches // batches_a_file)
    bucket = Bucket(files, data, latency_s)
    before, cpu = forget_peak(), _cpu()
    marks = [time.monotonic()]
    found = collect_files(_describe(bucket, loaded), settings)
    marks.append(time.monotonic())
    work = find_due(loaded, None, found=found)
    marks.append(time.monotonic())
    planned = freeze_plan(loaded, RunContext("run", loaded.output_uri, "0" * 64, False, 8), work)
    marks.append(time.monotonic())
    most, cpu = peak() - before, _cpu() - cpu
    store = LocalStore(loaded.output_uri)
    group, _ = read_group(store, planned.plan_uri, _GROUPS // 2, _GROUPS)
    marks.append(time.monotonic())
    assert len(planned.refs) == batches
    assert len(group) == len(range(_GROUPS // 2, batches, _GROUPS))
    written = list(store.list(""))
    seconds = [round(after - earlier, 3) for earlier, after in pairwise(marks)]
    size = len(store.read(planned.plan_uri))
    shutil.rmtree(folder)
    return Planned(
        batches, files, *seconds, round(cpu, 2), most, bucket.pages, bucket.ranges, len(written), size
    )


def _describe(bucket: Bucket, loaded: LoadedWorkload) -> Iterator[object]:
    columns = loaded.workload.input.needed_columns
    return describe(bucket.list(), locate_in(bucket.fetch), columns, OBJECTS_AT_ONCE)


def _file(batches: int) -> bytes:
    rows = batches * _BATCH_ROWS
    table = pa.table({"id": [str(n) for n in range(rows)], "text": ["words " * 20] * rows})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _loaded(output: Path) -> LoadedWorkload:
    values = {
        "name": "plan",
        "input": {"uri": "gs://bucket/input", "id": "id", "text": "text", "unique_ids": "batch"},
        "routes": [{"name": "ask", "backends": ["mini"], "prompt": "ask"}],
        "backends": {"mini": {"provider": "openai", "model": "gpt-5-mini"}},
        "prompts": {"ask": {"template": "{{ text }}"}},
        "output": {"uri": str(output)},
        "limits": {"batch_rows": _BATCH_ROWS},
    }
    workload = Workload.model_validate(values)
    return LoadedWorkload(workload, Path("plan.toml"), b"", "gs://bucket/input", str(output))


def _cpu() -> float:
    """CPU seconds of this process, and of readers that have ended."""
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


@dataclass(frozen=True, slots=True)
class Looked:
    """What looking for repeated ids among so many took, after they were read."""

    rows: int
    seconds: float
    peak: int


def look_for_repeated(rows: int) -> Looked:
    """Find the one hash in a thousand that stands twice among so many."""
    draw = np.random.default_rng(0)
    before, started = forget_peak(), time.monotonic()
    with RepeatedHashes() as hashes:
        for first in range(0, rows, 16_384):
            count = min(16_384, rows - first)
            new = draw.integers(0, 1 << 64, count, np.uint64)
            new[::1000] = np.arange(first, first + count, dtype=np.uint64)[::1000] % 4099
            hashes.add(new, np.arange(first, first + count))
        found = hashes.repeated()
    assert rows < 10_000_000 or len(found) >= rows // 1000
    return Looked(rows, round(time.monotonic() - started, 2), peak() - before)


HEAD = (
    f"{'batches':>10}{'files':>9}{'footers s':>11}{'at best s':>11}{'due s':>8}{'freeze s':>10}{'group s':>9}"
    f"{'CPU s':>8}{'peak MiB':>10}{'listings':>10}{'ranges':>9}{'writes':>8}{'plan MB':>9}"
)
LEGEND = (
    "at best: files x latency / objects at once; due: cut, and looked up; freeze: plan.parquet written;\n"
    "group: one of 200 groups read back; CPU: of the planning process; peak: above what the program takes"
)


def line(found: Planned, latency_s: float) -> str:
    """A size on a line."""
    return (
        f"{found.batches:>10,}{found.files:>9,}{found.footers_s:>11.1f}"
        f"{found.files * latency_s / OBJECTS_AT_ONCE:>11.1f}{found.due_s:>8.2f}{found.freeze_s:>10.2f}"
        f"{found.group_s:>9.3f}{found.cpu_s:>8.1f}{found.peak / _MIB:>10.1f}{found.pages:>10,}"
        f"{found.ranges:>9,}{found.writes:>8}{found.plan_bytes / 1e6:>9.1f}"
    )


FIGURES: dict[str, Callable[[Planned], float]] = {
    "footers": lambda found: found.footers_s,
    "due": lambda found: found.due_s,
    "freeze": lambda found: found.freeze_s,
    "CPU": lambda found: found.cpu_s,
    "peak": lambda found: found.peak,
    "ranges": lambda found: found.ranges,
}


def slopes(few: Planned, many: Planned) -> dict[str, float]:
    """How each figure grows between two sizes: the exponent of the number of batches; 1 is linear."""
    growth = math.log(many.batches / few.batches)
    return {
        name: math.log(max(1e-9, figure(many)) / max(1e-9, figure(few))) / growth
        for name, figure in FIGURES.items()
    }


def bytes_a_batch(few: Planned, many: Planned) -> float:
    """What each further batch takes of the driver's memory."""
    return (many.peak - few.peak) / (many.batches - few.batches)


def broken(found: Sequence[Planned]) -> Iterator[str]:
    """What these figures show that must not be."""
    for few, many in pairwise(found):
        sizes = f"from {few.batches:,} to {many.batches:,} batches"
        if few.batches >= JUDGED_FROM and bytes_a_batch(few, many) > MOST_BYTES:
            yield f"{sizes}: {bytes_a_batch(few, many):.0f} bytes a batch, to be at most {MOST_BYTES}"
        steep = {name: slope for name, slope in slopes(few, many).items() if slope > MOST_SLOPE}
        for name in ("CPU", "ranges"):  # seconds are the machine's
            if name in steep:
                yield f"{sizes}: {name} grows with the power {steep[name]:.2f}"


def main() -> None:
    """Plan every size and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="10000,100000,1000000", help="numbers of batches")
    parser.add_argument("--ids", default="1000000,10000000,100000000", help="numbers of ids; empty: none")
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--batches-a-file", type=int, default=BATCHES_A_FILE)
    parser.add_argument("--one", choices=("plan", "ids"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",") if size]
    if options.one == "plan":
        folder = FOLDER / str(sizes[0])
        found = plan(sizes[0], options.latency_ms / 1000, folder, options.batches_a_file)
        print(json.dumps(asdict(found)))
        return
    if options.one == "ids":
        print(json.dumps(asdict(look_for_repeated(sizes[0]))))
        return
    print(f"{options.latency_ms:g} ms a range, {OBJECTS_AT_ONCE} at once, load {os.getloadavg()[0]:.1f}")
    print(f"{LEGEND}\n{HEAD}", flush=True)
    planned = []
    for size in sorted(sizes):
        more = (f"--latency-ms={options.latency_ms}", f"--batches-a-file={options.batches_a_file}")
        planned.append(Planned(**_apart("plan", size, *more)))
        print(line(planned[-1], options.latency_ms / 1000), flush=True)
    for few, many in pairwise(planned):
        shown = ", ".join(f"{name} {slope:.2f}" for name, slope in slopes(few, many).items())
        each = f"{bytes_a_batch(few, many):.0f} bytes a batch"
        print(f"{few.batches:,} to {many.batches:,}: {each}; slopes {shown}")
    for rows in (int(number) for number in options.ids.split(",") if number):
        looked = Looked(**_apart("ids", rows))
        print(
            f"repeated among {rows:,} ids: {looked.seconds:.1f} s, {looked.peak / _MIB:.0f} MiB", flush=True
        )
    if wrong := list(broken(planned)):
        raise SystemExit("; ".join(wrong))


def _apart(what: str, size: int, *more: str) -> dict[str, float]:
    """Do one thing in a process of its own."""
    command = [sys.executable, "-m", "infra.bench.scale.planning", f"--one={what}", f"--sizes={size}"]
    done = subprocess.run([*command, *more], stdout=subprocess.PIPE, check=True, timeout=3600)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
