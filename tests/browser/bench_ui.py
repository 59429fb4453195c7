"""What the view costs: a run of 200 groups with Prefect and without, and how fast the UI's pages are then.

    python -m tests.browser.bench_ui --groups 200 --seconds 3 --at-once 8 [--database postgresql]

Each group's worker is a small script that waits `--seconds`, far less than a real group works: so the share
that Prefect adds is larger here than in life. Both ways the same workers are started by the same code, and
what is compared is wall time. A page is loaded, in a headless Chromium, when it shows what one comes for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows.ports import free_port
from tests.browser import chromium
from tests.flows.fake_run import FakeRun
from tests.support import postgres

MOST_SHARE = 0.05
MOST_PAGE_S = 3.0


@contextmanager
def server(folder: Path, database: str) -> Iterator[str]:
    """Prefect's server as `switchgear serve` starts it, on SQLite or PostgreSQL; its address."""
    from flows.server import server_command

    with ExitStack() as closers:
        environment = {**os.environ, "PREFECT_HOME": str(folder / "home"), "DO_NOT_TRACK": "1"}
        environment["PREFECT_SERVER_ANALYTICS_ENABLED"] = "0"
        if database == "postgresql":
            cluster = closers.enter_context(postgres.cluster(folder / "postgres"))
            environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = cluster.url
        port = free_port()
        environment["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        log = closers.enter_context(open(folder / "server.log", "wb"))
        process = subprocess.Popen(server_command(port), env=environment, stdout=log, stderr=log)
        closers.callback(process.wait)
        closers.callback(process.terminate)
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"


def fake(folder: Path, groups: int, seconds: float) -> FakeRun:
    """A run of so many groups whose workers wait."""
    from tests.flows.conftest import _MANIFEST

    folder.mkdir()
    made = FakeRun(folder, groups, _MANIFEST)
    script = (folder / "worker.py").read_text()
    (folder / "worker.py").write_text(script.replace("def say(", f"time.sleep({seconds})\ndef say(", 1))
    return made


def without_prefect(folder: Path, groups: int, seconds: float, at_once: int) -> float:
    """Wall seconds of the groups alone."""
    from flows.groups import Crew, GroupJob, work_on_group
    from schemas.run import RunContext

    run = fake(folder, groups, seconds)
    context = RunContext("20261122T091500Z-1f3a9c", str(folder / "out"), "w" * 64, True, 8)
    steps = run.steps()
    from schemas.load import load_workload

    steps.plan(load_workload(run.workload), context, [])
    (folder / "context.json").write_text('{"run_id": "20261122T091500Z-1f3a9c"}')

    def work(group: int) -> None:
        job = GroupJob(
            group, groups, context.run_id, "", "", str(folder / "context.json"), str(folder / "log"), None
        )
        outcome = work_on_group(job, steps.arguments(job), Crew(), lambda _: None, lambda _: None)
        assert outcome.is_good, outcome

    started = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(work, range(groups)))
    return time.monotonic() - started


def with_prefect(folder: Path, groups: int, seconds: float, at_once: int) -> tuple[float, str]:
    """Wall seconds of the flow run, and its id."""
    from flows.enrich import enrich
    from flows.parameters import EnrichParameters
    from flows.steps import Surroundings, bound

    run = fake(folder, groups, seconds)
    form = EnrichParameters(
        workload=str(run.workload), groups=groups, parallel_groups=at_once, rehearsal=True
    )
    started = time.monotonic()
    with bound(Surroundings(run.steps())):
        state = enrich(form, return_state=True)
    assert state.is_completed(), state
    return time.monotonic() - started, str(state.state_details.flow_run_id)


def pages(url: str, run_id: str, profile: Path) -> dict[str, float]:
    """Seconds until each page shows what one comes for; the program itself is there already."""
    run = f"/v2/runs/flow-run/{run_id}"
    wanted = {
        "runs": ("/v2/runs", f"a[href*='{run_id}']"),
        "flow run": (run, "[role=tab]:has-text('Artifacts')"),
        "its task runs": (f"{run}?tab=TaskRuns", "a[href*='/task-run/']"),
        "its artifacts": (f"{run}?tab=Artifacts", "a[href*='/artifacts/key/']"),
        "events": ("/v2/events", "a[href*='/events/event/']"),
    }
    found = {}
    with chromium.browser_page(profile, url) as ui:
        ui.open("/v2/dashboard")
        for name, (path, what) in wanted.items():
            started = time.monotonic()
            ui.page.goto(url + path)
            ui.page.locator(what).first.wait_for()
            found[name] = time.monotonic() - started
            ui.picture(f"bench-{name.replace(' ', '-')}")
    return found


def main() -> None:
    """Measure, print, and end with 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="switchgear-"))
    folder.chmod(0o755)
    try:
        with server(folder, given.database) as url:
            os.environ |= {"PREFECT_API_URL": f"{url}/api", "PREFECT_HOME": str(folder / "client")}
            with_prefect(folder / "warm", 2, 0.0, 2)
            alone = without_prefect(folder / "alone", given.groups, given.seconds, given.at_once)
            seen, run_id = with_prefect(folder / "seen", given.groups, given.seconds, given.at_once)
            found = pages(url, run_id, folder / "profile")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    share = seen / alone - 1
    print(f"{given.database}, {given.groups} groups of {given.seconds:g} s, {given.at_once} at once:")
    print(f"  alone {alone:.1f} s, with Prefect {seen:.1f} s: {share:+.1%} (at most {MOST_SHARE:+.0%})")
    for name, seconds in found.items():
        print(f"  {name}: {seconds:.2f} s (under {MOST_PAGE_S:g} s)")
    sys.exit(share > MOST_SHARE or max(found.values()) > MOST_PAGE_S)


if __name__ == "__main__":
    main()
