import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from schemas.batches import BatchRef, BatchReport
from schemas.errors import ReconcileError
from schemas.failures import FailureClass
from schemas.outcomes import Outcome
from schemas.run import FailedBatch, Manifest
from tests.support.batches import part_writer, staged, work_batch
from tests.support.records import AMBIGUOUS, REF, answered, failed, run_context
from tests.support.workloads import load
from transforms.batch_refs import BatchRefs
from transforms.commit import commit
from transforms.output import read_manifest
from transforms.plan import Plan
from transforms.previous import load_previous
from transforms.settle import settle_run
from transforms.store import LocalStore, sweep_temporaries

START = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
END = datetime(2026, 11, 22, 9, 5, tzinfo=UTC)
SECOND_REF = replace(REF, batch_id="c" * 32, first_row=200)


class Bench:
    """An output with some committed batches, about to be settled."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.loaded = load(folder, **changes)
        self.store = LocalStore(self.loaded.output_uri)
        self.run = run_context(self.store.root)

    def commit(self, ref: BatchRef, outcomes: Sequence[Outcome], **changes: Any) -> None:
        writer = part_writer(self.loaded.workload, self.run, self.store)
        commit(self.store, staged(writer, work_batch(ref, list(outcomes), **changes)))

    def settle(self, refs: Sequence[BatchRef] = (), failed: Sequence[BatchReport] = ()) -> Manifest:
        plan = Plan(self.run.run_id, BatchRefs.of(refs), 0, 4, 3, 0, 1, ("x.parquet: broken",), "plan")
        return settle_run(self.loaded, self.run, plan, failed, START, now=END)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_run_without_anything_left_is_complete(bench: Bench) -> None:
    bench.commit(REF, [answered(100), failed(101, FailureClass.NULL_TEXT)], ambiguous=[AMBIGUOUS])
    manifest = bench.settle([REF])
    assert (manifest.state, manifest.reason_class) == ("complete", "")
    assert manifest.reason == "every document is a result or a final failure"
    assert (manifest.results, manifest.failures, manifest.retryable, manifest.assignments) == (1, 1, 0, 2)
    assert (manifest.amount, manifest.list_amount) == ("0.010000000000", "0.010000000000")
    assert manifest.ambiguous == (AMBIGUOUS,)
    assert manifest.skipped_files == ("x.parquet: broken",)
    assert manifest.started_at == START.isoformat()
    assert manifest.ended_at == END.isoformat()


def test_the_manifest_is_found_and_comes_back(bench: Bench) -> None:
    bench.commit(REF, [answered(100)])
    manifest = bench.settle([REF])
    assert read_manifest(bench.store.root) == manifest
    assert read_manifest(bench.store.root, manifest.run_id) == manifest
    assert read_manifest(bench.store.root, "other") is None


def test_documents_that_can_be_tried_again_make_a_run_incomplete(bench: Bench) -> None:
    outcomes = [failed(r, FailureClass.TIMEOUT) for r in (100, 101)]
    bench.commit(REF, [*outcomes, failed(102, FailureClass.CONNECTION), failed(103, FailureClass.REFUSED)])
    manifest = bench.settle([REF])
    assert (manifest.state, manifest.reason_class, manifest.retryable) == ("incomplete", "failures", 3)
    assert manifest.reason.startswith("3 documents can be tried again (mostly timeout: ")
    assert manifest.reason.endswith("Run again to do just those")


def test_a_reason_that_all_share_is_not_said_to_be_that_of_most(bench: Bench) -> None:
    bench.commit(
        REF, [failed(100, FailureClass.TIMEOUT), *(failed(r, FailureClass.REFUSED) for r in (101, 102, 103))]
    )
    assert bench.settle([REF]).reason.startswith("1 document can be tried again (timeout: ")


def test_failures_are_grouped_most_frequent_first_with_a_few_ids(bench: Bench) -> None:
    many = replace(REF, row_count=8)
    outcomes = [failed(100 + i, FailureClass.TIMEOUT, message=f"no answer {i}") for i in range(7)]
    bench.commit(many, [*outcomes, failed(107, FailureClass.REFUSED)])
    timeouts, refused = bench.settle([many]).failure_groups
    assert (timeouts.error_class, timeouts.count, timeouts.retryable) == ("timeout", 7, True)
    assert timeouts.example_ids == tuple(f"doc-{100 + i}" for i in range(5))
    assert timeouts.example_message == "no answer 0"
    assert (refused.error_class, refused.count, refused.retryable) == ("refused", 1, False)


def test_a_document_without_id_is_an_example_too(bench: Bench) -> None:
    nameless = failed(100, FailureClass.NULL_ID, "")
    bench.commit(REF, [replace(nameless, assignment=replace(nameless.assignment, document_id=None))])
    assert bench.settle([REF]).failure_groups[0].example_ids == ("(no id)",)


def test_a_budget_that_was_used_up_is_the_reason(tmp_path: Path) -> None:
    bench = Bench(tmp_path, budget__amount="1.50")
    bench.commit(
        REF, [answered(100), failed(101, FailureClass.BUDGET_EXHAUSTED), failed(102, FailureClass.TIMEOUT)]
    )
    manifest = bench.settle([REF])
    assert (manifest.reason_class, manifest.budget_amount) == ("budget", "1.50")
    assert manifest.reason == (
        "the budget of 1.50 USD was used up: 1 document left. "
        "Raise budget.amount and run again to go on from here"
    )


def test_a_batch_that_failed_is_the_reason_with_its_sentence(bench: Bench) -> None:
    bench.commit(REF, [answered(100), failed(101, FailureClass.TIMEOUT)])
    report = BatchReport(SECOND_REF.batch_id, 1, "failed", "/in/a.parquet, row group 0: can't be read")
    manifest = bench.settle([REF, SECOND_REF], [report])
    assert (manifest.state, manifest.reason_class) == ("incomplete", "batches")
    assert manifest.reason == (
        "1 batch was not finished: /in/a.parquet, row group 0: can't be read. "
        "1 document can be tried again. Run again to do what is missing"
    )
    (batch,) = manifest.failed_batches
    assert (batch.batch_id, batch.first_row, batch.error) == (SECOND_REF.batch_id, 200, report.error)


def test_a_batch_whose_worker_died_is_missed(bench: Bench) -> None:
    bench.commit(REF, [answered(100)])
    manifest = bench.settle([REF, SECOND_REF])
    assert [b.error for b in manifest.failed_batches] == ["its worker ended before it was done"]


def test_a_manifest_names_a_thousand_batches_at_most_and_says_where_all_stand(bench: Bench) -> None:
    refs = [replace(REF, batch_id=f"{n:032x}", first_row=10 * n) for n in range(1003)]
    bench.commit(refs[5], [answered(50)])
    left = [ref for ref in refs if ref != refs[5]]
    report = BatchReport(refs[1002].batch_id, 1, "failed", "its pages can't be read")
    manifest = bench.settle(refs, [report])
    assert manifest.reason.startswith("1002 batches were not finished: its worker ended before it was done.")
    assert [b.batch_id for b in manifest.failed_batches] == [ref.batch_id for ref in left[:1000]]
    file = f"runs/{bench.run.run_id}/failed_batches.parquet"
    assert (manifest.failed_batches_count, manifest.failed_batches_file) == (1002, file)
    rows = pq.read_table(bench.store.open(file)).to_pylist()
    errors = ["its worker ended before it was done"] * 1001 + [report.error]
    assert [FailedBatch(**row) for row in rows] == [
        FailedBatch(ref.batch_id, ref.uri, ref.row_group, ref.first_row, ref.row_count, error)
        for ref, error in zip(left, errors, strict=True)
    ]
    assert list(bench.store.list("_staging")) == []


def test_a_further_attempt_whose_worker_died_is_missed(bench: Bench) -> None:
    bench.commit(REF, [answered(100), failed(101, FailureClass.REFUSED)])
    again = replace(REF, attempt=2, previous_attempt=1, retry_classes=("refused",))
    manifest = bench.settle([again])
    assert (manifest.state, manifest.reason_class) == ("incomplete", "batches")


def test_a_batch_that_was_committed_although_its_worker_said_it_failed_is_done(bench: Bench) -> None:
    """A disk that fails right after the record was linked: the record is the truth."""
    bench.commit(REF, [answered(100)])
    manifest = bench.settle([REF], [BatchReport(REF.batch_id, 1, "failed", "disk trouble")])
    assert (manifest.state, manifest.failed_batches) == ("complete", ())


def test_settling_publishes_what_a_killed_worker_had_committed(bench: Bench) -> None:
    writer = part_writer(bench.loaded.workload, bench.run, bench.store)
    draft = staged(writer, work_batch(REF, [answered(100)]))
    bench.store.create(f"commits/{REF.batch_id}.0001.json", draft.to_bytes())
    assert bench.settle([REF]).results == 1
    assert bench.store.exists(draft.record.parts[0].final)


def test_two_attempts_settle_to_one_sum(bench: Bench) -> None:
    bench.commit(REF, [answered(100), answered(101, failure=FailureClass.TIMEOUT, amount="0.02")])
    again = replace(REF, attempt=2, previous_attempt=1)
    previous = load_previous(bench.store, again)
    assert previous is not None
    bench.commit(again, [answered(101, amount="0.04")], carried=previous.carried, prior=previous.retry)
    manifest = bench.settle([again])
    assert (manifest.state, manifest.results, manifest.failures) == ("complete", 2, 0)
    assert (manifest.amount, manifest.batches_committed) == ("0.070000000000", 1)
    assert manifest.totals["ask"]["mini"].documents == 3


def test_records_that_do_not_agree_leave_no_manifest(bench: Bench) -> None:
    bench.commit(REF, [answered(100)])
    path = f"commits/{REF.batch_id}.0001.json"
    broken = {**json.loads(bench.store.read(path)), "assignments": 0, "rows_in": 5}
    bench.store.delete(path)
    bench.store.create(path, json.dumps(broken).encode())
    with pytest.raises(ReconcileError):
        bench.settle([REF])
    assert read_manifest(bench.store.root) is None


def test_a_run_over_nothing_is_complete(bench: Bench) -> None:
    manifest = bench.settle()
    assert (manifest.state, manifest.results, manifest.amount) == ("complete", 0, "0.000000000000")


def test_what_crashed_writers_left_half_is_swept_and_nothing_else(bench: Bench) -> None:
    left = [".0001.json.0123456789abcdef", "deep/.x.json.fedcba9876543210"]
    others = [".record.json.lock", ".hidden", "x.json.0123456789abcdef", ".y.json.0123"]
    for folder in ("commits", "runs/r", "budget", "provider_batches/tickets/b"):
        for name in left + others:
            path = Path(bench.store.root, folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    results = Path(bench.store.root, "results", left[0])
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_bytes(b"")
    sweep_temporaries(bench.store.root, ("commits", "runs", "budget", "provider_batches"))
    there = {path.name for path in Path(bench.store.root).rglob("*") if path.is_file() and path != results}
    assert there == set(others)
    assert results.exists(), "nothing is created there in one step"


def test_a_run_that_ends_sweeps(bench: Bench) -> None:
    path = Path(bench.store.root, "commits/.0001.json.0123456789abcdef")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    bench.settle()
    assert not path.exists()


def test_what_a_run_was_to_leave_alone_keeps_it_incomplete(bench: Bench) -> None:
    bench.commit(REF, [answered(100)])
    plan = Plan(bench.run.run_id, BatchRefs.of([REF]), 1, 2, 2, 0, 1, (), "plan", batches_left_out=1)

    manifest = settle_run(bench.loaded, bench.run, plan, [], START, now=END)

    assert (manifest.state, manifest.reason_class) == ("incomplete", "batches")
    assert manifest.reason.startswith("1 batch still to do: this run was told to leave the rest alone.")


def test_who_decided_what_and_why_stands_in_the_manifest_and_comes_back(bench: Bench) -> None:
    approval = {"decision": "skip ask", "what": "a quote", "by": "Mara", "reason": "dear", "up_to": ""}
    bench.run = replace(bench.run, approvals=(approval,), skip_routes=("ask",))
    bench.commit(REF, [failed(100, FailureClass.BUDGET_EXHAUSTED)])

    manifest = bench.settle([REF])

    assert manifest.approvals == (approval,)
    assert manifest.reason.endswith("Skipped in this run, as decided: ask")
    assert read_manifest(bench.store.root) == manifest
