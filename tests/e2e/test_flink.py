"""Runs on a real Flink: embedded, and a session cluster with two task managers and a worker pool."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from infra.flink.cluster import DISTRIBUTION, Cluster, session_cluster
from tests.peers.mock_vendor import REPOSITORY, MockVendor
from tests.support.killing import PATTERN, Job, check_finished, make_job

pytestmark = [pytest.mark.slow, pytest.mark.peer, pytest.mark.timeout(600)]
_COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]
_KEY = {"OPENAI_API_KEY": "sk-test-not-a-key", "PYTHONWARNINGS": "ignore"}
_COLUMNS = ["document_id", "answer", "gen_ai", "lineage"]


def _missing() -> str | None:
    if shutil.which("java") is None:
        return "java is missing: install a Java 17 runtime, then `make flink`"
    if not (DISTRIBUTION.parent / "job-server.jar").is_file() or not (DISTRIBUTION / "lib").is_dir():
        return "Flink is missing: make flink"
    return None


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    why = _missing()
    if why is not None:
        pytest.skip(why)
    with session_cluster(task_managers=2, slots=1, environ={**os.environ, **_KEY}) as running:
        yield running


def start(
    job: Job, *flags: str, engine: str = "flink", output: Path | None = None
) -> subprocess.Popen[bytes]:
    """`switchgear run --engine flink` as a user starts it, in a process of its own."""
    log = (job.workload.parent / "run.log").open("ab")
    into = ["--output", str(output or job.output)]
    arguments = ["run", str(job.workload), *into, "--engine", engine, "--json", "--", *flags]
    environ = {**os.environ, **_KEY}
    return subprocess.Popen(
        [*_COMMAND, *arguments], cwd=REPOSITORY, env=environ, stdout=subprocess.PIPE, stderr=log
    )


def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    printed, _ = process.communicate(timeout=400)
    return json.loads(printed)["manifest"]


def wait_until(said: str, happened: Any, limit_s: float = 200) -> None:
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


def commits(job: Job) -> int:
    return len(list((job.output / "commits").glob("*.json")))


def results(output: Path) -> list[dict[str, Any]]:
    """What the rows say but for when and by which run they were made, in the documents' order."""
    table = ds.dataset(output / "results", format="parquet", partitioning="hive").to_table(_COLUMNS)
    found = table.sort_by("document_id").to_pylist()
    for row in found:
        for name in ("run_id", "latency_ms", "answered_at"):
            del row["lineage"][name]
        del row["gen_ai"]["response"]["id"]
    return found


def job_of(folder: Path, vendor: MockVendor, size: int, **options: Any) -> Job:
    return make_job(folder, vendor, 0, module="tests.support.drive", size=size, **options)


def test_a_cluster_gives_row_for_row_what_this_machine_gives(
    tmp_path: Path, mock_vendor: MockVendor, cluster: Cluster
) -> None:
    job = job_of(tmp_path, mock_vendor, 300, batch_rows=20, latency_ms=(0, 5))
    there, here = tmp_path / "there", tmp_path / "here"
    said = finish(start(job, *cluster.flags(parallelism=2), output=there))
    assert (said["state"], said["results"]) == ("complete", 300)
    assert said["batches_committed_by_this_run"] == len(list((there / "commits").iterdir())) == 16
    assert finish(start(job, engine="local", output=here))["state"] == "complete"
    assert results(there) == results(here)


def test_a_task_manager_killed_in_mid_run_costs_no_answered_row(
    tmp_path: Path, mock_vendor: MockVendor, cluster: Cluster
) -> None:
    job = job_of(tmp_path, mock_vendor, 1500, batch_rows=30, in_flight=16, latency_ms=(100, 200))
    process = start(job, *cluster.flags(parallelism=2))
    wait_until("the run got to work", lambda: commits(job) >= 4)
    cluster.kill_task_manager(1)
    said = finish(process)
    assert commits(job) < 60
    answered = mock_vendor.answered(PATTERN)
    assert max(answered.values()) == 1, "no document was answered twice"
    if said["state"] != "complete":
        assert said["reason_class"] == "batches"
    job.kills = 1  # what was in flight on that task manager may be unknown
    check_finished(job, job.finish())


def test_an_embedded_flink_is_cancelled_within_seconds_and_goes_on_from_there(
    tmp_path: Path, mock_vendor: MockVendor
) -> None:
    if (why := _missing()) is not None:
        pytest.skip(why)
    job = job_of(tmp_path, mock_vendor, 1200, batch_rows=30, in_flight=8, latency_ms=(100, 200))
    process = start(job)
    wait_until("the run got to work", lambda: commits(job) >= 2)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    process.communicate(timeout=120)
    # Workers end within 18 s or are cancelled, the launcher kills after 20, then the run is settled: 7 s in
    # all on an idle machine, and several times that on one that is at work on other things.
    assert time.monotonic() - asked < 60
    assert process.returncode != 0
    sent = len(mock_vendor.journal())
    assert sent < 1200
    children = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(job.workload) not in children, "nothing of the run goes on"
    check_finished(job, job.finish())


def test_a_cluster_stops_sending_within_seconds_when_the_run_is_cancelled(
    tmp_path: Path, mock_vendor: MockVendor, cluster: Cluster
) -> None:
    job = job_of(tmp_path, mock_vendor, 1500, batch_rows=30, in_flight=8, latency_ms=(100, 200))
    process = start(job, *cluster.flags(parallelism=1))
    wait_until("the run got to work", lambda: commits(job) >= 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    sent = len(mock_vendor.journal())
    wait_until("the job has left the cluster", lambda: cluster.overview()["jobs-running"] == 0, 60)
    assert len(mock_vendor.journal()) == sent < 1500
    check_finished(job, job.finish())
