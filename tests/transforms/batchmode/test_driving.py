"""Open jobs through the hours, on a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from schemas.errors import MissingSecretError
from schemas.load import load_workload
from schemas.run import Manifest, RunContext
from tests.support.drive import drive
from tests.transforms.batchmode.conftest import FULL, Job
from tests.transforms.batchmode.crashes import step
from transforms.batchmode.driving import open_provider_batches
from transforms.call.ledger import encode_frame
from transforms.call.ledger_file import LocalLedgers
from transforms.claim import open_claims

TEXTS = Counter(f"text d{n}" for n in range(6))


def run_at(job: Job, hours: float) -> Manifest:
    """A run whose driver's steps see the clock so many hours ahead."""
    ahead = timedelta(hours=hours)
    return drive(
        job.workload, beam=False, collect=step("collect", ahead=ahead), submit=step("submit", ahead=ahead)
    )


def said_at(job: Job, hours: float) -> list[str]:
    """What collecting says at that time; no worker runs."""
    loaded = load_workload(job.workload)
    run = RunContext("r", loaded.output_uri, loaded.workload.digest(), False, 8)
    return step("collect", ahead=timedelta(hours=hours))(loaded.workload, run)


def test_a_batch_is_cancelled_once_when_its_deadline_has_passed(job: Job) -> None:
    job.run()
    said_at(job, 23.9)
    assert not job.batches[0].cancel_asked
    assert "cancelled" in said_at(job, 24.1)[0]
    assert job.batches[0].cancel_asked
    job.batches[0].cancel_asked = False
    said_at(job, 25)
    assert not job.batches[0].cancel_asked


def test_a_batch_that_never_ends_is_given_up_and_its_requests_are_ambiguous(job: Job) -> None:
    job.run()
    run_at(job, 30)
    run_at(job, 47)
    assert job.records().get("ended") is None
    job.configure(limits={"batch_deadline_h": 1e-7})  # the workers' clock: what comes back goes online
    done = run_at(job, 48.1)
    assert (done.state, done.results) == ("complete", 6)
    assert [call.cause for call in done.ambiguous] == ["timeout"] * 6
    assert all(float(call.worst_amount or 0) > 0 for call in done.ambiguous)
    assert job.emulator.online == TEXTS
    assert job.cost() == 6 * FULL[job.provider]


def test_a_batch_that_the_provider_has_forgotten_is_given_up_too(job: Job) -> None:
    job.run()
    job.emulator.batches.clear()
    job.configure(limits={"batch_deadline_h": 1e-7})
    assert "could not be asked" in said_at(job, 1)[0]
    done = run_at(job, 48.1)
    assert (done.state, len(done.ambiguous)) == ("complete", 6)


def test_an_ended_batch_without_any_result_is_asked_again_and_nothing_goes_out_twice(job: Job) -> None:
    job.run()
    job.emulator.finish(job.batches[0])
    lines, job.batches[0].lines = job.batches[0].lines, []
    assert job.run().reason_class == "provider_batches"
    assert len(job.batches) == 1
    job.batches[0].lines = lines
    done = job.run()
    assert (done.state, job.emulator.bill, done.ambiguous) == ("complete", TEXTS, ())


def test_a_refusal_that_lasts_sends_the_documents_online_in_the_end(job: Job) -> None:
    job.emulator.refuse_creates = [(400, "invalid_request_error", "no batches for this model")] * 2
    job.run()
    job.run()
    done = job.run()
    assert (done.state, done.results, len(job.batches)) == ("complete", 6, 0)
    assert job.emulator.online == TEXTS
    assert not done.ambiguous


@pytest.mark.parametrize("provider", ["openai", "gemini"], indirect=True)  # Anthropic's don't fail as a whole
def test_a_batch_that_failed_as_a_whole_is_tried_once_more(job: Job) -> None:
    job.run()
    job.batches[0].status = {"openai": "failed", "gemini": "BATCH_STATE_FAILED"}[job.provider]
    job.run()
    assert [len(batch.requests) for batch in job.batches] == [6, 6]
    job.emulator.finish(job.batches[1])
    done = job.run()
    assert (done.state, job.emulator.bill) == ("complete", TEXTS)


@pytest.mark.parametrize("provider", ["gemini"], indirect=True)
@pytest.mark.parametrize("state", ["BATCH_STATE_EXPIRED", "BATCH_STATE_CANCELLED"])
def test_requests_of_a_gemini_job_that_ended_without_results_count_as_calls_of_unknown_end(
    job: Job, state: str
) -> None:
    job.run()
    job.batches[0].status = state
    job.run()
    assert [len(batch.requests) for batch in job.batches] == [6, 6]
    job.emulator.finish(job.batches[1])
    done = job.run()
    assert (done.state, done.results, len(done.ambiguous)) == ("complete", 6, 6)
    assert {row["cost"]["ambiguous_calls"] for row in job.rows("results")} == {1}
    assert job.emulator.bill == TEXTS


@pytest.mark.parametrize("provider", ["gemini"], indirect=True)
def test_a_gemini_job_that_succeeded_without_a_file_of_results_is_asked_again(job: Job) -> None:
    job.run()
    job.batches[0].status = "BATCH_STATE_SUCCEEDED"
    assert job.run().reason_class == "provider_batches"
    assert len(job.batches) == 1
    job.emulator.finish(job.batches[0])
    assert job.run().state == "complete"


def test_a_ledger_that_another_process_holds_is_collected_by_the_next_run(job: Job) -> None:
    job.run()
    job.emulator.finish(job.batches[0])
    (held, *_) = sorted(path.name for path in (job.output / "ledger").iterdir())
    other = LocalLedgers(str(job.output))

    async def hold() -> list[str]:
        log = await other.open(held)
        try:
            return await asyncio.to_thread(said_at, job, 0)
        finally:
            await log.close()

    said = asyncio.run(hold())
    other.close()
    assert "could not be collected" in said[0]
    done = job.run()
    assert (done.state, done.results, job.emulator.bill) == ("complete", 6, TEXTS)


@pytest.mark.parametrize("provider", ["openai"], indirect=True)
def test_answers_for_an_attempt_whose_calls_have_ended_are_the_next_ones_and_who_slept_may_commit_it(
    job: Job,
) -> None:
    """On object storage a worker may stand still just before its commit, long after it was taken over."""
    job.run()
    job.emulator.finish(job.batches[0])
    end_attempts(job, 1)
    records = {path: path.read_bytes() for path in job.output.glob("commits/*")}
    for path in records:
        path.unlink()
    assert "6 answered" in said_at(job, 0)[0]
    for path, record in records.items():
        path.write_bytes(record)
    done = job.run()
    assert (done.state, done.results, job.emulator.bill) == ("complete", 6, TEXTS)
    assert job.cost() == 3 * FULL[job.provider]


@pytest.mark.parametrize("provider", ["openai"], indirect=True)
def test_answers_for_an_attempt_whose_calls_have_ended_are_the_next_ones_whoever_commits_it(job: Job) -> None:
    job.run()
    job.emulator.finish(job.batches[0])
    end_attempts(job, 1)
    for folder in ("commits", "compacted", "failures"):
        for path in job.output.glob(f"{folder}/*"):
            path.unlink()
    taken_over = job.run()
    assert (taken_over.state, taken_over.failures) == ("incomplete", 6)
    assert {row["error_class"] for row in job.rows("failures")} == {"cancelled"}
    done = job.run()
    assert (done.state, done.results, job.emulator.bill) == ("complete", 6, TEXTS)
    assert job.cost() == 3 * FULL[job.provider]


def end_attempts(job: Job, attempt: int) -> None:
    """Ledgers on object storage say that an attempt's calls have ended."""
    for path in job.output.glob("ledger/*/calls.ledger"):
        path.write_bytes(path.read_bytes() + encode_frame({"kind": "ended", "attempt": attempt}))


@pytest.mark.parametrize("provider", ["openai"], indirect=True)
def test_nothing_is_collected_for_a_batch_that_a_worker_may_yet_commit(job: Job) -> None:
    """It made its calls, let go of the ledger, and stands still."""
    job.run()
    job.emulator.finish(job.batches[0])
    (held, *_) = sorted(path.name for path in (job.output / "ledger").iterdir())
    worker = open_claims(str(job.output))
    worker.take(held)
    committed = job.output / "commits" / f"{held}.0001.json"
    record = committed.read_bytes()
    committed.unlink()
    assert "could not be collected" in said_at(job, 0)[0]
    committed.write_bytes(record)
    worker.close()
    done = job.run()
    assert (done.state, done.results, job.emulator.bill) == ("complete", 6, TEXTS)
    assert job.cost() == 3 * FULL[job.provider]


def test_an_output_without_provider_batches_needs_no_keys_and_no_client(job: Job) -> None:
    job.configure(backend={"mode": "online"})
    loaded = load_workload(job.workload)
    run = RunContext("r", loaded.output_uri, loaded.workload.digest(), False, 8)
    assert open_provider_batches(loaded.workload, run, environ={}) is None
    job.configure()
    loaded = load_workload(job.workload)
    with pytest.raises(MissingSecretError):
        open_provider_batches(loaded.workload, run, environ={})
    rehearsed = RunContext("r", loaded.output_uri, loaded.workload.digest(), True, 8)
    assert open_provider_batches(loaded.workload, rehearsed, environ={}) is None
