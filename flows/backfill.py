"""The flow `backfill`: a run for each day of a date-partitioned input, oldest first.

Days that are done cost a look at their commit records, and days whose folder isn't there are left out. So
the same backfill, on a schedule over the last days, also catches up after any downtime without doing a day
twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.conduct import conduct
from flows.orders import Order
from flows.parameters import DATE, BackfillParameters, EnrichParameters
from flows.standing import end_with_worker
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


def _name_of_day() -> str:
    return str(flow_run.parameters["day"])


@flow(name="day", flow_run_name=_name_of_day, persist_result=False)
def run_day(day: str, parameters: EnrichParameters) -> State[Any]:  # noqa: ARG001  (names the run)
    """One day of a backfill: what `enrich` does."""
    return conduct(Order(parameters))


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
    """Run day after day; Failed, with the days that are not complete, after all were tried."""
    end_with_worker()
    failed: list[tuple[date, str]] = []
    days = list(orders_of(parameters, datetime.now(UTC).date()))
    get_run_logger().info(f"{count(len(days), 'day')} with documents")
    for day, order in days:
        state: Any = run_day(day.isoformat(), order, return_state=True)
        if not state.is_completed():
            failed.append((day, state.message or ""))
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
