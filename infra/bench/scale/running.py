"""What `make bench-scale` and `make bench-workers` have in common: documents, a provider, a run, its figures.

A run is the command `switchgear run` with everything that belongs to it. Its hosted backend is the loopback
provider of `infra/bench/calls`, so it costs nothing and its budget record, ledger and commits are those of a
real run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.bench.calls.bench import counted
from infra.bench.calls.measure import Measured, measure
from schemas.run import Manifest
from transforms.output import read_manifest

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "build" / "bench" / "scale"
_STUB = ROOT / "infra" / "bench" / "calls" / "stub.py"
_COUNTED = Path(__file__).resolve().parent / "counted"
_ROWS_OF_A_GROUP = 65_536
_ROWS_OF_A_FILE = 16 * _ROWS_OF_A_GROUP
_BATCH_FOLDERS = ("_staging", "results", "commits")
_WRITES = ("create", "swap", "stage", "publish")
WORKLOAD = """
name = "scale"
[input]
uri = "input"
id = "id"
text = "text"
[output]
uri = "{output}"
[limits]
max_in_flight = {in_flight}
batch_rows = {batch_rows}
[backends.stub]
provider = "openai"
model = "stub-1"
base_url = "http://127.0.0.1:{port}/v1"
requires_key = false
max_output_tokens = 16
max_in_flight = {in_flight}
price = {{ input_per_million = "0.1", output_per_million = "0.4" }}
[prompts.classify]
template = "{{{{ text }}}}"
[[routes]]
name = "classify"
backends = ["stub"]
prompt = "classify"
[budget]
amount = "1000000"
"""


@dataclass(frozen=True, slots=True)
class Size:
    """What a run has to do. `in_flight` are calls at a time of all its workers."""

    documents: int
    workers: int = 1
    in_flight: int = 256
    batch_rows: int = 4096
    latency_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run took, what the provider has seen, and which operations the output's store was asked for."""

    size: Size
    measured: Measured
    manifest: Manifest
    provider: dict[str, float]
    operations: Counter[str]

    @property
    def calling_s(self) -> float:
        """Seconds from the first request to the last answer."""
        return max(self.provider["last_at"] - self.provider["first_at"], 1e-9)

    @property
    def batch_writes(self) -> int:
        """Writes of parts, of their final names and of commit records; a run's own tables are staged too."""
        return self._count(_WRITES, _BATCH_FOLDERS) - self._count(("publish",), ("runs",))

    @property
    def segments(self) -> int:
        """Writes of the ledgers' segments, where the ledgers are in the store."""
        return self._count(_WRITES, ("ledger",))

    @property
    def other_writes(self) -> int:
        """Writes that belong to the run and not to one of its batches: plan, manifest, budget record."""
        return self._count(_WRITES, ()) - self.batch_writes - self.segments

    @property
    def other_operations(self) -> int:
        """Everything but writes: reads, looks, listings, deletions."""
        return self.operations.total() - self._count(_WRITES, ())

    def _count(self, names: Sequence[str], folders: Sequence[str]) -> int:
        found = ((*key.split(" ", 1), count) for key, count in self.operations.items())
        return sum(n for name, folder, n in found if name in names and (not folders or folder in folders))


def write_documents(folder: Path, documents: int) -> None:
    """Short documents, written a row group at a time; no two texts are the same."""
    folder.mkdir(parents=True)
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    for start in range(0, documents, _ROWS_OF_A_FILE):
        end = min(documents, start + _ROWS_OF_A_FILE)
        with pq.ParquetWriter(folder / f"{start:010d}.parquet", schema, compression="zstd") as writer:
            for first in range(start, end, _ROWS_OF_A_GROUP):
                rows = range(first, min(end, first + _ROWS_OF_A_GROUP))
                ids, texts = [f"d{n}" for n in rows], [f"Revenue rose in region {n}." for n in rows]
                writer.write_table(pa.table({"id": ids, "text": texts}, schema=schema))


@contextmanager
def provider(latency_ms: float, cores: Sequence[int] = ()) -> Iterator[int]:
    """The loopback provider on a free port, on cores of its own if some are given."""
    command = [sys.executable, str(_STUB), "0", str(latency_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as stub:
        assert stub.stdout is not None
        try:
            if cores:
                os.sched_setaffinity(stub.pid, cores)
            yield int(stub.stdout.readline())
        finally:
            stub.terminate()


def run_size(
    size: Size, name: str, limit_s: float, *, provider_cores: Sequence[int] = (), output: str = "output"
) -> Ran:
    """Run `switchgear run` over so many documents, in a folder that `clear` deletes.

    Raises:
        SystemExit: it did not complete; its log stays, and is named.
    """
    folder = BUILD / name
    clear(name)
    write_documents(folder / "input", size.documents)
    (folder / "operations").mkdir()
    with provider(size.latency_ms, provider_cores) as port:
        workload = WORKLOAD.format(
            port=port, output=output, in_flight=size.in_flight, batch_rows=size.batch_rows
        )
        (folder / "workload.toml").write_text(workload, "utf-8")
        command = [sys.executable, "-m", "flows.cli", "run", str(folder / "workload.toml")]
        command += ["--workers", str(size.workers), "--json"]
        measured = measure(command, _environment(folder), limit_s, folder / "run.log")
        seen = counted(port)
    if not measured.finished or measured.returncode:
        said = measured.last_words if measured.finished else f"stopped after {limit_s:.0f} s"
        raise SystemExit(f"{size.documents:,} documents: the run failed ({said}); see {folder / 'run.log'}")
    where = output if "://" in output else str(folder / output)
    manifest = read_manifest(where)
    assert manifest is not None
    operations: Counter[str] = Counter()
    for path in (folder / "operations").iterdir():
        operations.update(json.loads(path.read_text("utf-8")))
    return Ran(size, measured, manifest, seen, operations)


def clear(name: str) -> None:
    """Delete a run's input and output: some 2.5 kB a document."""
    shutil.rmtree(BUILD / name, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT")},
        "PYTHONPATH": os.pathsep.join([str(_COUNTED), str(ROOT)]),
        "SWITCHGEAR_BENCH_STORE": str(folder / "operations"),
        "SWITCHGEAR_CACHE_DIR": str(BUILD / "cache"),
        "PREFECT_HOME": str(BUILD / "cache" / "prefect"),
    }
