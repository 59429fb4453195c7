"""Addresses of pages in the Prefect UI, and of an output where a browser can open one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

UI_PATH = "/v2"
_CONSOLE = "https://console.cloud.google.com/storage/browser/"


def ui_base(environ: Mapping[str, str] = os.environ) -> str:
    """What addresses of the UI begin with: `PREFECT_UI_URL`, else the path of Prefect's current UI.

    An address without a host stays on the server that the reader's browser came to. Prefect derives
    another one from the address of the API, but workers often know the server by a name that means
    nothing to a browser (in a compose file, for example).
    """
    return (environ.get("PREFECT_UI_URL") or UI_PATH).rstrip("/")


def told_base() -> str:
    """What addresses of the UI begin with where no browser has come to it yet: in a message to somebody."""
    from prefect.settings import get_current_settings

    return (
        os.environ.get("PREFECT_UI_URL", "").rstrip("/") or f"{get_current_settings().ui_url or ''}{UI_PATH}"
    )


def form_url(deployment_id: object, parameters: Mapping[str, Any], base: str) -> str:
    """The form that starts a run of a deployment, filled in with parameters.

    Prefect's UI takes the whole set of parameters from one field of the query, as JSON.
    """
    filled = quote(json.dumps(parameters, ensure_ascii=False, separators=(",", ":")), safe="")
    return f"{base}/deployments/deployment/{deployment_id}/run?parameters={filled}"


def flow_run_url(flow_run_id: object, base: str) -> str:
    """The page of a flow run."""
    return f"{base}/runs/flow-run/{flow_run_id}"


def output_url(output: str) -> str | None:
    """Where a browser shows an output; None for a local folder, which a page can't open."""
    return _CONSOLE + quote(output.removeprefix("gs://")) if output.startswith("gs://") else None
