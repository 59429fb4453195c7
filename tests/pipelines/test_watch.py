import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.watch import Watched, run_stages
from schemas.batches import BackendTotals, BatchRef, BatchReport
from tests.support.records import REF, commit_record
from transforms.layout import commit_path, report_path
from transforms.store import LocalStore

RUN = "run-1"


class Said:
    """What was emitted, and the store that is watched."""

    def __init__(self, folder: Path, refs: list[BatchRef], rehearsal: bool = False) -> None:
        self.store = LocalStore(str(folder))
        self.events: list[dict[str, Any]] = []
        self.watched = Watched(self.store, RUN, 3, refs, self.events.append, rehearsal)

    def commit(self, ref: BatchRef, run_id: str = RUN) -> None:
        totals = {"ask": {"mini": BackendTotals(calls=5, amount="0.5", list_amount="0.75")}}
        record = commit_record(
            batch_id=ref.batch_id, attempt=ref.attempt, run_id=run_id, totals=totals, rows_in=10
        )
        assert self.store.create(commit_path(ref.batch_id, ref.attempt), record.to_json())

    @property
    def batches(self) -> list[tuple[str, str, str]]:
        found = [BatchReport.from_dict(e["report"]) for e in self.events if e["event"] == "batch"]
        return [(report.batch_id, report.state, report.error) for report in found]

    @property
    def progress(self) -> dict[str, Any]:
        return [e for e in self.events if e["event"] == "progress"][-1]


def refs(count: int) -> list[BatchRef]:
    return [replace(REF, batch_id=f"{number:032x}", attempt=2) for number in range(count)]


def test_a_batch_is_told_of_once_when_its_commit_is_there(tmp_path: Path) -> None:
    first, second = refs(2)
    said = Said(tmp_path, [first, second])
    said.watched.look()
    assert said.batches == []
    said.commit(first)
    said.watched.look()
    said.watched.look()
    assert said.batches == [(first.batch_id, "committed", "")]
    assert said.progress == {
        "event": "progress",
        "group": 3,
        "documents": 10,
        "batches": 1,
        "calls": 5,
        "amount": "0.5",
        "soft_passed": False,
    }


def test_what_another_run_committed_is_said_to_have_been_there(tmp_path: Path) -> None:
    (ref,) = refs(1)
    said = Said(tmp_path, [ref], rehearsal=True)
    said.commit(ref, "another")
    said.watched.finish()
    assert said.batches == [(ref.batch_id, "already_committed", "")]
    assert said.progress["amount"] == "0.75"


def test_a_batch_that_failed_and_was_then_committed_is_committed(tmp_path: Path) -> None:
    (ref,) = refs(1)
    said = Said(tmp_path, [ref])
    said.store.create(report_path(RUN, ref.batch_id, ref.attempt), b"never looked at")
    said.commit(ref)
    said.watched.finish()
    assert [state for _, state, _ in said.batches] == ["committed"]


def test_what_a_worker_left_of_a_failed_batch_is_told_at_the_end(tmp_path: Path) -> None:
    failed, unspoken_of = refs(2)
    said = Said(tmp_path, [failed, unspoken_of])
    report = BatchReport(failed.batch_id, failed.attempt, "failed", "the file is gone")
    said.store.create(report_path(RUN, failed.batch_id, 2), json.dumps(report.to_dict()).encode())
    said.watched.look()
    assert said.batches == []
    said.watched.finish()
    assert said.batches == [(failed.batch_id, "failed", "the file is gone")]


def test_one_look_asks_the_store_about_a_bounded_number_of_batches_and_comes_round(tmp_path: Path) -> None:
    many = refs(600)
    said = Said(tmp_path, many)
    said.commit(many[599])
    said.watched.look()
    said.watched.look()
    assert said.batches == []
    said.watched.look()
    assert [batch for batch, _, _ in said.batches] == [many[599].batch_id]


def test_a_stage_gets_what_those_before_it_have_not_committed(tmp_path: Path) -> None:
    asked, mixed, embedded = refs(3)
    said = Said(tmp_path, [asked, mixed, embedded])
    given: dict[str, list[BatchRef]] = {}

    def work(stage: str, out: Sequence[BatchRef]) -> None:
        given[stage] = list(out)
        for ref in [asked] if stage == "plain workers" else out:
            said.commit(ref)

    run_stages(["plain workers", "workers with chips"], said.watched, work)
    assert given == {"plain workers": [asked, mixed, embedded], "workers with chips": [mixed, embedded]}
    assert sorted(said.batches) == sorted((ref.batch_id, "committed", "") for ref in (asked, mixed, embedded))
    assert said.progress["batches"] == 3
    counts = [e["batches"] for e in said.events if e["event"] == "progress"]
    assert counts == sorted(counts), "progress never goes back"


def test_a_stage_without_anything_to_do_is_not_begun(tmp_path: Path) -> None:
    said = Said(tmp_path, refs(2))
    begun: list[str] = []

    def work(stage: str, out: Sequence[BatchRef]) -> None:
        begun.append(stage)
        for ref in out:
            said.commit(ref)

    run_stages(["plain workers", "workers with chips"], said.watched, work)
    assert begun == ["plain workers"]


def test_what_failed_in_one_stage_and_was_committed_by_the_next_is_told_as_committed(tmp_path: Path) -> None:
    (ref,) = refs(1)
    said = Said(tmp_path, [ref])
    report = BatchReport(ref.batch_id, ref.attempt, "failed", "the file is gone")
    said.store.create(report_path(RUN, ref.batch_id, 2), json.dumps(report.to_dict()).encode())

    def work(stage: str, out: Sequence[BatchRef]) -> None:
        if stage == "second":
            said.commit(ref)

    run_stages(["first", "second"], said.watched, work)
    assert [state for _, state, _ in said.batches] == ["committed"]


def test_a_stage_that_breaks_ends_the_work_and_what_was_left_is_told(tmp_path: Path) -> None:
    (failed,) = refs(1)
    said = Said(tmp_path, [failed])
    report = BatchReport(failed.batch_id, failed.attempt, "failed", "the file is gone")

    def work(stage: str, out: Sequence[BatchRef]) -> None:
        assert stage == "first"
        said.store.create(report_path(RUN, failed.batch_id, 2), json.dumps(report.to_dict()).encode())
        raise RuntimeError("the job has failed")

    with pytest.raises(RuntimeError, match="the job has failed"):
        run_stages(["first", "second"], said.watched, work)
    assert said.batches == [(failed.batch_id, "failed", "the file is gone")]
