"""One run, from its order to its state: plan, ask where a person must approve, one task run a group, settle.

Prefect is the view, the output folder is the truth: a run plans anew whenever it runs, and a plan holds
what the commit records say is missing. So *Retry* of a flow run, `repair`, a rerun of the command and a
rerun after a crash are the same thing, and nothing depends on results that Prefect has cached: tasks have
no cache, and a task run stands for a group of this plan, not for one of an earlier attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed

from flows.artifacts import Settled, only_a_view, publish_artifacts
from flows.asked import note_question
from flows.group_tasks import work_on_groups
from flows.groups import GroupOutcome, failed_reports
from flows.orders import Approval, Order
from flows.planning import PlannedRun, planned, say
from flows.repair_link import repair_link
from flows.report import end_sentence
from flows.report_html import report_html
from flows.review import Decided, Need, ask_for, has_form, need_after, need_before
from flows.standing import await_server, end_with_worker
from flows.steps import Surroundings, surroundings
from flows.words import count
from schemas.errors import ConfigurationError, OutputBusyError, SwitchgearError
from schemas.run import Manifest
from transforms.batch_refs import no_refs
from transforms.layout import run_path
from transforms.store import open_store


@dataclass(frozen=True, slots=True)
class Question:
    """What a person has to decide before an order can go on."""

    need: Need
    order: Order
    wait_h: float


Answering = Callable[[Question], Decided]


def ask_here(question: Question) -> Decided:
    """Ask by suspending this flow run."""
    return ask_for(question.need, question.order, question.wait_h)


def conduct(order: Order, answering: Answering | None = None) -> State[Any]:
    """Run what is due, and nothing else; the flow run's last state.

    Completed when nothing is left to do, else Failed with one plain sentence. `answering` is asked
    instead of a form of this flow run.
    """
    end_with_worker()
    around = surroundings()
    try:
        state = _conduct(order, around, answering)
    except SwitchgearError as error:
        around.ending.error = error
        state = _broken_off(error)
    get_run_logger().info(state.message or "")
    await_server()
    return state


def _conduct(order: Order, around: Surroundings, answering: Answering | None) -> State[Any]:
    """Plan and work until no question is open; a question ends the process until it is answered."""
    while True:
        with planned(order, around) as run:
            need = need_before(run, order)
            if need is None:
                outcomes, manifest = _work_and_settle(run, around)
                need = need_after(run, order, manifest)
            if need is None:
                around.ending.error = _common_configuration_error(outcomes)
                return _ended(run, outcomes, manifest)
            question = Question(need, order, run.loaded.workload.review.wait_h)
            if answering is not None or has_form():
                note_question(open_store(run.context.output), run.context.run_id, need.what, question.wait_h)
        decided = (answering or ask_here)(question)
        if decided.order is None:
            return stopped(question, decided.approval, around)
        order = decided.order


def _work_and_settle(run: PlannedRun, around: Surroundings) -> tuple[list[GroupOutcome], Manifest]:
    outcomes: list[GroupOutcome] = []
    interruption: BaseException | None = None
    if run.plan.refs:
        outcomes, interruption = work_on_groups(run, around)
    if interruption is None:
        say(around, around.steps.submit(run.loaded, run.context))
    try:
        manifest = _settle(run, outcomes, around)
    except Exception:
        if interruption is None:
            raise
        get_run_logger().exception("what was stopped could not be settled")
    if interruption is not None:
        raise interruption
    return outcomes, manifest


def _settle(run: PlannedRun, outcomes: list[GroupOutcome], around: Surroundings) -> Manifest:
    failed = failed_reports(outcomes, run.plan.refs, run.groups)
    manifest = around.steps.settle(run.loaded, run.context, run.plan, failed, run.started_at)
    around.ending.manifest = manifest
    page = report_html(manifest, run.context.output).encode("utf-8", "replace")
    open_store(run.context.output).create(run_path(run.context.run_id, "report.html"), page)
    link = ""
    if manifest.state != "complete":
        with only_a_view("the link to the repair form"):
            link = repair_link(run.context.output, run.context.run_id)
    publish_artifacts(Settled(manifest, outcomes, failed, run.context.output, link))
    with only_a_view("an event"):
        run.notices.settled(manifest, end_sentence(manifest))
    return manifest


def _ended(run: PlannedRun, outcomes: list[GroupOutcome], manifest: Manifest) -> State[Any]:
    sentence = end_sentence(manifest, nothing_due=not run.plan.refs)
    if manifest.state == "complete":
        return Completed(message=sentence)
    bad = sum(not outcome.is_good for outcome in outcomes)
    if bad:
        sentence = f"{bad} of {count(len(outcomes), 'group')} failed: {sentence}"
    return Failed(message=sentence)


def stopped(question: Question, approval: Approval, around: Surroundings) -> State[Any]:
    """A person has said stop: note it in a manifest, and send nothing."""
    told = replace(question.order, approvals=(*question.order.approvals, approval))
    with planned(told, around) as run:
        left_out = run.plan.batches_left_out + len(run.plan.refs)
        nothing = replace(run.plan, refs=no_refs(), batches_left_out=left_out)
        manifest = around.steps.settle(run.loaded, run.context, nothing, [], run.started_at)
    around.ending.manifest = manifest
    return Failed(
        message=f"Stopped by {approval.by}: {approval.reason} (asked because {question.need.what}). "
        "Nothing more was sent. Start the deployment again to be asked again",
        name="Stopped",
    )


def _broken_off(error: SwitchgearError) -> State[Any]:
    if isinstance(error, OutputBusyError):
        if _came_by_itself():
            return Completed(
                message=f"Skipped: {error}. That run, or the next, does what was due", name="Skipped"
            )
        return Failed(message=str(error), name="OutputBusy")
    if isinstance(error, ConfigurationError):
        return Failed(message=str(error), name="Misconfigured")
    get_run_logger().exception("the run broke off")
    return Failed(message=f"The run broke off: {error}. A retry does what is missing")


def _came_by_itself() -> bool:
    """Whether a schedule made this flow run, and nobody has pressed Retry on it."""
    context = FlowRunContext.get()
    found = None if context is None else context.flow_run
    return found is not None and bool(found.auto_scheduled) and found.run_count <= 1


def _common_configuration_error(outcomes: list[GroupOutcome]) -> ConfigurationError | None:
    """What the user must mend first, when no worker could even begin for that reason."""
    if outcomes and all(o.end.configuration and not o.lines for o in outcomes):
        return ConfigurationError(outcomes[0].end.error)
    return None
