"""The flow on a real Prefect server, with a small script in the place of the worker."""

from __future__ import annotations

import gc
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from flows.groups import GroupJob
from schemas.batches import BatchReport
from schemas.errors import (
    InputError,
    MissingSecretError,
    OutputBusyError,
    StoreError,
    WorkloadError,
)
from schemas.lengths import TextLengths
from schemas.load import LoadedWorkload
from schemas.run import Manifest, RunContext
from tests.flows.conftest import make_record, make_ref
from tests.flows.fake_run import FakeRun, Watched
from tests.flows.test_review import quote_of
from transforms.batch_refs import BatchRefs
from transforms.quote.compare import store_quote
from transforms.store import open_store

pytestmark = pytest.mark.usefixtures("prefect_server")
PATIENCE_S = 60.0


@pytest.fixture
def fake(tmp_path: Path, manifest: Callable[..., Manifest]) -> FakeRun:
    return FakeRun(tmp_path, 6, manifest())


class Run:
    """One execution of the flow and all that can be seen of it."""

    def __init__(self, fake: FakeRun, flow_run_id: UUID | None = None, **parameters: Any) -> None:
        from prefect.client.orchestration import get_client
        from prefect.flow_engine import run_flow

        from flows.enrich import enrich
        from flows.parameters import EnrichParameters
        from flows.steps import Ending, Surroundings, bound

        self.watched = Watched()
        self.ending = Ending()
        steps = parameters.pop("steps", None) or fake.steps()
        form = EnrichParameters(
            **{"workload": str(fake.workload), "groups": 3, "rehearsal": True, **parameters}
        )
        with bound(Surroundings(steps, self.watched, self.ending)), get_client(sync_client=True) as client:
            flow_run = client.read_flow_run(flow_run_id) if flow_run_id else None
            self.state = run_flow(enrich, flow_run, {"parameters": form}, return_type="state")
            self.flow_run = client.read_flow_run(self.state.state_details.flow_run_id)

    def task_runs(self) -> dict[str, str]:
        """The state of every task run by name, once the server has recorded it as final."""
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        with get_client(sync_client=True) as client:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                found = client.read_task_runs(
                    flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[self.flow_run.id]))
                )
                if found and all(t.state and t.state.is_final() for t in found):
                    return {t.name: f"{t.state.name}: {t.state.message}" for t in found}
                assert time.monotonic() < deadline, "the task runs were never recorded"
                threading.Event().wait(0.1)

    def artifacts(self) -> dict[str, Any]:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

        with get_client(sync_client=True) as client:
            own = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[self.flow_run.id]))
            return {a.key: a for a in client.read_artifacts(artifact_filter=own)}


def test_a_run_in_which_all_goes_well_is_completed_with_a_sentence(fake: FakeRun) -> None:
    run = Run(fake)

    assert run.state.is_completed()
    assert run.state.message.startswith("Rehearsal: Complete: 1,190 results")
    assert sorted(len(ids) for ids in fake.starts()) == [2, 2, 2]
    assert sorted(i for ids in fake.starts() for i in ids) == [fake.batch_id(n) for n in range(6)]
    assert fake.settled == [[]]
    assert fake.locks == 0


def test_each_group_is_a_task_run_with_a_sentence_of_its_own(fake: FakeRun) -> None:
    fake.touch("broken", fake.batch_id(3))

    assert Run(fake).task_runs() == {
        "group-0000": "Completed: 2 batches committed: 0 results, 0 failures",
        "group-0001": "Failed: 1 of 2 batches failed: its pages can't be read. "
        "A retry does what is missing and nothing else: its price is not known",
        "group-0002": "Completed: 2 batches committed: 0 results, 0 failures",
    }


def test_failed_batches_end_the_flow_as_failed_after_every_group_was_waited_for(fake: FakeRun) -> None:
    fake.touch("broken", fake.batch_id(0))

    run = Run(fake, parallel_groups=1)

    assert run.state.is_failed()
    assert run.state.message == (
        "1 of 3 groups failed: Rehearsal: Incomplete: 1 batches were not finished: its pages can't be read"
    )
    assert len(fake.starts()) == 3
    assert [f.batch_id for f in fake.settled[0]] == [fake.batch_id(0)]


def test_retry_of_the_same_flow_run_does_what_is_missing_and_nothing_else(fake: FakeRun) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import AwaitingRetry

    broken = [fake.touch("broken", fake.batch_id(n)) for n in (1, 4)]
    first = Run(fake)
    assert first.state.is_failed()
    for path in broken:
        path.unlink()
    with get_client(sync_client=True) as client:  # what the UI's Retry does
        client.set_flow_run_state(first.flow_run.id, AwaitingRetry())

    again = Run(fake, flow_run_id=first.flow_run.id)

    assert again.flow_run.id == first.flow_run.id
    assert again.flow_run.run_count == 2
    assert again.state.is_completed()
    assert sorted(i for ids in fake.starts()[3:] for i in ids) == [fake.batch_id(1), fake.batch_id(4)]


def test_a_second_run_starts_no_worker_and_says_that_nothing_was_due(fake: FakeRun) -> None:
    Run(fake)
    again = Run(fake)

    assert len(fake.starts()) == 3
    assert again.state.is_completed()
    assert "Nothing was due: no call was made and no result was rewritten." in again.state.message


def test_a_worker_that_is_killed_fails_the_batches_it_has_not_spoken_of_and_those_alone(
    fake: FakeRun,
) -> None:
    fake.touch("dead", "2")

    run = Run(fake)

    assert run.state.is_failed()
    assert [f.batch_id for f in fake.settled[0]] == [fake.batch_id(4), fake.batch_id(5)]
    assert all("killed by signal SIGKILL" in f.error for f in fake.settled[0])
    assert "Group 2 is not through: it was killed by signal SIGKILL" in run.task_runs()["group-0002"]


def test_what_the_user_must_mend_ends_the_run_as_misconfigured_before_anything_starts(fake: FakeRun) -> None:
    fake.workload.write_text("name = 5")

    run = Run(fake)

    assert run.state.is_failed()
    assert run.state.name == "Misconfigured"
    assert isinstance(run.ending.error, WorkloadError)
    assert fake.starts() == []


def test_a_missing_key_stops_a_real_run_and_not_a_rehearsal(fake: FakeRun) -> None:
    fake.key = False

    assert isinstance(Run(fake, rehearsal=False).ending.error, MissingSecretError)
    assert fake.starts() == []
    assert Run(fake).state.is_completed()


def test_a_check_that_fails_leaves_the_output_untouched(fake: FakeRun) -> None:
    def check(_: Any) -> Any:
        raise InputError("input is empty")

    run = Run(fake, steps=fake.steps(check=check))

    assert run.state.message == "input is empty"
    assert not (fake.folder / "output").exists()


def test_a_configuration_error_of_every_worker_is_the_users_to_mend(fake: FakeRun) -> None:
    fake.touch("misconfigured")

    run = Run(fake)

    assert str(run.ending.error) == "no model"
    assert run.state.is_failed()
    assert "Mend that before a retry" in run.task_runs()["group-0000"]


def test_trouble_with_the_store_is_a_sentence_for_the_operator(fake: FakeRun) -> None:
    def settle(*_: Any) -> Any:
        raise StoreError("the disk is full")

    run = Run(fake, steps=fake.steps(settle=settle))

    assert run.state.is_failed()
    assert run.state.message == "The run broke off: the disk is full. A retry does what is missing"
    assert isinstance(run.ending.error, StoreError)
    assert fake.locks == 0


def test_a_form_with_mistakes_is_refused_field_by_field(fake: FakeRun) -> None:
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    from flows.enrich import enrich

    mistakes = {"workload": "", "groups": 501, "retry_classes": ["nonsense"], "unknown": 1}
    with get_client(sync_client=True) as client:  # as a deployment's run arrives: plain JSON
        flow_run = client.create_flow_run(enrich, parameters={"parameters": mistakes})
        state: Any = run_flow(enrich, client.read_flow_run(flow_run.id), return_type="state")

    assert state.is_failed()
    for field in mistakes:
        assert f"parameters.{field}" in state.message
    assert fake.starts() == []


def test_the_form_has_a_title_and_a_description_for_every_field() -> None:
    from flows.enrich import enrich
    from flows.parameters import EnrichParameters

    form = enrich.parameters.model_dump()["definitions"]["EnrichParameters"]["properties"]

    assert len(form) == len(EnrichParameters.model_fields)
    assert all(field["title"] and field["description"] for field in form.values())


def test_an_unexpected_error_is_not_swallowed(fake: FakeRun) -> None:
    def settle(*_: Any) -> Any:
        raise RuntimeError("a defect of ours")

    run = Run(fake, steps=fake.steps(settle=settle))

    assert run.state.is_failed()
    with pytest.raises(RuntimeError, match="a defect of ours"):
        run.state.result()
    assert run.ending.manifest is None


def test_an_operator_sees_batches_costs_failures_a_summary_and_progress(fake: FakeRun) -> None:
    fake.touch("broken", fake.batch_id(3))

    artifacts = Run(fake).artifacts()

    assert set(artifacts) == {
        "enrich-batches",
        "enrich-groups",
        "enrich-cost",
        "enrich-failures",
        "enrich-summary",
        "enrich-progress",
        "enrich-live",
    }
    batches = json.loads(artifacts["enrich-batches"].data)
    assert [row["state"] for row in batches] == ["failed"] + ["committed"] * 5
    assert all(list(row) == list(batches[0]) for row in batches)
    assert {row["reason"] for row in json.loads(artifacts["enrich-failures"].data)} == {"policy_rejected"}
    assert "Nothing was sent to a provider." in artifacts["enrich-summary"].data


def test_a_server_that_cannot_take_the_tables_does_not_stop_a_run(
    fake: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("the server is gone")

    for name in ("live.create_progress", "artifacts.create_table", "artifacts.create_markdown"):
        monkeypatch.setattr(f"flows.{name}_artifact", unreachable)
    monkeypatch.setattr("flows.live.create_markdown_artifact", unreachable)

    run = Run(fake)

    assert run.state.is_completed()
    assert run.artifacts() == {}


def test_the_run_is_noted_with_absolute_paths_and_its_report_stands_beside_it(fake: FakeRun) -> None:
    run = Run(fake, retry_classes=("invalid_json",))
    folder = fake.folder / "output" / "runs" / run.ending.plan.run_id

    noted = json.loads((folder / "launch.json").read_text())

    assert noted["workload"] == str(fake.workload)
    assert noted["output"] == str(fake.folder / "output")
    assert noted["rehearsal"] is True
    assert fake.retry_classes == ["invalid_json"]
    assert "<h1>Rehearsal" in (folder / "report.html").read_text()
    assert sorted(p.name for p in (folder / "logs").iterdir()) == [f"group-000{n}.log" for n in range(3)]


def test_the_watcher_hears_of_plan_progress_and_batches(fake: FakeRun) -> None:
    watched = Run(fake).watched

    assert watched.plans == [(6, True)]
    assert watched.documents == 20
    assert len(watched.lines) == 6


def test_calls_at_a_time_are_divided_among_the_processes(fake: FakeRun) -> None:
    Run(fake, parallel_groups=4)

    assert [(c.max_in_flight, c.processes, c.workers) for c in fake.contexts] == [(256 // 4, 4, 4)]


def test_workers_are_told_how_long_the_texts_are_that_the_quote_has_sampled(fake: FakeRun) -> None:
    told: list[RunContext] = []

    def quote(loaded: LoadedWorkload, run: RunContext, classes: Sequence[str]) -> None:
        made = quote_of(None)
        lengths = TextLengths.of({12: 30, 40: 30}, 60, 600)
        route = replace(made.routes[0], kind="embed", backends=("emb",), lengths=lengths)
        store_quote(open_store(run.output), run.run_id, replace(made, routes=(route,)))

    def settle(loaded: LoadedWorkload, run: RunContext, *rest: Any) -> Manifest:
        told.append(run)
        return fake.steps().settle(loaded, run, *rest)

    def arguments(job: GroupJob) -> tuple[str, ...]:
        told.append(RunContext(**json.loads(Path(job.context).read_text())))
        return fake.steps().arguments(job)

    for _ in range(2):  # a resume too
        Run(fake, steps=fake.steps(quote=quote, settle=settle, arguments=arguments), groups=1)
        fake.batches += 1
    histogram = {"emb": {"counts": [[12, 30], [40, 30]], "sampled": 60, "documents": 600}}
    assert [run.lengths for run in told] == [histogram] * 4


def test_a_run_over_a_local_folder_keeps_no_file_elsewhere_so_that_kill_9_leaves_none(
    fake: FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    seen: list[list[str]] = []
    arguments = fake.steps().arguments

    def started(job: GroupJob) -> tuple[str, ...]:
        seen.append(sorted(path.name for path in temporary.iterdir()))
        assert (
            Path(job.context).parent == Path(job.log).parents[1] == fake.folder / "output/runs" / job.run_id
        )
        return arguments(job)

    assert Run(fake, steps=fake.steps(arguments=started)).state.is_completed()
    assert seen
    assert not any(name.startswith("switchgear-") for names in seen for name in names)


def test_there_are_never_more_groups_than_batches(fake: FakeRun) -> None:
    Run(fake, groups=50)

    assert len(fake.starts()) == 6


def test_results_of_task_runs_are_not_kept_anywhere(fake: FakeRun) -> None:
    from flows.enrich import enrich
    from flows.group_tasks import work_on_group_task

    assert enrich.persist_result is False
    assert work_on_group_task.persist_result is False


class InterruptingWatcher(Watched):
    """Sends its own process a signal as soon as a worker is at work."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def progressed(self, progress: Any) -> None:
        os.kill(os.getpid(), self._number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_the_flow_stops_its_workers(number: int, fake: FakeRun) -> None:
    from prefect.exceptions import TerminationSignal

    from flows.enrich import enrich
    from flows.parameters import EnrichParameters
    from flows.steps import Surroundings, bound

    fake.touch("hang")
    form = EnrichParameters(workload=str(fake.workload), groups=1, rehearsal=True)

    def interrupted() -> None:
        with bound(Surroundings(fake.steps(), InterruptingWatcher(number))):
            enrich(form, return_state=True)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # Prefect sends it on when it is done with it
    gc.disable()  # an interruption that strikes in a callback of the collector (JAX has one) is lost
    try:
        with pytest.raises((KeyboardInterrupt, TerminationSignal)):
            interrupted()
    finally:
        gc.enable()
        signal.signal(signal.SIGTERM, before)

    assert len(fake.pids()) == 1
    for pid in fake.pids():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    (failed,) = fake.settled  # so that the output says what is left
    assert [f.batch_id for f in failed] == [fake.batch_id(n) for n in range(6)]
    assert {f.error for f in failed} == {"it was stopped before it was through"}
    assert fake.locks == 0


def test_of_two_people_who_press_retry_one_is_told_that_a_run_is_at_work(fake: FakeRun) -> None:
    def busy(*_: Any) -> Any:
        raise OutputBusyError("another run is at work on /out. Wait for it to end")

    run = Run(fake, steps=fake.steps(open_output=busy))

    assert run.state.is_failed()
    assert run.state.name == "OutputBusy"
    assert run.state.message == "another run is at work on /out. Wait for it to end"
    assert fake.starts() == []


def test_a_scheduled_run_that_finds_its_output_at_work_is_skipped_and_not_failed(fake: FakeRun) -> None:
    from datetime import timedelta

    from prefect.client.orchestration import get_client
    from prefect.client.schemas.schedules import IntervalSchedule
    from prefect.flow_engine import run_flow
    from prefect.states import Pending

    from flows.deployments import ENRICH, Preset, apply_deployment, apply_pool
    from flows.enrich import enrich
    from flows.steps import Surroundings, bound

    def busy(*_: Any) -> Any:
        raise OutputBusyError("another run is at work on /out")

    preset = Preset(
        {"workload": str(fake.workload), "rehearsal": True}, IntervalSchedule(interval=timedelta(hours=1))
    )
    with get_client(sync_client=True) as client:
        apply_pool(client, "scheduled", None, None)
        own = replace(ENRICH, name="hourly")
        deployment = apply_deployment(client, own, "scheduled", preset)
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json={})
        (found, *_) = [r for r in client.read_flow_runs() if r.deployment_id == deployment]
        client.set_flow_run_state(found.id, Pending(), force=True)  # a worker has taken it up
        scheduled = client.read_flow_run(found.id)
        with bound(Surroundings(fake.steps(open_output=busy))):
            state: Any = run_flow(enrich, scheduled, scheduled.parameters, return_type="state")

    assert scheduled.auto_scheduled
    assert state.is_completed()
    assert state.name == "Skipped"
    assert "That run, or the next, does what was due" in state.message


def test_a_group_with_documents_left_for_a_retry_is_failed_and_says_what_that_costs() -> None:
    from flows.batch_lines import batch_line
    from flows.groups import GroupOutcome, priced
    from flows.worker import WorkerEnd

    ref = make_ref(0)
    record = make_record(
        ref, results=6, failures=4, retryable=3, failures_by_class={"overloaded": 3, "refused": 1}
    )
    line = batch_line(0, BatchReport(ref.batch_id, 1, "committed", record=record))
    outcome = priced(GroupOutcome(0, (line,), (), WorkerEnd(0)), BatchRefs.of([ref]), Decimal("0.02"))

    assert not outcome.is_good
    assert outcome.sentence() == (
        "3 of 10 documents have no answer (overloaded: the provider was overloaded (529, 503)). What to do: "
        "run again later. A retry does what is missing and nothing else: at most about $0.06"
    )


def test_documents_that_wait_for_a_providers_batch_or_are_final_failures_fail_no_group() -> None:
    from flows.batch_lines import batch_line
    from flows.groups import GroupOutcome
    from flows.worker import WorkerEnd

    ref = make_ref(0)
    record = make_record(ref, failures_by_class={"awaiting_batch": 3, "refused": 1})
    line = batch_line(0, BatchReport(ref.batch_id, 1, "committed", record=record))

    assert GroupOutcome(0, (line,), (), WorkerEnd(0)).is_good


def test_at_the_cap_a_retry_helps_only_with_a_higher_one() -> None:
    from flows.batch_lines import batch_line
    from flows.groups import GroupOutcome, priced
    from flows.worker import WorkerEnd

    ref = make_ref(0)
    record = make_record(ref, failures_by_class={"budget_exhausted": 3})
    line = batch_line(0, BatchReport(ref.batch_id, 1, "committed", record=record))
    outcome = priced(GroupOutcome(0, (line,), (), WorkerEnd(0)), BatchRefs.of([ref]), Decimal("0.02"))

    assert outcome.sentence().endswith("A retry helps only with a higher cap")
