"""`switchgear serve` as an operator starts it: a real server, a real worker, real runs, in processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flows.serve import Serving, refuse_taken_port, serve_here
from schemas.errors import ConfigurationError
from tests.support import documents, workloads

pytestmark = pytest.mark.slow
PATIENCE_S = 120.0


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.1)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Served:
    """A `switchgear serve` in a folder, and its API as the UI uses it."""

    folder: Path
    port: int
    process: subprocess.Popen[str] | None = None
    said: list[str] = field(default_factory=list)

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        command = [sys.executable, "-P", "-m", "flows.cli", "serve", "--state", str(self.folder / "state")]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--folder", str(self.folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            if "Ctrl-C" in line:
                return
        raise AssertionError(f"it did not start: {self.said}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        assert self.process.stderr is not None
        self.process.send_signal(number)
        self.said += self.process.stderr.read().splitlines()
        return self.process.wait(60)

    def api(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def submit(self, deployment: str, **parameters: Any) -> str:
        """Press *Run* in a deployment's form; the flow run's id."""
        found = self.api("GET", f"/deployments/name/{deployment}")
        made = self.api(
            "POST", f"/deployments/{found['id']}/create_flow_run", {"parameters": {"parameters": parameters}}
        )
        return str(made["id"])

    def state(self, run_id: str) -> dict[str, Any]:
        return dict(self.api("GET", f"/flow_runs/{run_id}")["state"])

    def ended(self, run_id: str) -> dict[str, Any]:
        """The state in which a run has ended."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

        def look() -> dict[str, Any] | None:
            state = self.state(run_id)
            return state if state["type"] in final else None

        return dict(wait_for(look, f"run {run_id} never ended"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the tests of this file."""
    found = Served(tmp_path_factory.mktemp("serve"), free_port())
    found.start()
    yield found
    found.stop()


def make_workload(folder: Path, rows: int = 20, **changes: Any) -> None:
    folder.mkdir()
    documents.write(folder / "in" / "a.parquet", documents.rows(range(rows)))
    workloads.write_workload(
        folder, **{"limits": {"batch_rows": 10}, "rehearsal": {"latency_ms": [1, 2]}, **changes}
    )


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
    with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/", timeout=30) as page:
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
