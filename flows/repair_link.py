"""Where a run's repair form is: the deployment `repair`, filled in."""

from __future__ import annotations

from flows.links import form_url, ui_base

DEPLOYMENT = "repair/repair"


def repair_link(output: str, run_id: str) -> str:
    """The address of the form; empty where the server has no such deployment."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            return ""
    return form_url(found.id, {"parameters": {"output": output, "run": run_id}}, ui_base())
