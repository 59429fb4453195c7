"""The flow `backfill`: a run for each day of a date-partitioned input, oldest first.

Days that are done cost a look at their commit records, and days whose folder isn't there are left out. So
the same backfill, on a schedule over the last days, also catches up after any downtime without doing a day
twice. A day that needs an approval lets all others go first; then the backfill asks, and is suspended.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.conduct import Question, conduct, stopped
from flows.orders import Order
from flows.parameters import DATE, BackfillParameters, EnrichParameters
from flows.review import Decided, ask_for, has_form
from flows.standing import end_with_worker
from flows.steps import surroundings
from flows.words import count, shortened
from transforms.store import is_remote

_DAYS_NAMED = 5
_MESSAGE = 300


def days_of(parameters: BackfillParameters, today: date) -> list[date]:
    """The days of a backfill, oldest first; without `last` up to yesterday, which is over in UTC."""
    last = parameters.last or today - timedelta(days=1)
    first = parameters.first or last - timedelta(days=parameters.days - 1)
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def orders_of(parameters: BackfillParameters, today: date) -> Iterator[tuple[date, EnrichParameters]]:
    """What is to be run for each day whose documents are there."""
    for day in days_of(parameters, today):
        source = _of_day(parameters.input, day, parameters.date_format)
        if _is_missing(source):
            continue
        output = parameters.output and _of_day(parameters.output, day, parameters.date_format)
        yield (
            day,
            EnrichParameters(
                workload=parameters.workload,
                input=source,
                output=output,
                rehearsal=parameters.rehearsal,
                budget=parameters.budget,
            ),
        )


def without_documents(parameters: BackfillParameters, today: date) -> str:
    """Why there is nothing to run: no day in the range, or no documents on any of them."""
    days = days_of(parameters, today)
    if not days:
        return f"Nothing to run: the first day, {parameters.first}, is not over yet. Name a last day, too"
    return (
        f"Nothing to run: no day from {days[0]} to {days[-1]} has documents at {parameters.input}. If there "
        "should be some, mend the input, the days or the date format"
    )


def _name_of_day() -> str:
    return str(flow_run.parameters["day"])


@dataclass(slots=True)
class _Day:
    """What the run of a day is told beyond its parameters, and what it has to ask."""

    order: Order
    may_ask: bool
    question: Question | None = None


_TODAY: ContextVar[_Day] = ContextVar("switchgear_day")


class _WaitsError(Exception):
    """A day needs an approval: the backfill asks, because Prefect can't suspend a run inside another."""


@flow(name="day", flow_run_name=_name_of_day, persist_result=False)
def run_day(day: str, parameters: EnrichParameters) -> State[Any]:  # noqa: ARG001  (for the name and the page)
    """One day of a backfill: what `enrich` does."""
    today = _TODAY.get()

    def hand_up(question: Question) -> Decided:
        today.question = question
        raise _WaitsError

    try:
        return conduct(today.order, hand_up if today.may_ask else None)
    except _WaitsError:
        assert today.question is not None
        return Failed(message=f"It waits for an approval: {today.question.need.what}", name="Waiting")


def _try_day(day: date, order: Order) -> tuple[State[Any], Question | None]:
    """The end of a day's run, or what it has to ask first."""
    today = _Day(order, has_form())
    token = _TODAY.set(today)
    try:
        state: Any = run_day(day.isoformat(), order.parameters, return_state=True)
    finally:
        _TODAY.reset(token)
    return state, today.question


def _ask_for_day(day: date, question: Question) -> State[Any]:
    """The end of a day that needs approvals; suspends the backfill until they are given."""
    asked: Question | None = question
    state: State[Any] = Failed()
    while asked is not None:
        need = replace(asked.need, what=f"{day}: {asked.need.what}")
        decided = ask_for(need, asked.order, asked.wait_h, about=day.isoformat())
        if decided.order is None:
            return stopped(asked, decided.approval, surroundings())
        state, asked = _try_day(day, decided.order)
    return state


def _name_of_run() -> str:
    workload = flow_run.parameters["parameters"].workload
    return f"backfill-{Path(workload).stem}-{datetime.now(UTC):%Y%m%d-%H%M}"


@flow(
    name="backfill",
    flow_run_name=_name_of_run,
    description="Runs a workload for each day of a date-partitioned input; days that are done cost nothing.",
    persist_result=False,
    result_serializer="json",
    validate_parameters=True,
)
def backfill(parameters: BackfillParameters) -> State[Any]:
    """Run day after day; Failed, with the days that are not complete, after all were tried.

    Suspended while a day waits for an approval: then all days that need none have been done.
    """
    end_with_worker()
    today = datetime.now(UTC).date()
    days = list(orders_of(parameters, today))
    if not days:
        return Completed(message=without_documents(parameters, today))
    get_run_logger().info(f"{count(len(days), 'day')} with documents")
    tried = {day: _try_day(day, Order(order)) for day, order in days}
    ends = {
        day: state if asked is None else _ask_for_day(day, asked) for day, (state, asked) in tried.items()
    }
    failed = [(day, state.message or "") for day, state in ends.items() if not state.is_completed()]
    if not failed:
        return Completed(message=f"{count(len(days), 'day')} complete.")
    named = ", ".join(day.isoformat() for day, _ in failed[:_DAYS_NAMED])
    more = "" if len(failed) <= _DAYS_NAMED else " and others"
    return Failed(
        message=f"{len(failed)} of {count(len(days), 'day')} not complete: {named}{more}. The first: "
        f"{shortened(failed[0][1], _MESSAGE)}. A retry does what is missing"
    )


def _of_day(template: str, day: date, date_format: str) -> str:
    return template.replace(DATE, day.strftime(date_format))


def _is_missing(source: str) -> bool:
    """Whether a local folder or file isn't there; globs and what stands elsewhere are left to the run."""
    return not is_remote(source) and "*" not in source and not Path(source).exists()
