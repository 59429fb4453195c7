"""Flow runs and the worker and server under them: what ends together, and what goes on later."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from flows.deployments import POOL
from pipelines.leash import stop_with_parent

_LIMIT = 200


def end_with_worker() -> None:
    """In a process that a Prefect worker has started: end in order when that worker dies.

    Nobody could cancel such a run any more, and its worker's successor doesn't know of it.
    """
    if os.environ.get("PREFECT__FLOW_RUN_ID"):
        stop_with_parent()


def runs_at_work(pool: str = POOL) -> list[UUID]:
    """The flow runs of the pool that are running; none when the server does not answer."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    try:
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(
                work_pool_filter=filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=[pool])),
                flow_run_filter=filters.FlowRunFilter(
                    state=filters.FlowRunFilterState(
                        type=filters.FlowRunFilterStateType(any_=[StateType.RUNNING])
                    )
                ),
                limit=_LIMIT,
            )
    except Exception:
        return []
    return [run.id for run in found]


def put_back(runs: Sequence[UUID]) -> None:
    """Make runs that were stopped due again: the next worker takes them up, and they do what is missing.

    Those that came to their end in the meantime are left as they are.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import State, StateType
    from prefect.states import AwaitingRetry

    if not runs:
        return
    due: State[Any] = AwaitingRetry(message="Stopped with its server; it goes on when that is started again.")
    try:
        with get_client(sync_client=True) as client:
            for run_id in runs:
                state = client.read_flow_run(run_id).state
                if state is None or state.type in (StateType.RUNNING, StateType.CRASHED):
                    client.set_flow_run_state(run_id, due, force=True)
    except Exception:
        return  # the server is gone: the automation marks them as crashed once it is back
