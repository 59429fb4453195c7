"""Batches, outcomes, commit records and manifests for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from schemas.batches import AmbiguousCall, BackendTotals, BatchRef, CommitRecord, PartRef
from schemas.failures import FailureClass
from schemas.outcomes import Assignment, Charge, Outcome, Usage, money
from schemas.run import Manifest, RunContext

REF = BatchRef("b" * 32, "/in/a.parquet", "sha256:00", 0, 100, 4, size=10, mtime_ns=5)
AMBIGUOUS = AmbiguousCall("b" * 32, 1, 102, "ask", "mini", "crash", "0.50", "2026-11-22T09:00:00+00:00")


def run_context(output: Any, **changes: Any) -> RunContext:
    """A run over an output folder."""
    context = RunContext("20261122T090000000Z-000001", str(output), "w" * 64, False, 8)
    return replace(context, **changes)


def commit_record(**changes: Any) -> CommitRecord:
    """The record of an attempt with one result and three failures."""
    record = CommitRecord(
        batch_id=REF.batch_id,
        attempt=1,
        run_id="run-1",
        writer="w1",
        workload_sha256="w" * 64,
        committed_at="2026-11-22T09:00:00+00:00",
        ref=REF,
        rows_in=4,
        rows_skipped=0,
        assignments=4,
        results=1,
        failures=3,
        retryable=1,
        key_sum="0" * 32,
        parts=(PartRef("results", "ask", "_staging/x/ask.parquet", "results/a.parquet", 1, 10, "f" * 64),),
        failures_by_class={"timeout": 1, "null_text": 2},
        results_by_route={"ask": 1},
        failures_by_route={"ask": 1, "": 2},
        totals={"ask": {"mini": BackendTotals(documents=2, calls=3, amount="0.000000000001")}},
        ambiguous=(AMBIGUOUS,),
    )
    return replace(record, **changes)


def manifest(**changes: Any) -> Manifest:
    """The manifest of a run in which ten documents of two batches all got a result, with other fields."""
    found = Manifest(
        run_id="20261122T090000000Z-000001", workload="demo", workload_sha256="w" * 64, rehearsal=False,
        state="complete", reason="", reason_class="", started_at="", ended_at="", input_files=1,
        skipped_files=(), rows_in=10, rows_skipped=0, assignments=10, results=10, failures=0, retryable=0,
        batches=2, batches_committed=2, batches_committed_by_this_run=2, calls_by_this_run=10,
        results_by_route={"ask": 10}, failures_by_route={}, failure_groups=(), failed_batches=(), totals={},
        amount="0", list_amount="0", unknown_prices=0, budget_amount=None,
    )  # fmt: skip
    return replace(found, **changes)


def assignment(row: int, route: str = "ask", chain: Sequence[str] = ("mini",)) -> Assignment:
    """Row `row` on a route; its document is called after it."""
    return Assignment(row, route, "TRUE", tuple(chain), f"doc-{row}")


def answered(row: int, route: str = "ask", amount: str = "0.01", **changes: Any) -> Outcome:
    """A result that was paid."""
    outcome = Outcome(
        assignment=assignment(row, route),
        answer=f"answer to {row}",
        operation="chat",
        backend="mini",
        provider="openai",
        request_model="gpt-5-mini",
        response_model="gpt-5-mini-2026",
        response_id=f"resp-{row}",
        finish_reasons=("stop",),
        usage=Usage(100, 10, 20, 0),
        charge=Charge(money(amount), money(amount), "tokens", "exact", "book 1", "2026-11-22"),
        calls=1,
        chain_tried=("mini",),
        document_sha256="d" * 64,
        prompt_sha256="p" * 64,
        request_sha256="r" * 64,
        latency_ms=12.5,
        answered_at="2026-11-22T09:00:01.5+00:00",
    )
    return replace(outcome, **changes)


def failed(row: int, failure: FailureClass, route: str = "ask", **changes: Any) -> Outcome:
    """A failure; free and unsent unless `changes` say otherwise."""
    return replace(Outcome(assignment=assignment(row, route), failure=failure, message="why"), **changes)
