"""Jobs over the mock vendor that are killed at random instants of their working life."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.dataset as ds

from schemas.run import Manifest
from tests.peers.mock_vendor import REPOSITORY, MockVendor
from tests.support import documents, workloads
from transforms.call.retry import MOST_AMBIGUOUS_CALLS

_KEY = {"OPENAI_API_KEY": "sk-test-not-a-key"}
PATTERN = r"document (\d+) of"


@dataclass
class Job:
    """A workload over the mock vendor, and what has become of it so far."""

    workload: Path
    vendor: MockVendor
    random: random.Random
    run: Callable[[Path], Manifest]
    documents: int
    in_flight: int
    longest_life_s: float
    kills: int = 0
    lives: list[float] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return self.workload.parent / "out"

    def start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **_KEY, "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", self.run.__module__, str(self.workload)]
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=open(self.workload.parent / "stderr.log", "ab"),
            start_new_session=True,
        )

    def run_and_kill(self) -> bool:
        """Start a run and kill it at a random instant of its working life; False if it was done first."""
        process = self.start()
        life = self.random.uniform(0.0, self.longest_life_s)
        first = self._wait_for_work(process)
        for _ in _until(first + life):
            if process.poll() is not None:
                break
        ended = process.poll() is not None
        if not ended:
            os.killpg(process.pid, signal.SIGKILL)
            self.kills += 1
            self.lives.append(life)
        process.wait()
        return not ended

    def _wait_for_work(self, process: subprocess.Popen[bytes]) -> float:
        """Wait until the run has opened a ledger or ended; the instant."""
        before = _names(self.output / "ledger") | _names(self.output / "commits")
        for _ in _until(time.monotonic() + 60):
            if process.poll() is not None:
                break
            if (_names(self.output / "ledger") | _names(self.output / "commits")) != before or (
                before and self._ledger_age() < 0.05
            ):
                break
        return time.monotonic()

    def _ledger_age(self) -> float:
        """Seconds since a ledger was last written."""
        times = [p.stat().st_mtime for p in (self.output / "ledger").glob("*/*")]
        return time.time() - max(times, default=0.0)

    def finish(self) -> Manifest:
        """Run to the end: in this process, which has imported everything."""
        with patch.dict(os.environ, _KEY):
            return self.run(self.workload)

    def rows(self, kind: str) -> list[dict[str, Any]]:
        folder = self.output / kind
        if not folder.exists():
            return []
        table = ds.dataset(folder, format="parquet", partitioning="hive").to_table()
        return table.select(["document_id", "cost", "lineage"]).to_pylist()

    def files(self) -> dict[str, int]:
        kinds = ("results", "failures", "commits", "ledger")
        return {
            str(p.relative_to(self.output)): p.stat().st_mtime_ns
            for kind in kinds
            for p in (self.output / kind).rglob("*")
            if p.is_file()
        }


def _until(deadline: float) -> Iterator[None]:
    """Come back every few milliseconds until a deadline."""
    while time.monotonic() < deadline:
        yield
        time.sleep(0.005)


def _names(folder: Path) -> set[str]:
    return {p.name for p in folder.glob("*")}


def make_job(
    folder: Path,
    vendor: MockVendor,
    seed: int,
    *,
    run: Callable[[Path], Manifest],
    size: int,
    batch_rows: int,
    in_flight: int = 16,
    latency_ms: tuple[float, float] = (20, 90),
    longest_life_s: float = 0.6,
) -> Job:
    """A job over two files with a hosted route to the vendor, nothing of it done yet.

    `run` is `drive` or `run_light`: what is killed is a process of its module.
    """
    vendor.answer("an answer about $ID", id=PATTERN, latency_ms=list(latency_ms))
    ids = [f"doc-{n}" for n in range(size)]
    texts = [f"document {n} of many: {'word ' * (n % 40)}" for n in range(size)]
    half = size // 2
    for name, part in (("a", slice(0, half)), ("b", slice(half, None))):
        table = documents.rows(ids[part], text=texts[part])
        documents.write(folder / "in" / f"{name}.parquet", table, row_group=batch_rows * 2)
    workload = workloads.write_workload(
        folder,
        backends__mini={**workloads.HOSTED, "base_url": vendor.base_url("openai")},
        prompts__topic={"template": "{{ text }}"},
        limits={"batch_rows": batch_rows, "max_in_flight": in_flight},
        budget={"amount": "100"},
    )
    return Job(workload, vendor, random.Random(seed), run, size, in_flight, longest_life_s)


def check_finished(job: Job, manifest: Manifest) -> None:
    """Every document once, no answered one paid again, and nothing left to do, by the vendor's journal."""
    if manifest.state != "complete":
        _check_failed_by_kills(job, manifest)
        manifest = job.finish()
    results, failures = job.rows("results"), job.rows("failures")
    seen = Counter(row["document_id"] for row in results + failures)
    assert seen == Counter(f"doc-{n}" for n in range(job.documents)), "each document exactly once"
    assert manifest.state == "complete", manifest.reason
    assert manifest.rows_in == job.documents == manifest.results + manifest.failures

    paid = job.vendor.answered(PATTERN)
    ambiguous = _ambiguous_by_document(manifest, results + failures)
    assert all(paid[str(n)] <= 1 + ambiguous[f"doc-{n}"] for n in range(job.documents))
    assert all(call.cause == "crash" for call in manifest.ambiguous)
    assert len(manifest.ambiguous) <= job.kills * job.in_flight
    assert sum(row["cost"]["ambiguous_calls"] for row in results + failures) == len(manifest.ambiguous)

    bill, files = sum(paid.values()), job.files()
    again = job.finish()
    assert sum(job.vendor.answered(PATTERN).values()) == bill, "the second run makes no call"
    assert job.files() == files, "the second run rewrites nothing"
    assert (again.state, again.calls_by_this_run, again.batches_committed_by_this_run) == ("complete", 0, 0)
    assert not list((job.output / "_staging").rglob("*.parquet"))


def _check_failed_by_kills(job: Job, manifest: Manifest) -> None:
    """Only what two kills struck in flight is left for another run: it may have been paid twice already."""
    failures = job.rows("failures")
    struck = _ambiguous_by_document(manifest, job.rows("results") + failures)
    left = [row["document_id"] for row in failures]
    assert left, manifest.reason
    assert all(struck[name] >= MOST_AMBIGUOUS_CALLS for name in left), manifest.reason


def _ambiguous_by_document(manifest: Manifest, rows: list[dict[str, Any]]) -> Counter[str]:
    """How many calls without a known end each document has, by the manifest's list."""
    places = {
        (row["lineage"]["batch_id"], row["lineage"]["source"]["row"]): row["document_id"] for row in rows
    }
    return Counter(places[call.batch_id, call.row] for call in manifest.ambiguous)
