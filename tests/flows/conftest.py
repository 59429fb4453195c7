"""What the tests of the flows share: a manifest to print, a plan to show, records to report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.batches import AmbiguousCall, BackendTotals, BatchRef, CommitRecord
from schemas.run import FailedBatch, FailureGroup, Manifest
from tests.support import records
from transforms.batch_refs import BatchRefs
from transforms.plan import Plan


def make_ref(number: int, rows: int = 10, attempt: int = 1) -> BatchRef:
    return BatchRef(
        batch_id=f"{number:032x}",
        uri="/data/input/part-0.parquet",
        generation="sha256:1",
        row_group=0,
        first_row=number * rows,
        row_count=rows,
        attempt=attempt,
    )


def make_record(ref: BatchRef, **changes: Any) -> CommitRecord:
    record = CommitRecord(
        batch_id=ref.batch_id,
        attempt=ref.attempt,
        run_id="20261122T091500Z-1f3a9c",
        writer="w",
        workload_sha256="a" * 64,
        committed_at="2026-11-22T09:15:00+00:00",
        ref=ref,
        rows_in=ref.row_count,
        rows_skipped=0,
        assignments=ref.row_count,
        results=ref.row_count,
        failures=0,
        retryable=0,
        key_sum="0",
        parts=(),
        totals={
            "summary": {"claude": BackendTotals(documents=10, calls=10, amount="0.25", list_amount="0.25")}
        },
    )
    return replace(record, **changes)


def make_plan(batches: int, rows: int = 10, committed: int = 0) -> Plan:
    return Plan(
        run_id="20261122T091500Z-1f3a9c",
        refs=BatchRefs.of(make_ref(n, rows) for n in range(batches)),
        rows_due=batches * rows,
        rows_total=(batches + committed) * rows,
        batches_total=batches + committed,
        batches_committed=committed,
        files=1,
        skipped_files=(),
        plan_uri="runs/20261122T091500Z-1f3a9c/plan.parquet",
    )


_MANIFEST = records.manifest(
    run_id="20261122T091500Z-1f3a9c",
    workload="package_docs",
    workload_sha256="a" * 64,
    reason="every document is a result or a final failure",
    started_at="2026-11-22T09:15:00+00:00",
    ended_at="2026-11-22T09:16:00+00:00",
    input_files=2,
    rows_in=1200,
    assignments=1200,
    results=1190,
    failures=10,
    batches=3,
    batches_committed=3,
    batches_committed_by_this_run=3,
    calls_by_this_run=400,
    results_by_route={"summary": 390, "vectors": 800},
    failures_by_route={"summary": 10},
    failure_groups=(
        FailureGroup(
            "policy_rejected", 10, False, "a policy rule rejected the document", "see the rule", ("d1",), "m"
        ),
    ),
    totals={
        "summary": {
            "claude": BackendTotals(400, 390, 400, 0, 0, "0", 1000, 200, "1.25", "1.25", 0, 0.0, "tokens")
        },
        "vectors": {
            "minilm": BackendTotals(800, 800, 0, unknown=800, device_seconds=3.5, basis="device_seconds")
        },
    },
    amount="1.25",
    list_amount="1.25",
    unknown_prices=800,
    budget_amount="5",
)

AMBIGUOUS = AmbiguousCall("0" * 32, 1, 7, "summary", "claude", "crash", "0.002", "2026-11-22T09:15:30+00:00")
FAILED_BATCH = FailedBatch(
    "f" * 32, "/data/input/part-1.parquet", 0, 0, 500, "the file's pages can't be read"
)


@pytest.fixture
def manifest() -> Callable[..., Manifest]:
    """A manifest of a real run, with the given fields changed."""

    def make(**changes: Any) -> Manifest:
        return replace(_MANIFEST, **changes)

    return make


@pytest.fixture
def plan() -> Callable[..., Plan]:
    """A plan of so many batches."""
    return make_plan


@pytest.fixture
def ref() -> Callable[..., BatchRef]:
    """A batch by its number."""
    return make_ref


@pytest.fixture
def record() -> Callable[..., CommitRecord]:
    """The commit record of a batch in which everything went well, with the given fields changed."""
    return make_record


@pytest.fixture
def ambiguous() -> AmbiguousCall:
    return AMBIGUOUS


@pytest.fixture
def failed_batch() -> FailedBatch:
    return FAILED_BATCH


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """A Python script with the given text."""
    made = 0

    def write(text: str) -> Path:
        nonlocal made
        made += 1
        path = tmp_path / f"script{made}.py"
        path.write_text(text, encoding="utf-8")
        return path

    return write
