"""From an event of a run to somebody's ear: the example automations on a real server, with a real webhook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.serving import Served, make_workload, wait_for

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(480)]

_BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
block = CustomWebhookNotificationBlock(
    name="on-call", url=sys.argv[1], json_data={"subject": "{{subject}}", "body": "{{body}}"}
)
block.save("on-call", overwrite=True)
"""


@pytest.fixture
def told() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook, and what it was told."""
    heard: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", heard
    server.shutdown()
    server.server_close()


def operate(served: Served, *command: str) -> str:
    """Run a command as an operator does, against the server."""
    environment = {
        **os.environ,
        "PREFECT_API_URL": f"http://127.0.0.1:{served.port}/api",
        "DO_NOT_TRACK": "1",
    }
    environment["PREFECT_HOME"] = str(served.folder / "operator-home")
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_that_is_left_incomplete_wakes_somebody_once(
    served: Served, told: tuple[str, list[dict[str, Any]]]
) -> None:
    address, heard = told
    operate(served, "-c", _BLOCK, address)
    again = [
        operate(served, "infra/operate/automations.py", "--urgent", "custom-webhook/on-call") for _ in "12"
    ]
    assert set(again) == {"applied: switchgear: a run needs somebody -> custom-webhook/on-call\n"}
    found = served.api("POST", "/automations/filter", {})
    assert [a["name"] for a in found].count("switchgear: a run needs somebody") == 1
    make_workload(
        served.folder / "told",
        rehearsal={"latency_ms": [1, 2], "faults": {"server_error": 1.0}},
        limits={"batch_rows": 10, "max_calls": 1},
    )

    run_id = served.submit("enrich/enrich", workload="told/w.toml", rehearsal=True)

    assert served.ended(run_id)["type"] == "FAILED"
    wait_for(lambda: len(heard) >= 2, "nobody was told")
    by_subject = {message["subject"]: message["body"] for message in heard}
    assert set(by_subject) == {"demo: switchgear.run.incomplete", "demo: switchgear.failures.20"}
    assert len(heard) == 2
    sentence, where, page = by_subject["demo: switchgear.run.incomplete"].splitlines()
    assert sentence.startswith("Rehearsal: Incomplete: 20 documents can be tried again")
    assert where.endswith(f"(a rehearsal: nothing is paid), output {served.folder}/told/out")
    assert page == f"http://127.0.0.1:{served.port}/v2/runs/flow-run/{run_id}"
    assert by_subject["demo: switchgear.failures.20"].startswith("100.0 % of 20 documents have failed (20).")
