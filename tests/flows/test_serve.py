"""`switchgear serve` as an operator starts it: a real server, a real worker, real runs, in processes."""

from __future__ import annotations

import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.ports import free_port
from flows.serve import Serving, refuse_taken_port, serve_here
from schemas.errors import ConfigurationError
from tests.support.serving import Served, make_workload, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the tests of this file."""
    found = Served(tmp_path_factory.mktemp("serve"), free_port())
    found.start()
    yield found
    found.stop()


def test_a_run_from_the_form_of_the_deployment_is_completed_by_the_worker(served: Served) -> None:
    make_workload(served.folder / "one")

    run_id = served.submit("enrich/enrich", workload="one/w.toml", rehearsal=True)

    state = served.ended(run_id)
    assert state["name"] == "Completed"
    assert state["message"].startswith("Rehearsal: Complete: 20 results")
    assert len(list((served.folder / "one" / "out" / "commits").iterdir())) == 2


def test_serve_says_where_the_ui_is_and_what_to_click(served: Served) -> None:
    said = "\n".join(served.said)

    assert f"Prefect's UI: http://127.0.0.1:{served.port}" in said
    assert "Deployments, enrich, Run, Custom run" in said
    assert str(served.folder / "state") in said
    with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/", timeout=120) as page:
        assert b"<html" in page.read().lower()


def test_the_form_is_checked_by_the_server_field_by_field(served: Served) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        served.submit("enrich/enrich", workload="one/w.toml", groups=501)

    assert caught.value.code == 409
    assert "501" in caught.value.read().decode()


def test_a_run_that_dies_is_marked_by_an_automation_that_serve_has_applied(served: Served) -> None:
    found = served.api("POST", "/automations/filter", {})

    (automation,) = [a for a in found if a["name"].startswith("switchgear: mark runs")]
    assert automation["enabled"] is True
    assert automation["trigger"]["posture"] == "Proactive"
    assert automation["trigger"]["within"] == 90.0
    assert automation["actions"][0]["state"] == "CRASHED"
    deployment = served.api("GET", "/deployments/name/enrich/enrich")
    assert deployment["job_variables"]["env"] == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}


def test_a_stopped_server_starts_again_where_it_stood_and_the_run_goes_on(served: Served) -> None:
    folder = served.folder / "stopped"
    make_workload(
        folder,
        rows=80,
        rehearsal={"latency_ms": [300, 400]},
        limits={"batch_rows": 10, "max_in_flight": 4},
    )
    deployment = served.api("GET", "/deployments/name/enrich/enrich")["id"]
    cron = {"schedule": {"cron": "0 6 * * *", "timezone": "UTC"}, "active": True}
    served.api("POST", f"/deployments/{deployment}/schedules", [cron])
    run_id = served.submit("enrich/enrich", workload="stopped/w.toml", rehearsal=True)
    wait_for(lambda: any((folder / "out/commits").glob("*")), "no batch was ever committed")

    assert served.stop() == 0

    before = len(list((folder / "out/commits").iterdir()))
    assert before < 8
    served.start()
    assert served.ended(run_id)["name"] == "Completed"
    assert len(list((folder / "out/commits").iterdir())) == 8
    schedules = served.api("GET", f"/deployments/{deployment}/schedules")
    assert [s["schedule"]["cron"] for s in schedules] == ["0 6 * * *"]
    history = served.api("GET", f"/flow_run_states/?flow_run_id={run_id}")
    assert any("goes on when that is started again" in (s["message"] or "") for s in history)


def test_one_folder_is_served_once(tmp_path: Path, served: Served) -> None:
    again = Serving(served.folder / "state", free_port(), tmp_path, 1)

    with pytest.raises(ConfigurationError, match="is served already"):
        serve_here(again, print, threading.Event())


def test_a_port_that_is_taken_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=re.escape(f"port {port} of 127.0.0.1 can't be used")):
            refuse_taken_port(port)
