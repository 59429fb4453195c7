"""Runs on a real Flink: embedded, and a session cluster with two task managers and a worker pool of each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.flink.cluster import SHORT_LIVED, Cluster, session_cluster
from tests.peers.mock_vendor import REPOSITORY, MockVendor
from tests.support import documents, flink, workloads
from tests.support.drive import drive
from tests.support.killing import PATTERN, Job, check_finished, make_job
from tests.transforms.embed.tiny_model import write_tiny_model
from transforms.embed.embedder import COMPANY_TOLERANCE

pytestmark = [pytest.mark.slow, pytest.mark.peer, pytest.mark.timeout(600)]
_COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]
_KEY = {"OPENAI_API_KEY": "sk-test-not-a-key", "PYTHONWARNINGS": "ignore"}
_OF_A_RUN = ("run_id", "latency_ms", "answered_at")
_OF_A_DEVICE = ("device_seconds", "energy_wh_low", "energy_wh_high")


@pytest.fixture(autouse=True)
def _server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs report to one Prefect, and their JVMs, which live for seconds, don't optimise."""
    if (why := flink.missing()) is not None:
        pytest.skip(why)
    monkeypatch.setenv("PREFECT_API_URL", request.getfixturevalue("prefect_server"))
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", " ".join(SHORT_LIVED))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    why = flink.missing()
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


def at_work(job: Job, batches: int, *flags: str) -> subprocess.Popen[bytes]:
    """The same, when it has committed so many batches."""
    process = start(job, *flags)
    wait_until("the run got to work", lambda: commits(job) >= batches)
    return process


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


def rows(output: Path, kind: str) -> list[dict[str, Any]]:
    """Results or failures without when, by which run and how fast they were made, in the documents' order."""
    found = [
        row
        for file in sorted((output / kind).rglob("*.parquet"))
        for row in pq.ParquetFile(file).read().to_pylist()
    ]
    for row in found:
        row["lineage"] = {name: value for name, value in row["lineage"].items() if name not in _OF_A_RUN}
        row["gen_ai"]["response"].pop("id")
        row["cost"] = {name: value for name, value in row["cost"].items() if name not in _OF_A_DEVICE}
    return sorted(found, key=lambda row: (row["document_id"], row["lineage"]["route"] or ""))


def vectors(found: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """The embeddings of rows that have one, taken out of them."""
    return np.array([row.pop("embedding") for row in found if row.get("embedding") is not None])


def job_of(folder: Path, vendor: MockVendor, size: int, **options: Any) -> Job:
    return make_job(folder, vendor, 0, run=drive, size=size, **options)


def mixed(folder: Path, vendor: MockVendor) -> Job:
    """Documents for a hosted model and for an embedder, and some that have no result, for several reasons."""
    size, limits = 300, {"batch_rows": 20, "max_in_flight": 16}
    job = job_of(folder, vendor, size, batch_rows=20, latency_ms=(0, 5))
    model = write_tiny_model(folder / "model")
    workloads.write_workload(
        folder,
        backends={
            "mini": {**workloads.HOSTED, "base_url": vendor.base_url("openai")},
            "emb": {**workloads.EMBEDDER, "model_path": str(model), "compute_dtype": "float32"},
        },
        routes=[
            {"name": "ask", "when": "kind = 'ask'", "backends": ["mini"], "prompt": "topic"},
            {"name": "vec", "when": "kind = 'embed'", "backends": ["emb"]},
        ],
        prompts={"topic": {"template": "{{ text }}"}},
        policy={"reject": [{"name": "no_secrets", "when": "size = 7", "reason": "secret"}]},
        limits=limits,
        budget={"amount": "100"},
    )
    kinds = ["ask", "embed", "ask", "embed", "neither"]
    for number, name in enumerate("ab"):
        ids = range(number * size // 2, (number + 1) * size // 2)
        texts = [None if n % 50 == 3 else f"document {n} of many: {'word ' * (n % 40)}" for n in ids]
        table = documents.rows(
            [f"doc-{n}" for n in ids],
            text=texts,
            kind=[kinds[n % 5] for n in ids],
            size=[n % 20 for n in ids],
        )
        documents.write(folder / "in" / f"{name}.parquet", table, row_group=40)
    return job


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """What a process has taken so far (proc(5): utime and stime)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_cluster_gives_row_for_row_what_this_machine_gives(
    tmp_path: Path, mock_vendor: MockVendor, cluster: Cluster
) -> None:
    job = mixed(tmp_path, mock_vendor)
    there, here = tmp_path / "there", tmp_path / "here"
    idle = [cpu_seconds(pool) for pool in cluster.pools]
    said = finish(start(job, *cluster.flags(parallelism=2), output=there))
    work = [cpu_seconds(pool) - before for pool, before in zip(cluster.pools, idle, strict=True)]
    assert min(work) > 0.2, f"both pools have worked: 0.5 s where nothing is compiled anew, not {work}"
    assert said["batches_committed_by_this_run"] == len(list((there / "commits").iterdir())) == 16
    own = finish(start(job, engine="local", output=here))
    counted = ("state", "reason", "rows_in", "results_by_route", "failures_by_route", "amount", "ambiguous")
    assert {name: said[name] for name in counted} == {name: own[name] for name in counted}
    results = rows(there, "results"), rows(here, "results")
    embeddings = vectors(results[0]), vectors(results[1])
    np.testing.assert_allclose(*embeddings, atol=COMPANY_TOLERANCE["float32"])
    assert results[0] == results[1]
    failures = rows(there, "failures")
    assert failures == rows(here, "failures")
    assert Counter(row["error_class"] for row in failures) == {
        "null_text": 6, "policy_rejected": 15, "no_route": 60
    }  # fmt: skip
    assert (len(results[0]), len(embeddings[0]), len(failures)) == (219, 114, 81)


def test_a_task_manager_killed_in_mid_run_costs_no_answered_row(
    tmp_path: Path, mock_vendor: MockVendor, cluster: Cluster
) -> None:
    job = job_of(tmp_path, mock_vendor, 1500, batch_rows=30, in_flight=16, latency_ms=(100, 200))
    process = at_work(job, 4, *cluster.flags(parallelism=2))
    cluster.kill_task_manager(1)
    said = finish(process)
    assert commits(job) < 60
    answered = mock_vendor.answered(PATTERN)
    assert max(answered.values()) == 1, "no document was answered twice"
    if said["state"] != "complete":
        assert said["reason_class"] == "batches"
    job.kills = 1  # what was in flight on that task manager may be unknown
    check_finished(job, job.finish())


def test_a_host_that_is_lost_with_its_pool_costs_at_most_the_calls_in_flight(
    tmp_path: Path, mock_vendor: MockVendor, cluster: Cluster
) -> None:
    job = job_of(tmp_path, mock_vendor, 1500, batch_rows=30, in_flight=16, latency_ms=(100, 200))
    process = at_work(job, 4, *cluster.flags(parallelism=2))
    cluster.kill_host(0)
    said = finish(process)
    assert said["state"] == "complete" or said["reason_class"] == "batches", said["reason"]
    job.kills = 1
    check_finished(job, job.finish())


def test_an_embedded_flink_is_cancelled_within_seconds_and_goes_on_from_there(
    tmp_path: Path, mock_vendor: MockVendor
) -> None:
    job = job_of(tmp_path, mock_vendor, 1200, batch_rows=30, in_flight=8, latency_ms=(100, 200))
    process = at_work(job, 2)
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
    process = at_work(job, 2, *cluster.flags(parallelism=1))
    process.send_signal(signal.SIGINT)
    asked = time.time()
    process.communicate(timeout=120)
    wait_until("the job has left the cluster", lambda: cluster.overview()["jobs-running"] == 0, 60)
    sent = [call["timestamp"] / 1000 for call in mock_vendor.journal()]
    assert len(sent) < 1500
    assert max(sent) - asked < 60, "as above: 20 s and less where nothing else is at work"
    check_finished(job, job.finish())
