"""The `enrich` flow: plan, one task run per group of batches, settle.

Prefect is the view, the output folder is the truth: the flow plans anew whenever it runs, and a plan
holds what the commit records say is missing. So *Retry* of a flow run, a rerun of the command and a
rerun after a crash are the same thing, and nothing depends on results that Prefect has cached: tasks
have no cache, and a task run stands for a group of this plan, not for one of an earlier attempt.
"""

from __future__ import annotations

import concurrent.futures
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectConcurrentFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.artifacts import Settled, only_a_view, publish_artifacts
from flows.groups import (
    BatchLine,
    Crew,
    GroupJob,
    GroupOutcome,
    default_groups,
    failed_reports,
    work_on_group,
    write_context,
)
from flows.live import LiveView
from flows.notice import Notices, Subject, Terms
from flows.parameters import LAUNCH_FILE, EnrichParameters
from flows.report import end_sentence
from flows.report_html import report_html
from flows.standing import end_with_worker
from flows.steps import Surroundings, load_for, surroundings
from flows.words import batches as batches_text
from flows.words import count
from flows.worker import WorkerEnd
from pipelines.dataflow import Tpu
from pipelines.engines import Engine, secret_project
from schemas.errors import ConfigurationError, SwitchgearError
from schemas.ids import new_run_id
from schemas.load import LoadedWorkload
from schemas.run import Manifest, Progress, RunContext
from transforms.layout import run_path
from transforms.plan import Plan
from transforms.quote.compare import read_quote
from transforms.store import open_store

_LOOK_EVERY_S = 5.0
_Future = PrefectConcurrentFuture[Any]


@dataclass(frozen=True, slots=True)
class _Run:
    """A planned run whose output is locked."""

    loaded: LoadedWorkload
    context: RunContext
    plan: Plan
    groups: int
    parallel: int
    lock: int
    scratch: Path
    started_at: datetime
    runner_flags: tuple[str, ...]
    notices: Notices
    engine: Engine
    tpu: Tpu | None

    def job(self, group: int) -> GroupJob:
        """What the worker of a group is told."""
        return GroupJob(
            group=group,
            groups=self.groups,
            run_id=self.context.run_id,
            workload=str(self.loaded.path),
            plan=self.plan.plan_uri,
            context=str(write_context(self.context, self.scratch)),
            log=str(_log_folder(self.context, self.scratch) / f"group-{group:04d}.log"),
            lock=self.lock,
            runner_flags=self.runner_flags,
            engine=self.engine,
            tpu=self.tpu,
        )


def _name_of_run() -> str:
    """`docs-20261122-0915`: the workload and the minute, for the list of runs."""
    workload = flow_run.parameters["parameters"].workload
    return f"{Path(workload).stem}-{datetime.now(UTC):%Y%m%d-%H%M}"


@flow(
    name="enrich",
    flow_run_name=_name_of_run,
    description="Sends documents to models by the rules of a workload; a retry does what is missing.",
    persist_result=False,
    result_serializer="json",
    validate_parameters=True,
)
def enrich(parameters: EnrichParameters) -> State[Any]:
    """Run a workload: what is due, and nothing else.

    Ends Completed when nothing is left to do, else Failed with one plain sentence.
    """
    end_with_worker()
    around = surroundings()
    try:
        with _planned(parameters, around) as run:
            outcomes = _work(run, around) if run.plan.refs else []
            _say(around, around.steps.submit(run.loaded, run.context))
            manifest = _settle(run, outcomes, around)
    except SwitchgearError as error:
        around.ending.error = error
        if isinstance(error, ConfigurationError):
            return Failed(message=str(error), name="Misconfigured")
        get_run_logger().exception("the run broke off")
        return Failed(message=f"The run broke off: {error}. A retry does what is missing")
    around.ending.error = _common_configuration_error(outcomes)
    sentence = end_sentence(manifest, nothing_due=not run.plan.refs)
    get_run_logger().info(sentence)
    return Completed(message=sentence) if manifest.state == "complete" else Failed(message=sentence)


@contextmanager
def _planned(parameters: EnrichParameters, around: Surroundings) -> Iterator[_Run]:
    """Load, check, lock and plan; the lock is held and the scratch folder stays while the block runs."""
    steps, log = around.steps, get_run_logger()
    started = steps.now()
    loaded = load_for(parameters, steps)
    for line in steps.check(loaded).lines():
        log.info(line)
    limits = loaded.workload.limits
    parallel = parameters.parallel_groups or limits.parallel_groups
    with (
        tempfile.TemporaryDirectory(prefix="switchgear-") as scratch,
        steps.open_output(loaded, parameters.rehearsal) as lock,
    ):
        context = RunContext(
            run_id=new_run_id(started),
            output=loaded.output_uri,
            workload_sha256=loaded.workload.digest(),
            rehearsal=parameters.rehearsal,
            max_in_flight=max(1, limits.max_in_flight // parallel),
            budget_amount=None if parameters.budget is None else str(parameters.budget),
            secret_project=secret_project(parameters.engine, parameters.runner_flags),
        )
        _say(around, steps.collect(loaded, context))
        classes = [c.value for c in parameters.retry_classes]
        plan = steps.plan(loaded, context, classes)
        if plan.refs:
            steps.quote(loaded, context, classes)
        around.ending.plan, around.ending.output = plan, loaded.output_uri
        _note_launch(parameters, loaded, context)
        wanted = parameters.groups or limits.groups or default_groups(len(plan.refs), parallel)
        around.watcher.planned(plan, parameters.rehearsal)
        log.info(_planned_line(plan, context))
        yield _Run(
            loaded=loaded,
            context=context,
            plan=plan,
            groups=min(wanted, max(1, len(plan.refs))),
            parallel=parallel,
            lock=lock.fileno(),
            scratch=Path(scratch),
            started_at=started,
            runner_flags=parameters.runner_flags,
            notices=_notices(loaded, context),
            engine=parameters.engine,
            tpu=parameters.tpu,
        )


def _work(run: _Run, around: Surroundings) -> list[GroupOutcome]:
    """All groups, a few at a time, each a task run; waits for every one of them, whatever fails."""
    crew = Crew()
    get_run_logger().info(
        f"{batches_text(len(run.plan.refs))} go out in {count(run.groups, 'group')}, {run.parallel} at a time"
    )
    view = LiveView(run.plan, run.context.rehearsal, run.notices)
    work = _Work(run, around, crew, view)
    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=run.parallel)
    with runner:
        try:
            futures = [
                runner.submit(work_on_group_task, parameters={"group": group, "work": work})
                for group in range(run.groups)
            ]
            _wait(futures, view)
        except BaseException:  # Cancel and Ctrl-C too: no worker may go on spending
            crew.stop()
            raise
    return [_outcome(group, future) for group, future in enumerate(futures)]


class _Work:
    """What the tasks of a run share. It stays in this process: task runs are threads of it.

    No dataclass, because Prefect walks through those in search of futures, for every task: through
    the hundred thousand batches of a large plan.
    """

    def __init__(self, run: _Run, around: Surroundings, crew: Crew, view: LiveView) -> None:
        self.run = run
        self.around = around
        self.crew = crew
        self.view = view


@task(name="group", task_run_name="group-{group:04d}", cache_policy=NO_CACHE, persist_result=False)
def work_on_group_task(group: int, work: _Work) -> State[Any]:
    """Run the worker process of one group; Failed, with one plain sentence, if something of it is missing."""
    job, watcher = work.run.job(group), work.around.watcher
    log = get_run_logger()
    log.info(f"run {job.run_id}, group {group} of {job.groups}: log {job.log}")

    def on_progress(progress: Progress) -> None:
        work.view.progressed(progress)
        watcher.progressed(progress)

    def on_batch(line: BatchLine) -> None:
        work.view.batch_ended(line)
        watcher.batch_ended(line)

    arguments = work.around.steps.arguments(job)
    outcome = work_on_group(job, arguments, work.crew, on_progress, on_batch)
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
    found = future.result(raise_on_failure=False)
    if isinstance(found, GroupOutcome):
        return found
    return GroupOutcome(group, (), (), WorkerEnd(1, f"its task broke off: {found}"))


def _say(around: Surroundings, lines: Sequence[str]) -> None:
    """Say what there is to say about provider batches, in the log and to whoever watches."""
    for line in lines:
        get_run_logger().info(line)
        around.watcher.say(line)


def _settle(run: _Run, outcomes: list[GroupOutcome], around: Surroundings) -> Manifest:
    failed = failed_reports(outcomes, run.plan.refs, run.groups)
    manifest = around.steps.settle(run.loaded, run.context, run.plan, failed, run.started_at)
    around.ending.manifest = manifest
    page = report_html(manifest, run.context.output).encode("utf-8", "replace")
    open_store(run.context.output).create(run_path(run.context.run_id, "report.html"), page)
    publish_artifacts(Settled(manifest, outcomes, failed, run.context.output))
    with only_a_view("an event"):
        run.notices.settled(manifest, end_sentence(manifest))
    return manifest


def _notices(loaded: LoadedWorkload, context: RunContext) -> Notices:
    quote = read_quote(open_store(context.output), context.run_id)
    subject = Subject(
        run_id=context.run_id,
        workload=loaded.workload.name,
        output=context.output,
        rehearsal=context.rehearsal,
        flow_run_id=str(flow_run.id),
    )
    return Notices(Terms.of(quote), subject.emit)


def _common_configuration_error(outcomes: list[GroupOutcome]) -> ConfigurationError | None:
    """What the user must mend first, when no worker could even begin for that reason."""
    if outcomes and all(o.end.configuration and not o.lines for o in outcomes):
        return ConfigurationError(outcomes[0].end.error)
    return None


def _planned_line(plan: Plan, context: RunContext) -> str:
    kind = "rehearsal" if context.rehearsal else "run"
    return (
        f"{kind} {context.run_id}: {batches_text(len(plan.refs))} of {plan.batches_total:,} due, "
        f"{plan.rows_due:,} of {count(plan.rows_total, 'document')}, {count(plan.files, 'file')} read, "
        f"{len(plan.skipped_files):,} skipped; output {context.output}"
    )


def _note_launch(parameters: EnrichParameters, loaded: LoadedWorkload, context: RunContext) -> None:
    """Note what the run was started with, with absolute paths, for `retry` and for the curious."""
    absolute = parameters.model_copy(
        update={
            "workload": str(loaded.path),
            "input": parameters.input and loaded.input_uri,
            "output": loaded.output_uri,
        }
    )
    data = absolute.model_dump_json(indent=2).encode("utf-8")
    open_store(context.output).create(run_path(context.run_id, LAUNCH_FILE), data)


def _log_folder(context: RunContext, scratch: Path) -> Path:
    """Beside the run's other files when the output is a local folder, else in the scratch folder."""
    if "://" in context.output:
        return scratch
    return Path(context.output, "runs", context.run_id, "logs")
