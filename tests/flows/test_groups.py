"""Groups: how many, what a worker is told, what became of its batches."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.batch_lines import BatchLine, batch_line
from flows.groups import (
    MAX_GROUPS,
    Crew,
    GroupJob,
    GroupOutcome,
    default_groups,
    failed_reports,
    priced,
    work_on_group,
    worker_arguments,
    write_context,
)
from flows.worker import WorkerCommand, WorkerEnd
from schemas.batches import BackendTotals, BatchRef, BatchReport, CommitRecord
from schemas.run import Progress, RunContext
from transforms.batch_refs import BatchRefs

Ref = Callable[..., BatchRef]
Record = Callable[..., CommitRecord]
Script = Callable[[str], Path]


def job(tmp_path: Path, **changes: object) -> GroupJob:
    values: dict[str, object] = {
        "group": 3,
        "groups": 12,
        "run_id": "r1",
        "workload": "/w/docs.toml",
        "plan": "runs/r1/plan.parquet",
        "context": "/tmp/r1.json",
        "log": str(tmp_path / "logs" / "group-0003.log"),
        "lock": None,
    }
    return GroupJob(**{**values, **changes})  # type: ignore[arg-type]


def line(state: str = "committed", batch: str = "b" * 32) -> BatchLine:
    return BatchLine(0, batch, 1, state, 10, 9, 1, 0, "0.1", "/in/a.parquet", "")


@given(st.integers(1, 2_000_000), st.integers(1, 64))
def test_groups_are_never_more_than_the_server_records_nor_than_there_are_batches(
    batches: int, parallel: int
) -> None:
    groups = default_groups(batches, parallel)

    assert 1 <= groups <= min(batches, MAX_GROUPS)
    assert groups >= min(parallel, batches)


def test_a_small_run_is_one_group_and_a_large_one_many() -> None:
    assert [default_groups(n, 1) for n in (1, 128, 129, 1280, 100_000)] == [1, 1, 2, 10, 200]


@given(st.integers(1, 2_000_000), st.integers(1, 64))
def test_every_process_gets_as_many_groups_so_that_none_stands_idle_at_the_end(
    batches: int, parallel: int
) -> None:
    groups = default_groups(batches, parallel)

    assert groups % parallel == 0 or groups == batches < parallel


def test_the_command_line_of_a_worker_names_its_group_and_ends_with_the_flags_for_beam(
    tmp_path: Path,
) -> None:
    arguments = worker_arguments(job(tmp_path, runner_flags=("--runner=X", "--y")))

    assert arguments[:4] == (sys.executable, "-P", "-m", "pipelines.enrich")
    assert {"--group=3", "--groups=12", "--workload=/w/docs.toml"} < set(arguments)
    assert arguments[-3:] == ("--", "--runner=X", "--y")
    assert "--" not in worker_arguments(job(tmp_path))


def test_the_context_file_is_read_back_as_the_same_context(tmp_path: Path) -> None:
    context = RunContext("r1", "/out", "a" * 64, True, 32)

    path = write_context(context, tmp_path)

    assert RunContext(**json.loads(path.read_text())) == context


def test_a_group_gathers_what_its_worker_says(
    script: Script, tmp_path: Path, ref: Ref, record: Record
) -> None:
    good = BatchReport(ref(1).batch_id, 1, "committed", record=record(ref(1)))
    bad = BatchReport(ref(2).batch_id, 1, "failed", error="its pages can't be read")
    events = [
        {"event": "progress", "group": 3, "documents": 5, "batches": 0, "calls": 4, "amount": "0.5"},
        {"event": "batch", "report": good.to_dict()},
        {"event": "batch", "report": bad.to_dict()},
        {"event": "something new"},
        {"event": "done"},
    ]
    path = script(f"import json\nfor e in json.loads({json.dumps(json.dumps(events))}): print(json.dumps(e))")
    progress: list[Progress] = []
    lines: list[BatchLine] = []
    committed: list[CommitRecord] = []

    arguments = [sys.executable, str(path)]
    outcome = work_on_group(job(tmp_path), arguments, Crew(), progress.append, lines.append, committed.append)

    assert committed == [good.record]
    assert progress == [Progress(3, 5, 0, 4, "0.5")]
    assert list(outcome.lines) == lines
    assert [(x.batch_id, x.state, x.results, x.amount) for x in lines] == [
        (ref(1).batch_id, "committed", 10, "0.25"),
        (ref(2).batch_id, "failed", 0, "0"),
    ]
    assert list(outcome.failed) == [bad]
    assert not outcome.is_good


def test_a_batch_that_is_spoken_of_again_counts_once_and_a_commit_outweighs_a_failure(
    script: Script, tmp_path: Path, ref: Ref, record: Record
) -> None:
    failed = [BatchReport(ref(n).batch_id, 1, "failed", error="reset") for n in range(3)]
    events = [
        *[{"event": "batch", "report": report.to_dict()} for report in failed],
        {
            "event": "batch",
            "report": BatchReport(ref(1).batch_id, 1, "committed", record=record(ref(1))).to_dict(),
        },
        {"event": "batch", "report": BatchReport(ref(1).batch_id, 1, "already_committed").to_dict()},
        {"event": "batch", "report": failed[1].to_dict()},
        {"event": "done"},
    ]
    path = script(f"import json\nfor e in json.loads({json.dumps(json.dumps(events))}): print(json.dumps(e))")
    lines: list[BatchLine] = []

    outcome = work_on_group(job(tmp_path), [sys.executable, str(path)], Crew(), lambda _: None, lines.append)

    assert len(lines) == 3
    assert [x.state for x in outcome.lines] == ["failed", "committed", "failed"]
    assert list(outcome.failed) == [failed[0], failed[2]]


def test_the_worker_finds_the_same_code_wherever_it_is_started(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text("raise RuntimeError('the wrong code')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    path = script("import flows, sys\nassert '/somewhere/else' in sys.path\nprint('{\"event\":\"done\"}')")

    outcome = work_on_group(
        job(tmp_path),
        [sys.executable, "-P", "-c", f"exec(open({str(path)!r}).read())"],
        Crew(),
        lambda _: None,
        lambda _: None,
    )

    assert outcome.end == WorkerEnd(0)


def test_after_stop_no_worker_of_the_crew_starts(script: Script, tmp_path: Path) -> None:
    marker = tmp_path / "started"
    path = script(f"open({str(marker)!r}, 'w')")
    crew = Crew()

    crew.stop()
    end = crew.run(WorkerCommand((sys.executable, str(path)), tmp_path / "log"), lambda _: None)

    assert end.stopped
    assert not marker.exists()


def test_stopping_the_crew_ends_all_its_workers(script: Script, tmp_path: Path) -> None:
    path = script('import time\nprint(\'{"event":"batch"}\', flush=True)\ntime.sleep(300)')
    crew = Crew()
    started = threading.Semaphore(0)
    ends: list[WorkerEnd] = []

    def work(number: int) -> None:
        command = WorkerCommand((sys.executable, str(path)), tmp_path / f"log{number}")
        ends.append(crew.run(command, lambda _: started.release()))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert started.acquire(timeout=120)
    crew.stop(grace_s=10)
    for thread in threads:
        thread.join(120)

    assert [end.stopped for end in ends] == [True, True, True]


def test_batches_that_a_broken_worker_never_spoke_of_are_failed_with_its_error(ref: Ref) -> None:
    refs = [ref(n) for n in range(6)]
    first = GroupOutcome(0, (line(batch=refs[0].batch_id),), (), WorkerEnd(-9, "it was killed"))
    second = GroupOutcome(1, tuple(line(batch=r.batch_id) for r in refs[3:]), (), WorkerEnd(0))

    found = failed_reports([first, second], BatchRefs.of(refs), 2)

    assert [(f.batch_id, f.state, f.error) for f in found] == [
        (refs[1].batch_id, "failed", "it was killed"),
        (refs[2].batch_id, "failed", "it was killed"),
    ]


def test_a_worker_that_ends_well_but_forgets_a_batch_is_not_believed(ref: Ref) -> None:
    refs = [ref(0)]

    assert failed_reports([GroupOutcome(0, (), (), WorkerEnd(0))], BatchRefs.of(refs), 1)[0].error == (
        "its worker ended without a word about it"
    )


def test_a_group_whose_worker_forgot_a_batch_has_failed_and_says_what_a_retry_costs(ref: Ref) -> None:
    refs = [ref(n) for n in range(3)]
    outcome = GroupOutcome(0, tuple(line(batch=r.batch_id) for r in refs[:2]), (), WorkerEnd(0))

    assert priced(outcome, BatchRefs.of(refs[:2]), Decimal("0.01")).is_good
    found = priced(outcome, BatchRefs.of(refs), Decimal("0.01"))
    assert not found.is_good
    assert found.sentence() == (
        "1 of 3 batches not finished: its worker ended without a word about it. A retry does what is missing "
        "and nothing else: at most about $0.1"
    )


def test_what_a_worker_reported_as_failed_is_passed_on_as_it_is(ref: Ref) -> None:
    report = BatchReport(ref(0).batch_id, 2, "failed", "another worker is on it")
    outcome = GroupOutcome(0, (batch_line(0, report),), (report,), WorkerEnd(0))

    assert list(failed_reports([outcome], BatchRefs.of([ref(0)]), 1)) == [report]


@pytest.mark.parametrize(
    ("state", "failed"),
    [("committed", False), ("already_committed", False), ("failed", True)],
)
def test_only_a_committed_batch_is_done(state: str, failed: bool) -> None:
    assert line(state).is_failed is failed


def test_an_unknown_price_makes_the_batchs_amount_unknown(ref: Ref, record: Record) -> None:
    totals = {"r": {"a": BackendTotals(amount="0.5"), "b": BackendTotals(unknown=2)}}
    report = BatchReport(ref(0).batch_id, 1, "committed", record=record(ref(0), totals=totals))

    assert batch_line(0, report).amount is None


def test_a_good_group_says_what_it_did() -> None:
    outcome = GroupOutcome(0, (line(), line()), (), WorkerEnd(0))

    assert outcome.is_good
    assert outcome.sentence() == "2 batches committed: 18 results, 2 failures"


def test_a_failed_group_says_whether_a_retry_can_help() -> None:
    broken = GroupOutcome(4, (), (), WorkerEnd(1, "it ended with exit code 1"))
    misconfigured = GroupOutcome(4, (), (), WorkerEnd(2, "no model in /m", configuration=True))

    assert broken.sentence() == (
        "Group 4 is not through: it ended with exit code 1. A retry does what is missing and nothing else: "
        "its price is not known"
    )
    assert misconfigured.sentence() == "Group 4 is not through: no model in /m. Mend that before a retry"


def test_what_workers_are_told_is_whole_whenever_it_is_read(tmp_path: Path) -> None:
    run = RunContext("20261122T091500Z-1f3a9c", "/out" * 20_000, "w" * 64, True, 8)
    path, stop, found = write_context(run, tmp_path), threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            found.add(len(path.read_bytes()))

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda _: write_context(run, tmp_path), range(400)))
    stop.set()
    reader.join()

    assert found == {path.stat().st_size}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
