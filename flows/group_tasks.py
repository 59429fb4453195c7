"""A run's groups: each is a task run that starts a worker process and waits for it."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.batch_lines import BatchLine
from flows.groups import Crew, GroupOutcome, priced, work_on_group
from flows.live import LiveView
from flows.planning import PlannedRun
from flows.steps import CommitNotes, Surroundings
from flows.words import batches as batches_text
from flows.words import count
from flows.worker import WorkerEnd
from schemas.run import Progress

_LOOK_EVERY_S = 5.0
_Future = PrefectConcurrentFuture[Any]


def work_on_groups(run: PlannedRun, around: Surroundings) -> tuple[list[GroupOutcome], BaseException | None]:
    """All groups, a few at a time, each a task run; waits for every one of them, whatever fails.

    Cancel and Ctrl-C stop the workers: they send nothing more, settle what is in flight and commit what is
    whole. What became of the groups is returned then too, with the interruption, which is to be raised.
    """
    crew = Crew()
    get_run_logger().info(
        f"{batches_text(len(run.plan.refs))} go out in {count(run.groups, 'group')}, {run.parallel} at a time"
    )
    view = LiveView(run.plan, run.context.rehearsal, run.notices)
    notes = around.steps.note_commits(run.context)
    work = _Work(run, around, crew, view, notes)
    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=run.parallel)
    futures: list[_Future] = []
    interruption: BaseException | None = None
    with runner:
        try:
            for group in range(run.groups):
                futures.append(runner.submit(work_on_group_task, parameters={"group": group, "work": work}))
            _wait(futures, view)
        except BaseException as error:
            interruption = error
            crew.stop()
    notes.close()
    outcomes = [_outcome(group, future) for group, future in enumerate(futures)]
    return [priced(o, run.group_refs(o.group), run.worst_of_a_row) for o in outcomes], interruption


class _Work:
    """What the tasks of a run share. It stays in this process: task runs are threads of it.

    No dataclass, because Prefect walks through those in search of futures, for every task: through
    the hundred thousand batches of a large plan.
    """

    def __init__(
        self, run: PlannedRun, around: Surroundings, crew: Crew, view: LiveView, notes: CommitNotes
    ) -> None:
        self.run = run
        self.around = around
        self.crew = crew
        self.view = view
        self.notes = notes


@task(name="group", task_run_name="group-{group:04d}", cache_policy=NO_CACHE, persist_result=False)
def work_on_group_task(group: int, work: _Work) -> State[Any]:
    """Run the worker process of one group; Failed, with one plain sentence, if something of it is missing."""
    job, watcher = work.run.job(group), work.around.watcher
    log = get_run_logger()
    kept = f", afterwards {job.kept_log}" if job.kept_log else ""
    log.info(f"run {job.run_id}, group {group} of {job.groups}: log {job.log}{kept}")

    def on_progress(progress: Progress) -> None:
        work.view.progressed(progress)
        watcher.progressed(progress)

    def on_batch(line: BatchLine) -> None:
        work.view.batch_ended(line)
        watcher.batch_ended(line)

    arguments = work.around.steps.arguments(job)
    outcome = work_on_group(job, arguments, work.crew, on_progress, on_batch, work.notes.note)
    outcome = priced(outcome, work.run.group_refs(group), work.run.worst_of_a_row)
    for report in outcome.failed:
        log.warning(f"batch {report.batch_id}, attempt {report.attempt}: {report.error}")
    ended = Completed if outcome.is_good else Failed
    return ended(message=outcome.sentence(), data=outcome)


def _wait(futures: Sequence[_Future], view: LiveView) -> None:
    """Wait for all, and show how far they are. Not `prefect.futures.wait`: its timeout is an alarm signal."""
    pending = {future.wrapped_future for future in futures}
    while pending:
        pending = concurrent.futures.wait(pending, timeout=_LOOK_EVERY_S).not_done
        view.update(last=not pending)


def _outcome(group: int, future: _Future) -> GroupOutcome:
    if future.wrapped_future.cancelled():
        return GroupOutcome(group, (), (), WorkerEnd(1, "the run was stopped before its turn", stopped=True))
    found = future.result(raise_on_failure=False)
    if isinstance(found, GroupOutcome):
        return found
    return GroupOutcome(group, (), (), WorkerEnd(1, f"its task broke off: {found}"))
