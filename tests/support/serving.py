"""A `switchgear serve` in a process of its own, and its API as the UI uses it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pipelines.leash import leashed
from tests.support import documents, workloads

PATIENCE_S = 240.0  # a busy machine is no finding


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.1)
    return found


@dataclass
class Served:
    """A `switchgear serve` in a folder, and its API as the UI uses it."""

    folder: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    said: list[str] = field(default_factory=list)

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        command = [sys.executable, "-P", "-m", "flows.cli", "serve", "--state", str(self.folder / "state")]
        self.process = subprocess.Popen(
            leashed([*command, "--port", str(self.port), "--folder", str(self.folder)]),
            env={**environment, **self.environment},
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
        return wait_for(lambda: _answer_to(request), f"{path} was never answered")[0]

    def submit(self, deployment: str, **parameters: Any) -> str:
        """Press *Run* in a deployment's form; the flow run's id."""
        found = self.api("GET", f"/deployments/name/{deployment}")
        made = self.api(
            "POST", f"/deployments/{found['id']}/create_flow_run", {"parameters": {"parameters": parameters}}
        )
        return str(made["id"])

    def set_state(self, run_id: str, kind: str, name: str) -> None:
        state = {"type": kind, "name": name}
        self.api("POST", f"/flow_runs/{run_id}/set_state", {"state": state, "force": True})

    def retry(self, run_id: str) -> None:
        """Press *Retry* in the menu of a run."""
        self.set_state(run_id, "SCHEDULED", "AwaitingRetry")

    def cancel(self, run_id: str) -> None:
        """Press *Cancel*."""
        self.set_state(run_id, "CANCELLING", "Cancelling")

    def resume(self, run_id: str, **answers: Any) -> dict[str, Any]:
        """Press *Resume* and send the form."""
        return dict(self.api("POST", f"/flow_runs/{run_id}/resume", {"run_input": answers}))

    def task_runs(self, run_id: str) -> dict[str, str]:
        """State and message of the task runs by name, the newest of each."""
        found = self.api(
            "POST",
            "/task_runs/filter",
            {"flow_runs": {"id": {"any_": [run_id]}}, "sort": "EXPECTED_START_TIME_ASC"},
        )
        return {t["name"]: f"{t['state']['name']}: {t['state']['message']}" for t in found}

    def state(self, run_id: str) -> dict[str, Any]:
        return dict(self.api("GET", f"/flow_runs/{run_id}")["state"])

    def ended(self, run_id: str) -> dict[str, Any]:
        """The state in which a run has ended."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

        def look() -> dict[str, Any] | None:
            state = self.state(run_id)
            return state if state["type"] in final else None

        return dict(wait_for(look, f"run {run_id} never ended"))

    def ended_on_a_server_that_comes_back(self, run_id: str) -> dict[str, Any]:
        """The same, of a server that is away for a moment."""

        def is_back() -> bool:
            try:
                self.state(run_id)
            except OSError:
                return False
            return True

        wait_for(is_back, "the server was never started again")
        return self.ended(run_id)


def processes(*words: str, parent: int | None = None, environ: str = "") -> list[int]:
    """The processes whose command line has all of the words; of that parent, with that environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
                above = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                around = (entry / "environ").read_bytes().decode(errors="replace") if environ else ""
            except OSError:
                continue
            if all(word in line for word in words) and parent in (None, above) and environ in around:
                found.append(int(entry.name))
    return found


def make_workload(folder: Path, rows: int = 20, **changes: Any) -> None:
    folder.mkdir()
    documents.write(folder / "in" / "a.parquet", documents.rows(range(rows)))
    workloads.write_workload(
        folder, **{"limits": {"batch_rows": 10}, "rehearsal": {"latency_ms": [1, 2]}, **changes}
    )


def _answer_to(request: urllib.request.Request) -> tuple[Any] | None:
    """The server's answer; None where it asks to come again (SQLite is busy), as Prefect's clients do."""
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return (json.loads(answer.read() or b"null"),)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
            return None
        raise
