"""A run's beginning: its workload is loaded and checked, its output locked, its batches planned."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from prefect import get_run_logger
from prefect.runtime import flow_run

from flows.groups import GroupJob, default_groups, write_context
from flows.kept_logs import kept_log
from flows.notice import Notices, Subject, Terms
from flows.orders import Order
from flows.parameters import LAUNCH_FILE, EnrichParameters
from flows.steps import Surroundings, load_for
from flows.words import batches as batches_text
from flows.words import count
from pipelines.dataflow import Tpu
from pipelines.engines import Engine, most_workers, secret_project
from schemas.changes import with_changes
from schemas.ids import new_run_id
from schemas.load import LoadedWorkload
from schemas.run import RunContext
from transforms.batch_refs import BatchRefs
from transforms.layout import run_path
from transforms.plan import Plan
from transforms.plan_file import group_slice
from transforms.quote.compare import read_quote
from transforms.quote.lengths import settle_lengths
from transforms.quote.values import Quote
from transforms.store import is_remote, open_store


@dataclass(frozen=True, slots=True)
class PlannedRun:
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
    quote: Quote | None = None

    @property
    def worst_of_a_row(self) -> Decimal | None:
        """What a document of this run costs at most, on the average of those that are due, in USD."""
        worst = None if self.quote is None else self.quote.total.worst
        return None if worst is None or not self.plan.rows_due else worst / self.plan.rows_due

    def group_refs(self, group: int) -> BatchRefs:
        """The batches of a group."""
        return group_slice(self.plan.refs, group, self.groups)

    def job(self, group: int) -> GroupJob:
        """What the worker of a group is told."""
        log = f"group-{group:04d}.log"
        return GroupJob(
            group=group,
            groups=self.groups,
            run_id=self.context.run_id,
            workload=str(self.loaded.path),
            plan=self.plan.plan_uri,
            context=str(write_context(self.context, self.scratch)),
            log=str(self.scratch / "logs" / log),
            kept_log=kept_log(self.context.output, self.context.run_id, log),
            lock=self.lock,
            runner_flags=self.runner_flags,
            engine=self.engine,
            tpu=self.tpu,
        )


@contextmanager
def planned(order: Order, around: Surroundings) -> Iterator[PlannedRun]:
    """Load, check, lock and plan; the lock is held and the scratch folder stays while the block runs."""
    steps, log, parameters = around.steps, get_run_logger(), order.parameters
    started, began = steps.now(), time.monotonic()
    loaded = load_for(parameters, steps)
    for line in steps.check(loaded).lines():
        log.info(line)
    limits = loaded.workload.limits
    parallel = parameters.parallel_groups or limits.parallel_groups
    with ExitStack() as closers:
        lock = closers.enter_context(steps.open_output(loaded, parameters.rehearsal))
        context = _context(order.started(loaded, started.isoformat()), loaded, started, parallel)
        scratch = closers.enter_context(_scratch(context))
        say(around, steps.collect(loaded, context))
        changed = with_changes(loaded, context)
        classes = [c.value for c in parameters.retry_classes]
        plan = steps.plan(changed, context, classes)
        wanted = parameters.groups or limits.groups or default_groups(len(plan.refs), parallel)
        if plan.refs:
            steps.quote(_sized(changed, wanted, parallel), context, classes)
        quote = read_quote(open_store(context.output), context.run_id)
        if plan.refs and quote is not None:
            context = _with_lengths(context, quote)
        around.ending.plan, around.ending.output = plan, loaded.output_uri
        _note_launch(parameters, loaded, context)
        around.watcher.planned(plan, parameters.rehearsal)
        log.info(_planned_line(plan, context))
        yield PlannedRun(
            loaded=changed,
            context=context,
            plan=plan,
            groups=min(wanted, max(1, len(plan.refs))),
            parallel=parallel,
            lock=lock.fileno(),
            scratch=scratch,
            started_at=started,
            runner_flags=parameters.runner_flags,
            notices=_notices(quote, changed, context, began, parameters.engine),
            engine=parameters.engine,
            tpu=parameters.tpu,
            quote=quote,
        )


def say(around: Surroundings, lines: Sequence[str]) -> None:
    """Say what there is to say about provider batches, in the log and to whoever watches."""
    for line in lines:
        get_run_logger().info(line)
        around.watcher.say(line)


def _context(order: Order, loaded: LoadedWorkload, started: datetime, parallel: int) -> RunContext:
    workload, cap = loaded.workload, order.cap(loaded.workload)
    return RunContext(
        run_id=new_run_id(started),
        output=loaded.output_uri,
        workload_sha256=workload.digest(),
        rehearsal=order.parameters.rehearsal,
        max_in_flight=max(1, workload.limits.max_in_flight // parallel),
        processes=parallel,
        workers=parallel * most_workers(order.parameters.engine, order.parameters.runner_flags),
        budget_amount=None if cap is None else str(cap),
        skip_routes=order.skip_routes,
        reroute=order.reroute(workload),
        only_batches=order.only_batches,
        secret_project=secret_project(order.parameters.engine, order.parameters.runner_flags),
        approvals=tuple(approval.to_dict() for approval in order.approvals),
    )


def _sized(loaded: LoadedWorkload, groups: int, parallel: int) -> LoadedWorkload:
    """The workload with the processes of this run, for how long it will take."""
    limits = loaded.workload.limits.model_copy(update={"groups": groups, "parallel_groups": parallel})
    return replace(loaded, workload=loaded.workload.model_copy(update={"limits": limits}))


def _with_lengths(context: RunContext, quote: Quote) -> RunContext:
    """The run's context with the lengths that its embedders choose their shapes by."""
    found = settle_lengths(open_store(context.output), context.run_id, quote)
    return replace(context, lengths={name: lengths.to_dict() for name, lengths in found.items()})


def _notices(
    quote: Quote | None, loaded: LoadedWorkload, context: RunContext, began: float, engine: Engine
) -> Notices:
    subject = Subject(
        run_id=context.run_id,
        workload=loaded.workload.name,
        output=context.output,
        rehearsal=context.rehearsal,
        flow_run_id=str(flow_run.id),
    )
    terms = Terms.of(quote)
    if engine != "local":  # a cluster's processes and their start are not in the quote
        terms = replace(terms, quoted_run_seconds=None)
    return Notices(terms, subject.emit, lambda: time.monotonic() - began)


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


@contextmanager
def _scratch(context: RunContext) -> Iterator[Path]:
    """Where the run's processes find their context and write their logs.

    Beside the run's other files when the output is a local folder, so that a run that is killed leaves
    nothing elsewhere; else in a temporary folder.
    """
    if is_remote(context.output):
        with tempfile.TemporaryDirectory(prefix="switchgear-") as folder:
            yield Path(folder)
    else:
        own = Path(context.output, "runs", context.run_id)
        own.mkdir(parents=True, exist_ok=True)
        yield own
