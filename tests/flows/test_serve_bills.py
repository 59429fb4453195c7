"""Cancel, kills, repair and approval through `switchgear serve`; the vendor's journal is the bill."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow.dataset as ds
import pytest

from flows.ports import free_port
from tests.peers.mock_vendor import MockVendor
from tests.support import documents, workloads
from tests.support.serving import Served, processes, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.peer, pytest.mark.timeout(400)]
IN_FLIGHT = 4
SLOW = (300, 500)
long = pytest.mark.skipif(
    os.environ.get("SWITCHGEAR_LONG") != "1", reason="takes a minute or two: SWITCHGEAR_LONG=1, as in .ci/run"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found = Served(tmp_path_factory.mktemp("bills"), free_port(), {"OPENAI_API_KEY": "sk-not-a-key"})
    found.start()
    yield found
    found.stop()


class Job:
    """A workload over the mock vendor in a folder of the server's, and what it has left there."""

    def __init__(self, served: Served, vendor: MockVendor, name: str, rows: int, **changes: Any) -> None:
        self.served, self.vendor, self.name = served, vendor, name
        self.folder = served.folder / name
        self.folder.mkdir()
        self.documents = [f"doc-{n:04d}" for n in range(rows)]
        table = documents.rows(range(rows), text=self.documents)
        documents.write(self.folder / "in" / "a.parquet", table)
        backend = {**workloads.HOSTED, "base_url": vendor.base_url("openai")}
        values = {
            "backends": {"mini": backend, "other": {**backend, "model": "other-model"}},
            "limits": {"batch_rows": 10, "max_in_flight": IN_FLIGHT},
            **changes,
        }
        workloads.write_workload(self.folder, **values)

    def start(self, **parameters: Any) -> str:
        return self.served.submit("enrich/enrich", workload=f"{self.name}/w.toml", **parameters)

    def wait_for_commits(self, number: int) -> None:
        commits = self.folder / "out" / "commits"
        wait_for(lambda: len(list(commits.glob("*"))) >= number, f"{number} commits")

    def answered(self) -> Counter[str]:
        return self.vendor.answered(r"doc-\d{4}")

    def results(self) -> list[str]:
        table = ds.dataset(self.folder / "out" / "results").to_table(columns=["document_id"])
        return sorted(table["document_id"].to_pylist(), key=int)

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads(max((self.folder / "out/runs").glob("*/manifest.json")).read_text()))

    def is_whole(self) -> bool:
        return self.results() == [str(n) for n in range(len(self.documents))]


def answers(vendor: MockVendor, *failing: str, latency_ms: tuple[int, int] | None = None) -> None:
    slow = {} if latency_ms is None else {"latency_ms": latency_ms}
    down = [vendor.failure(503, contains=part) for part in failing]
    vendor.rules([*down, vendor.rule("fine", usage=(10, 5), **slow)])


def test_groups_that_failed_are_repaired_by_another_backend_and_the_rest_is_not_paid_again(
    served: Served, mock_vendor: MockVendor
) -> None:
    job = Job(served, mock_vendor, "repaired", 30, limits={"batch_rows": 10, "max_calls": 1})
    answers(mock_vendor, "doc-001")
    run_id = job.start(groups=3)

    state = served.ended(run_id)

    assert state["name"] == "Failed"
    assert state["message"].startswith("1 of 3 groups failed: Incomplete: 10 documents can be tried again")
    sentences = served.task_runs(run_id)
    assert sentences["group-0000"] == "Completed: 1 batch committed: 10 results, 0 failures"
    assert sentences["group-0001"].startswith("Failed: 10 of 10 documents have no answer (overloaded: ")
    assert "A retry does what is missing and nothing else: at most about $0." in sentences["group-0001"]
    found = served.api("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
    (link,) = [a["data"] for a in found if a["key"] == "enrich-repair"]
    assert job.manifest()["run_id"] in link
    assert "/deployments/deployment/" in link

    answers(mock_vendor)
    repaired = served.submit("repair/repair", output="repaired/out", backend="other")

    assert served.ended(repaired)["name"] == "Completed", served.state(repaired)["message"]
    assert job.answered() == Counter(job.documents)
    assert job.is_whole()
    models = Counter(e["body"]["model"] for e in mock_vendor.journal(status=200))
    assert models == {"gpt-5-mini": 20, "other-model": 10}


def test_cancel_stops_sending_settles_what_is_in_flight_and_retry_pays_for_nothing_twice(
    served: Served, mock_vendor: MockVendor
) -> None:
    job = Job(served, mock_vendor, "cancelled", 60)
    answers(mock_vendor, latency_ms=SLOW)
    run_id = job.start()
    job.wait_for_commits(1)

    before = len(mock_vendor.journal())
    served.cancel(run_id)

    assert served.ended(run_id)["name"] == "Cancelled"
    after = len(mock_vendor.journal())
    assert after - before <= 3 * IN_FLIGHT  # what was sent before the signal came, and no more
    manifest = job.manifest()
    assert (manifest["state"], manifest["reason_class"]) == ("incomplete", "batches")
    assert manifest["batches_committed"] == len(list((job.folder / "out/commits").glob("*")))
    answers(mock_vendor)
    served.retry(run_id)
    assert served.ended(run_id)["name"] == "Completed", served.state(run_id)["message"]
    assert job.answered() == Counter(job.documents)
    assert job.is_whole()


@long
def test_kill_9_of_server_beam_process_and_worker_in_turn_loses_nothing(
    served: Served, mock_vendor: MockVendor
) -> None:
    job = Job(served, mock_vendor, "killed", 100)
    answers(mock_vendor, latency_ms=SLOW)
    run_id = job.start()
    job.wait_for_commits(1)

    (server,) = processes("prefect.server.api.server:create_app", f"--port={served.port}")
    os.kill(server, signal.SIGKILL)
    job.wait_for_commits(2)  # the pipeline goes on without a server
    (beam,) = processes("pipelines.enrich", str(job.folder))
    os.kill(beam, signal.SIGKILL)

    state = served.ended_on_a_server_that_comes_back(run_id)
    assert state["name"] == "Failed"
    assert "it was killed by signal SIGKILL" in state["message"]

    served.retry(run_id)
    job.wait_for_commits(4)
    assert served.process is not None
    (worker,) = processes("prefect", "worker", "start", parent=served.process.pid)
    os.kill(worker, signal.SIGKILL)
    assert served.ended(run_id)["name"] == "Crashed"

    answers(mock_vendor)
    served.retry(run_id)
    assert served.ended(run_id)["name"] == "Completed", served.state(run_id)["message"]
    assert job.is_whole()
    answered = job.answered()
    assert set(answered) == set(job.documents)
    twice = [name for name, times in answered.items() if times > 1]
    assert len(twice) <= IN_FLIGHT, "only what was in flight when the Beam process was killed"
    assert max(answered.values()) <= 2


def test_a_run_that_needs_an_approval_waits_without_a_process_and_goes_on_when_it_has_it(
    served: Served, mock_vendor: MockVendor
) -> None:
    job = Job(served, mock_vendor, "approved", 20, review={"quote_above": "0"}, budget={"amount": "1"})
    answers(mock_vendor)
    run_id = job.start()

    wait_for(lambda: served.state(run_id)["name"] == "Suspended", "it never asked")
    wait_for(lambda: not processes("prefect.engine", environ=run_id), "its process still runs")
    assert mock_vendor.journal() == []
    answer = served.resume(run_id, decision="approve", up_to=2.5, by="Mara", reason="it is worth it")

    assert answer["status"] == "ACCEPT"
    assert served.ended(run_id)["name"] == "Completed"
    assert job.answered() == Counter(job.documents)
    (approval,) = job.manifest()["approvals"]
    assert (approval["by"], approval["reason"], approval["up_to"]) == ("Mara", "it is worth it", "2.5")
    assert job.manifest()["budget_amount"] == "2.5"


@long
def test_a_run_whose_process_and_worker_died_at_once_is_shown_as_crashed_within_two_minutes(
    served: Served, mock_vendor: MockVendor
) -> None:
    job = Job(served, mock_vendor, "vanished", 60)
    answers(mock_vendor, latency_ms=SLOW)
    run_id = job.start()
    job.wait_for_commits(1)
    assert served.process is not None
    (worker,) = processes("prefect", "worker", "start", parent=served.process.pid)
    (engine,) = processes("prefect.engine", environ=run_id)

    for pid in (worker, engine):
        os.kill(pid, signal.SIGKILL)

    state = served.ended(run_id)
    assert state["name"] == "Crashed"
    assert "Nothing was heard of this run for 90 s" in state["message"]
    answers(mock_vendor)
    served.retry(run_id)
    assert served.ended(run_id)["name"] == "Completed", served.state(run_id)["message"]
    assert job.is_whole()


def test_no_process_of_a_run_is_left(served: Served) -> None:
    wait_for(lambda: not processes("pipelines.enrich", str(served.folder)), "a Beam process is left")
