"""`switchgear quote` and the quote that a run is held to, around provider batches."""

from __future__ import annotations

from decimal import Decimal

import pytest

from flows.quote_tables import due_sentence
from flows.steps import real_steps
from flows.tables import compared
from schemas.load import load_workload
from schemas.run import Manifest
from tests.support import documents
from tests.support.drive import drive
from tests.transforms.batchmode.conftest import FULL, Job
from transforms.quote.build import quote_workload
from transforms.quote.compare import Comparison
from transforms.quote.values import Quote

pytestmark = pytest.mark.parametrize("provider", ["openai"], indirect=True)  # the records are all the same


@pytest.fixture
def job(job: Job) -> Job:
    write(job, "a")
    return job


def write(job: Job, name: str) -> None:
    """A file of 40 documents."""
    ids = [f"{name}{n:02}" for n in range(40)]
    table = documents.rows(ids, text=[f"some words about the matter {n}" for n in ids], kind=["a"] * 40)
    documents.write(job.folder / f"in/{name}.parquet", table, row_group=20)


def quote(job: Job) -> Quote:
    return quote_workload(load_workload(job.workload), job.emulator.now())


def run(job: Job) -> Manifest:
    """A run that keeps its quote, as the flow does."""
    return drive(job.workload, beam=False, planned=lambda loaded, run: real_steps().quote(loaded, run, ()))


def line(job: Job, manifest: Manifest) -> Comparison:
    (found,) = compared(manifest, str(job.output))
    return found


def test_the_price_is_that_of_batches_before_the_first_run_and_measured_after_it(job: Job) -> None:
    before = quote(job).routes[0]
    assert before.price_source is not None
    assert "batch price" in before.price_source
    (online,) = (way for way in before.alternatives if way.kind == "online")
    assert before.price.expected is not None
    assert online.expected is not None
    assert before.price.expected == pytest.approx(online.expected / 2, rel=Decimal("0.01"))

    run(job)
    job.emulator.finish(job.batches[0])
    run(job)
    write(job, "b")
    after = quote(job).routes[0]
    assert "measured: 4,000 input tokens" in after.input_basis, "from answers that came in a second attempt"
    assert "measured: 40 documents" in after.output_basis
    assert after.price.expected == pytest.approx(40 * FULL["openai"] / 2, rel=Decimal("0.05"))


def test_what_waits_is_told_and_no_part_of_the_price(job: Job) -> None:
    run(job)
    found = quote(job)
    assert (found.rows_due, found.waiting, found.total.worst) == (0, 40, 0)
    assert due_sentence(found) == "Nothing is due now: 40 requests wait in provider batches."
    (note,) = (note for note in found.notes if "wait in provider batches" in note)
    assert "USD set aside" in note
    write(job, "b")
    found = quote(job)
    assert (found.rows_due, found.waiting, found.routes[0].documents.expected) == (40, 40, 40)


def test_documents_that_wait_are_not_priced_where_others_of_their_batch_are_tried_again(job: Job) -> None:
    run(job)
    job.emulator.finish(job.batches[0], lambda prompt: "expired" if prompt.endswith("a00") else "succeeded")
    run(job)  # a00 goes out again
    assert quote(job).routes[0].documents.expected == 0


def test_a_run_that_delivers_batches_is_held_to_the_quote_of_the_run_that_sent_them(job: Job) -> None:
    sent = line(job, run(job))
    assert (sent.documents, sent.verdict) == (0, "waiting")
    job.emulator.finish(job.batches[0])
    delivered = line(job, run(job))
    assert delivered.quoted == sent.quoted
    assert (delivered.documents, delivered.verdict) == (40, "as quoted")
    assert delivered.amount == 40 * FULL["openai"] / 2


def test_new_documents_are_added_to_the_quote_of_those_that_come_back(job: Job) -> None:
    sent = line(job, run(job))
    write(job, "b")
    job.emulator.finish(job.batches[0])
    both = line(job, run(job))
    assert sent.quoted_documents is not None
    assert both.quoted_documents is not None
    assert both.quoted_documents.expected == 80
    assert (both.documents, both.verdict) == (40, "as quoted")
