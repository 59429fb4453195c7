"""Flow runs and the worker and server under them: what ends together, and what goes on later."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from flows.deployments import POOL
from flows.server import has_health
from pipelines.leash import stop_with_parent

PATIENCE_S = 3600.0
_ASK_EVERY_S = 2.0

_LIMIT = 200


def end_with_worker() -> None:
    """In a process that a Prefect worker has started: end in order when that worker dies.

    Nobody could cancel such a run any more, and its worker's successor doesn't know of it.
    """
    if is_of_a_worker():
        stop_with_parent()


def is_of_a_worker() -> bool:
    """Whether a Prefect worker has started this process for a flow run."""
    return bool(os.environ.get("PREFECT__FLOW_RUN_ID"))


def await_server(patience_s: float = PATIENCE_S) -> None:
    """Wait until the server answers, so that what this run has to say of its end is not lost.

    Nothing is held while it waits: the work is done and the output unlocked.
    """
    from prefect.settings import get_current_settings

    if not is_of_a_worker():
        return
    url, deadline = get_current_settings().api.url, time.monotonic() + patience_s
    while url and not has_health(url) and time.monotonic() < deadline:
        time.sleep(_ASK_EVERY_S)


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
