"""The flow `enrich`: run a workload."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from flows.conduct import conduct
from flows.orders import Order
from flows.parameters import EnrichParameters


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
    return conduct(Order(parameters))
