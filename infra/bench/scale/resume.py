"""`make bench-resume`: seconds, memory and store operations of a resume and of settling, to 1 M batches.

The store is a folder under build/ in which every operation takes `--latency-ms` and a listing takes as much
for each thousand names, as over a network. Commit records are made up when they are read, so that none has
to be written; the files of compacted ones are real. Each size has a process of its own.

Of each output all batches but `--open` are compacted; half of those that are open were committed by a worker
that came late. At last a further run over all batches is settled that was cancelled before it had done any.
Exit code 1 says that a resume took more operations than these and a few, or a batch more than so many bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from infra.bench.scale.memory import forget_peak, peak
from schemas.batches import BackendTotals, BatchRef, BatchReport, CommitRecord
from schemas.load import LoadedWorkload
from schemas.run import RunContext
from schemas.workload import Workload
from transforms.batch_ids import name_of
from transforms.batch_refs import REFS_SCHEMA, BatchRefs
from transforms.commit_rows import commit_rows
from transforms.compacted import write_compacted
from transforms.compaction import take_stock
from transforms.layout import COMMITS, commit_path, parse_name, plan_path
from transforms.plan import Plan
from transforms.plan_file import plan_bytes
from transforms.settle import settle_run
from transforms.store import LocalStore
from transforms.unfinished import Unfinished

FOLDER = Path("build/bench/resume")
RUN = "20261122T090000000Z-000001"
CANCELLED = "20261122T100000000Z-000002"
MOST_OTHER_OPERATIONS = 40
MOST_BYTES = 250
JUDGED_FROM = 100_000
_PIECE = 10_000
_PAGE = 1000
_BATCHES_A_FILE = 10
_MIB = 1 << 20
_NO_SCHEMA = pa.schema([])


class FarStore:
    """A folder with the manners of object storage: each operation takes its time and is counted."""

    def __init__(self, folder: Path, batches: int, still_open: int, latency_s: float) -> None:
        ids = ids_of(batches)
        late = ids[batches - still_open :: 2]
        self.root = "far://output"
        self.asked: Counter[str] = Counter()
        self._local = LocalStore(str(folder))
        self._late = {name_of(batch) for batch in late}
        self._committed = np.concatenate([ids[: batches - still_open], late])
        self._latency_s = latency_s

    def _wait(self, what: str, times: int = 1) -> None:
        self.asked[what] += times
        time.sleep(self._latency_s * times)

    def __getattr__(self, name: str) -> Any:
        work = getattr(self._local, name)

        def waiting(*arguments: Any) -> Any:
            self._wait(name)
            return work(*arguments)

        return waiting

    def read(self, path: str) -> bytes:
        """An object; a commit record is made up if it was committed late."""
        self._wait(f"read {path.split('/', maxsplit=1)[0]}")
        return self._record(path) if path.startswith(COMMITS) else self._local.read(path)

    def open(self, path: str) -> IO[bytes]:
        """An object of the folder."""
        self._wait(f"open {path.split('/', maxsplit=1)[0]}")
        return self._local.open(path)

    def exists(self, path: str) -> bool:
        """Parts of made-up commits are there."""
        self._wait("exists")
        return path.startswith("results/") or self._local.exists(path)

    def list(self, prefix: str) -> Iterator[str]:
        """A listing, page by page."""
        found = self._local.list(prefix) if prefix != COMMITS else map(self._named, self._committed)
        for number, path in enumerate(found):
            if number % _PAGE == 0:
                self._wait(f"list {prefix}")
            yield path
        self._wait(f"list {prefix}")

    def folders(self, prefix: str) -> Iterator[str]:
        """A listing of folders, page by page."""
        self._wait(f"list {prefix}")
        yield from self._local.folders(prefix)

    @staticmethod
    def _named(batch: np.bytes_) -> str:
        return commit_path(name_of(batch), 1)

    def _record(self, path: str) -> bytes:
        name = parse_name(path.rsplit("/", 1)[1])
        if name is None or name[0] not in self._late:
            raise FileNotFoundError(path)
        return record(name[0]).to_json()


def record(batch_id: str) -> CommitRecord:
    """The record of a batch of a hundred documents."""
    amount = "0.001234500000"
    spent = {"amount": amount, "list_amount": amount, "basis": "tokens"}
    totals = BackendTotals(100, 100, 100, input_tokens=12_000, output_tokens=900, **spent)  # type: ignore[arg-type]
    return CommitRecord(
        batch_id=batch_id,
        attempt=1,
        run_id=RUN,
        writer="w",
        workload_sha256="0" * 64,
        committed_at="2026-11-22T09:00:00+00:00",
        ref=BatchRef(batch_id, f"gs://bucket/input/{batch_id[:4]}.parquet", "gcs:1", 0, 0, 100),
        rows_in=100,
        rows_skipped=0,
        assignments=100,
        results=100,
        failures=0,
        retryable=0,
        key_sum="0" * 32,
        parts=(),
        results_by_route={"ask": 100},
        totals={"ask": {"mini": totals}},
    )


def ids_of(batches: int) -> np.ndarray[Any, Any]:
    """So many batch ids, the same every time."""
    return np.frombuffer(np.random.default_rng(batches).bytes(16 * batches), "S16")


def fill(folder: Path, batches: int, still_open: int) -> None:
    """An output with a plan, of which all but some batches are compacted."""
    shutil.rmtree(folder, ignore_errors=True)
    store, ids = LocalStore(str(folder)), ids_of(batches)
    piece = commit_rows(record(name_of(batch)) for batch in ids[:_PIECE])
    digests = np.random.default_rng(0)
    for start in range(0, batches - still_open, _PIECE):
        count = min(_PIECE, batches - still_open - start)
        names = [f"gs://bucket/input/{n // _BATCHES_A_FILE:09}.parquet" for n in range(start, start + count)]
        rows = _with(piece.slice(0, count), "batch_id", _binary(ids[start : start + count].tobytes()))
        rows = _with(rows, "uri", pa.array(names))
        write_compacted(store, [_with(rows, "record_digest", _binary(digests.bytes(16 * count)))], ())
    store.create(plan_path(RUN), plan_bytes(refs_of(ids), _NO_SCHEMA))


def _with(rows: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)


def _binary(data: bytes) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(data) // 16, [None, pa.py_buffer(data)])


def refs_of(ids: np.ndarray[Any, Any], attempt: int = 1) -> BatchRefs:
    """The plan of these batches."""
    count = len(ids)
    uri, before = "gs://bucket/input/0.parquet", attempt - 1 or None
    one = BatchRefs.of([BatchRef("0" * 32, uri, "gcs:1", 0, 0, 100, attempt, before)]).table
    columns = [one.column(name).take(pa.array(np.zeros(count, np.int64))) for name in REFS_SCHEMA.names]
    columns[0] = _binary(ids.tobytes())
    return BatchRefs(pa.table(columns, schema=REFS_SCHEMA))


@dataclass(frozen=True, slots=True)
class Measured:
    """What one step took: `peak_mib` is what the process had more than before all steps."""

    step: str
    batches: int
    wall_s: float
    cpu_s: float
    peak_mib: float
    operations: dict[str, int]


def measure(folder: Path, batches: int, still_open: int, latency_s: float) -> list[Measured]:
    """A resume of an output, settling it, and settling a cancelled run over it, in this process."""
    store = FarStore(folder, batches, still_open, latency_s)
    refs, again = (refs_of(ids_of(batches), attempt) for attempt in (1, 2))
    steps = _Steps(store, batches)
    steps.take("resume", lambda: take_stock(store))  # type: ignore[arg-type]
    steps.take("settle", lambda: _settle(store, RUN, refs, ()))
    LocalStore(str(folder)).create(plan_path(CANCELLED), plan_bytes(again, _NO_SCHEMA))
    failed = Unfinished.all_of(again, "its run was stopped")
    steps.take("cancelled", lambda: _settle(store, CANCELLED, again, failed))
    return steps.taken


def _settle(store: FarStore, run_id: str, refs: BatchRefs, failed: Sequence[BatchReport]) -> None:
    loaded = LoadedWorkload(_workload(), Path("w.toml"), b"", "in", store.root)
    run = RunContext(run_id, store.root, "0" * 64, False, 8)
    plan = Plan(run_id, refs, 0, 100 * len(refs), len(refs), 0, 1, (), plan_path(run_id))
    settle_run(loaded, run, plan, failed, datetime.now(UTC), store=store)  # type: ignore[arg-type]


class _Steps:
    """Measures one step after the other."""

    def __init__(self, store: FarStore, batches: int) -> None:
        self.taken: list[Measured] = []
        self._store = store
        self._batches = batches
        self._before = forget_peak()

    def take(self, step: str, work: Callable[[], object]) -> None:
        """Do a step."""
        self._store.asked.clear()
        forget_peak()
        wall, cpu = time.monotonic(), time.process_time()
        work()
        spent = time.monotonic() - wall, time.process_time() - cpu
        most = (peak() - self._before) / _MIB
        self.taken.append(Measured(step, self._batches, *spent, most, dict(self._store.asked)))


def _workload() -> Workload:
    return Workload.model_validate(
        {
            "name": "bench",
            "input": {"uri": "in", "id": "id", "text": "text"},
            "output": {"uri": "out"},
            "prompts": {"p": {"template": "{{ text }}"}},
            "backends": {"mini": {"provider": "openai", "model": "gpt-5-mini", "max_output_tokens": 16}},
            "routes": [{"name": "ask", "backends": ["mini"], "prompt": "p"}],
        }
    )


def show(taken: Sequence[Measured], still_open: int, latency_s: float) -> bool:
    """Print what was measured; whether it holds what it should."""
    holds = True
    print(f"operations of {1000 * latency_s:g} ms, load {os.getloadavg()[0]:.1f}")
    print(f"{'':10}{'batches':>10}{'wall s':>9}{'CPU s':>8}{'MiB':>8}  operations")
    for one in taken:
        asked = ", ".join(f"{count:,} {what}" for what, count in sorted(one.operations.items()))
        took = f"{one.wall_s:>9.2f}{one.cpu_s:>8.2f}{one.peak_mib:>8.0f}"
        print(f"{one.step:10}{one.batches:>10,}{took}  {asked}")
        files = one.operations.get("read compacted", 0) + one.operations.get("delete", 0)
        files += one.operations.get("list commits", 0)
        others = sum(one.operations.values()) - files
        holds &= one.step != "resume" or others <= still_open + MOST_OTHER_OPERATIONS
    print(
        "MiB: what the process had more at its peak than before. Without compacted files the records of "
        f"1,000,000 batches are as many reads: {1_000_000 / 32 * latency_s / 60:.0f} minutes, 32 at a time."
    )
    for step in ("resume", "settle", "cancelled"):
        sizes = sorted((one for one in taken if one.step == step), key=lambda one: one.batches)
        for few, many in pairwise(sizes):
            each = (many.peak_mib - few.peak_mib) * _MIB / (many.batches - few.batches)
            print(f"{step}, {few.batches:,} to {many.batches:,}: {each:.0f} bytes more for each batch")
            holds &= few.batches < JUDGED_FROM or each <= MOST_BYTES
    return holds


def main() -> int:
    """Measure each size, in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="10000,100000,1000000", help="numbers of batches")
    parser.add_argument("--open", type=int, default=1000, help="batches that are in no compacted file")
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--one", choices=("fill", "measure"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    latency_s, sizes = asked.latency_ms / 1000, [int(size) for size in asked.sizes.split(",")]
    folder = FOLDER / str(sizes[0])
    if asked.one == "fill":
        fill(folder, sizes[0], asked.open)
        return 0
    if asked.one == "measure":
        print(json.dumps([asdict(one) for one in measure(folder, sizes[0], asked.open, latency_s)]))
        return 0
    taken: list[Measured] = []
    for size in sizes:
        same = [f"--sizes={size}", f"--open={asked.open}", f"--latency-ms={asked.latency_ms}"]
        _apart("fill", same)
        taken += [Measured(**one) for one in json.loads(_apart("measure", same))]
        shutil.rmtree(FOLDER / str(size))
    return 0 if show(taken, asked.open, latency_s) else 1


def _apart(what: str, arguments: Sequence[str]) -> bytes:
    """Do one thing in a process of its own; what it prints."""
    command = [sys.executable, "-m", "infra.bench.scale.resume", f"--one={what}", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=3600).stdout


if __name__ == "__main__":
    sys.exit(main())
