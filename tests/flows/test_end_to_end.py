"""The whole of it: the command, the flow on a real server, real workers, rehearsed models, real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.backstage import Backstage
from flows.cli import app
from flows.corpus import write_corpus
from tests.support import documents, workloads
from transforms.output_lock import is_locked
from transforms.store import open_store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240.0
TOPICS = 40
REJECTED = 5
REFUSED_SHARE = 0.2


@dataclass
class Place:
    """A folder (with a space in its name) that holds a workload, its input and its output."""

    folder: Path

    @property
    def workload(self) -> Path:
        return self.folder / "w.toml"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def run(self, command: str, *arguments: object) -> Result:
        return CliRunner().invoke(app, [command, *(str(a) for a in arguments)])

    def answer(self, command: str, *arguments: object) -> Any:
        result = self.run(command, *arguments, "--json")
        assert result.exit_code in (0, 3), result.output
        return json.loads(result.stdout)

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Every result, failure and commit with its time of change and its bytes."""
        return {
            str(path.relative_to(self.output)): (path.stat().st_mtime_ns, path.read_bytes())
            for kind in ("results", "failures", "commits", "ledger")
            for path in sorted((self.output / kind).rglob("*"))
            if path.is_file()
        }

    def ids(self, kind: str) -> list[str]:
        return sorted(
            ds.dataset(self.output / kind).to_table(columns=["document_id"])["document_id"].to_pylist()
        )


def make_place(folder: Path, rows: int = TOPICS, **changes: Any) -> Place:
    folder.mkdir()
    table = documents.rows(range(rows), kind=["secret" if n < REJECTED else "note" for n in range(rows)])
    documents.write(folder / "in" / "a.parquet", table.slice(0, rows // 2), row_group=10)
    documents.write(folder / "in" / "b.parquet", table.slice(rows // 2))
    values: dict[str, Any] = {
        "limits": {"batch_rows": 10},
        "policy": {"reject": [{"name": "no_secrets", "when": "kind = 'secret'", "reason": "secret"}]},
        "rehearsal": {"latency_ms": [1, 2], "faults": {"refusal": REFUSED_SHARE}},
        "budget": {"amount": "1"},
        **changes,
    }
    workloads.write_workload(folder, **values)
    return Place(folder)


@pytest.fixture
def server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tests' server as one that the user has configured."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    return prefect_server


@pytest.fixture
def place(tmp_path: Path, server: str) -> Place:
    return make_place(tmp_path / "a folder")


def test_a_run_ends_with_every_document_in_results_or_failures_and_a_second_one_touches_nothing(
    place: Place,
) -> None:
    first = place.run("run", place.workload, "--rehearsal", "--groups", 2, "--parallel-groups", 2)

    assert first.exit_code == 0, first.output
    assert "Rehearsal: Complete" in first.stdout
    failed = place.ids("failures")
    assert len(failed) > REJECTED
    assert sorted(place.ids("results") + failed) == sorted(str(n) for n in range(TOPICS))
    before = place.files()
    assert before

    second = place.answer("run", place.workload, "--rehearsal")

    assert second["nothing_due"] is True
    assert second["manifest"]["calls_by_this_run"] == 0
    assert place.files() == before
    assert "Nothing was due: no call was made" in place.run("run", place.workload, "--rehearsal").stdout


def test_what_a_run_left_is_shown_by_status_and_failures(place: Place) -> None:
    manifest = place.answer("run", place.workload, "--rehearsal")["manifest"]

    status = place.answer("status", place.output)
    assert status["state"] == "complete"
    assert status["manifest"] == manifest
    lines = place.run("failures", place.output, "--json").stdout.splitlines()
    assert sorted(json.loads(line)["document_id"] for line in lines) == place.ids("failures")
    rejected = place.run("failures", place.output, "--class", "policy_rejected").stdout.splitlines()
    assert len(rejected) == REJECTED
    report = (place.output / "runs" / manifest["run_id"] / "report.html").read_text()
    assert "Rehearsal" in report


def test_retry_asks_again_for_the_included_class_and_for_nothing_else(place: Place) -> None:
    first = place.answer("run", place.workload, "--rehearsal")["manifest"]
    results = {name: data for name, data in place.files().items() if name.startswith("results")}
    refused = sum(g["count"] for g in first["failure_groups"] if g["error_class"] == "refused")
    assert refused

    again = place.answer("retry", place.output, "--include", "refused")

    assert again["nothing_due"] is False
    assert refused <= again["manifest"]["calls_by_this_run"] <= refused * 2
    assert results.items() <= place.files().items()
    assert sorted(place.ids("results") + place.ids("failures")) == sorted(str(n) for n in range(TOPICS))


def test_a_budget_that_is_used_up_exits_3_and_a_raised_one_goes_on_from_there(place: Place) -> None:
    workloads.write_workload(
        place.folder,
        **{"limits": {"batch_rows": 10}, "rehearsal": {"latency_ms": [1, 2]}, "budget": {"amount": "0.015"}},
    )
    first = place.run("run", place.workload, "--rehearsal")
    assert first.exit_code == 3
    assert "budget" in first.stdout
    done = place.ids("results")
    assert 0 < len(done) < TOPICS

    workloads.write_workload(
        place.folder,
        **{"limits": {"batch_rows": 10}, "rehearsal": {"latency_ms": [1, 2]}, "budget": {"amount": "5"}},
    )
    second = place.answer("run", place.workload, "--rehearsal")["manifest"]

    assert second["state"] == "complete"
    assert second["calls_by_this_run"] == TOPICS - len(done)
    assert place.ids("results") == sorted(str(n) for n in range(TOPICS))


def test_beam_repeating_its_bundles_gives_the_same_rows_and_no_extra_call(place: Place) -> None:
    arguments = (place.workload, "--rehearsal", "--", "--direct_runner_bundle_repeat=2")
    result = place.run("run", "--json", *arguments)

    manifest = json.loads(result.stdout)["manifest"]
    assert manifest["state"] == "complete"
    assert manifest["calls_by_this_run"] == TOPICS - REJECTED
    assert sorted(place.ids("results") + place.ids("failures")) == sorted(str(n) for n in range(TOPICS))


@pytest.mark.parametrize("flag", ["--runner=DirectRunner", "--direct_running_mode=multi_threading"])
def test_an_unsafe_runner_is_refused_before_anything_is_written(flag: str, place: Place) -> None:
    result = place.run("run", place.workload, "--rehearsal", "--", flag)

    assert result.exit_code == 2
    assert "is refused" in result.stderr
    assert not place.output.exists()


def test_two_runs_at_once_over_one_output_are_refused_by_the_second(place: Place) -> None:
    from schemas.load import load_workload
    from transforms.output import open_output

    with open_output(load_workload(place.workload), rehearsal=True):
        result = place.run("run", place.workload, "--rehearsal")

    assert result.exit_code == 2
    assert "another run is at work" in result.stderr


def test_a_rehearsed_output_takes_no_real_results(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.run("run", place.workload, "--rehearsal")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-key")

    result = place.run("run", place.workload)

    assert result.exit_code == 2
    assert "holds rehearsed results" in result.stderr


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.05)


def workers_of(place: Place) -> list[int]:
    """The processes whose command line names the place's workload as a worker does."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"pipelines.enrich" in line and str(place.workload).encode() in line:
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_kill_9_of_the_run_takes_its_worker_along_and_the_same_command_finishes_the_job(
    tmp_path: Path, server: str
) -> None:
    changes = {"rehearsal": {"latency_ms": [150, 250]}, "limits": {"batch_rows": 10, "max_in_flight": 2}}
    place = make_place(tmp_path / "a folder", rows=60, **changes)
    said = tmp_path / "said"
    with said.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", str(place.workload), "--rehearsal"],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": server},
            stdout=log,
            stderr=log,
        )

    def has_committed() -> bool:
        assert process.poll() is None, f"it ended before it could be killed: {said.read_text()[-2000:]}"
        return any((place.output / "commits").glob("*.json"))

    wait_for(has_committed, "no batch was ever committed")
    assert len(workers_of(place)) == 1

    process.send_signal(signal.SIGKILL)
    process.wait()

    wait_for(lambda: not workers_of(place), "the worker goes on without its launcher")
    wait_for(lambda: not is_locked(open_store(str(place.output))), "a dead worker holds the lock")
    assert place.answer("status", place.output)["state"] == "interrupted"
    committed = len(list((place.output / "commits").glob("*.json")))
    assert committed < 6
    manifest = place.answer("run", place.workload, "--rehearsal")["manifest"]
    assert manifest["state"] == "complete"
    assert manifest["batches_committed_by_this_run"] == 6 - committed
    assert sorted(place.ids("results") + place.ids("failures")) == sorted(str(n) for n in range(60))


@pytest.mark.usefixtures("server")
def test_the_demo_runs_shows_its_rows_searches_and_is_done_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "my demo"
    few = [metadata.distribution(name) for name in ("tenacity", "rich", "aiohttp")]
    backstage = replace(
        Backstage.real(), write_documents=lambda path: write_corpus(path, distributions=few).documents
    )

    first = CliRunner().invoke(app, ["demo", "--dir", str(folder)], obj=backstage)
    second = CliRunner().invoke(app, ["demo", "--dir", str(folder), "--json"], obj=backstage)

    assert first.exit_code == 0, first.output
    assert "ANTHROPIC_API_KEY and OPENAI_API_KEY are not set" in first.stderr
    assert "Rows by route" in first.stdout
    assert "Cost by backend" in first.stdout
    assert "results/route=classify" in first.stdout
    answer = json.loads(second.stdout)
    assert answer["nothing_due"] is True
    nearest = answer["searches"]["wait between attempts, longer each time"]
    assert all(hit["columns"]["package"] == "tenacity" for hit in nearest)
    assert nearest[0]["score"] > 0.5
