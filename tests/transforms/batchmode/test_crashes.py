"""kill -9 between any two steps: one provider batch, every row once, nothing paid twice."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from schemas.run import Manifest
from tests.support import documents
from tests.support.drive import drive
from tests.transforms.batchmode.conftest import FULL, Job
from tests.transforms.batchmode.crashes import step
from tests.transforms.batchmode.rewinding import finish_all, finished_later, killed_at_each_step

FOUR = Counter(f"d{n}" for n in range(4))
TEXTS = Counter(f"text d{n}" for n in range(4))
LONG = pytest.mark.skipif(
    os.environ.get("SWITCHGEAR_LONG") != "1", reason="takes half a minute: SWITCHGEAR_LONG=1, as in .ci/run"
)
pytestmark = pytest.mark.slow


@pytest.fixture(params=["openai", "anthropic", "gemini", "vertex"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def job(job: Job) -> Job:
    """Two batches of two rows: two ledgers, and an end in the middle of each."""
    table = documents.rows(FOUR, text=list(TEXTS))
    documents.write(job.folder / "in/a.parquet", table, row_group=2)
    return job


def assert_clean(job: Job, done: Manifest, where: str) -> None:
    assert done.state == "complete", (where, done.reason)
    assert job.accounted() == FOUR, where
    assert len(job.batches) == 1, f"{where}: exactly one provider batch"
    assert job.emulator.bill == TEXTS, f"{where}: nothing paid twice"
    assert not done.ambiguous, where
    assert job.cost() == 2 * FULL[job.provider], where
    assert all(call.end == "answered" for call in job.calls()), where


def test_a_process_killed_anywhere_in_the_submission_leaves_one_batch(job: Job) -> None:
    drive(job.workload, beam=False, collect=step("collect"), submit=lambda *_: None)
    assert not job.batches
    died: list[str] = []
    for where in killed_at_each_step(job, "submit"):
        died.append(where)
        assert_clean(job, finished_later(job), where)
    assert {"before submit", "after submit", "create intended.json", "create submitted.json"} <= set(died)
    assert ("create requests.jsonl" in died) == (job.provider == "vertex")


# Vertex's results lie in a bucket; what else differs is tried above.
@pytest.mark.parametrize("provider", ["anthropic", pytest.param("vertex", marks=LONG)], indirect=True)
def test_a_process_killed_anywhere_while_collecting_loses_and_repeats_nothing(job: Job) -> None:
    job.run()
    finish_all(job)
    died: list[str] = []
    for where in killed_at_each_step(job, "collect"):
        died.append(where)
        assert_clean(job, job.run(), where)
    assert {"result line", "ledger write", "create 0001.closed", "create ended.json"} <= set(died)


@pytest.mark.parametrize("provider", ["anthropic"], indirect=True)  # what differs is tried above
def test_a_process_killed_while_its_worker_leaves_tickets_submits_each_request_once(job: Job) -> None:
    tickets = job.output / "provider_batches/tickets"
    drive(job.workload, beam=False, collect=step("collect"), submit=lambda *_: None)
    for victim in sorted(tickets.glob("*/0001.json")):
        commits = job.output / "commits" / f"{victim.parent.name}.0001.json"
        assert commits.exists()
        _uncommit(job.output, victim.parent.name)  # the process died after the seal, before the commit
        job.run()
        assert len(list(tickets.glob("*/*.json"))) == 2, "the request found its ticket"
    finish_all(job)
    assert_clean(job, job.run(), "worker")


def _uncommit(output: Path, batch_id: str) -> None:
    (output / "commits" / f"{batch_id}.0001.json").unlink()
    for copies in ("failures", "compacted"):
        shutil.rmtree(output / copies, ignore_errors=True)
