"""The flow `repair`: do again what is left of a run, with another cap or backend where that helps.

The same safe thing as a retry: it plans what the output's commit records say is missing. What it adds is a
choice: only some batches, failures that are final otherwise, another backend, a raised cap.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Failed

from flows.conduct import conduct
from flows.orders import Order
from flows.outputs import launched_with
from flows.parameters import EnrichParameters, RepairParameters
from schemas.errors import ConfigurationError


def order_for(parameters: RepairParameters) -> Order:
    """What a repair does: what the output was run with, and the form's changes.

    Raises:
        OutputError: there is no such output or run, or its workload file is gone.
    """
    before = launched_with(parameters.output, parameters.run)
    changes: dict[str, Any] = {
        "output": str(Path(parameters.output).resolve()) if "://" not in parameters.output else None,
        "retry_classes": parameters.failure_classes,
        "approved_by": parameters.approved_by,
        "reason": parameters.reason,
        "budget": before.budget if parameters.budget is None else parameters.budget,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    return Order(
        EnrichParameters.model_validate({**before.model_dump(), **given}),
        backend=parameters.backend,
        backend_routes=parameters.routes,
        only_batches=parameters.batches,
    )


def _name_of_run() -> str:
    output = flow_run.parameters["parameters"].output
    return f"repair-{Path(output).name}-{datetime.now(UTC):%Y%m%d-%H%M}"


@flow(
    name="repair",
    flow_run_name=_name_of_run,
    description="Does again what is left of a run, with another choice of batches, backend or cap.",
    persist_result=False,
    result_serializer="json",
    validate_parameters=True,
)
def repair(parameters: RepairParameters) -> State[Any]:
    """Do what is left of a run. Ends as `enrich` does."""
    try:
        order = order_for(parameters)
    except ConfigurationError as error:
        return Failed(message=str(error), name="Misconfigured")
    return conduct(order)
