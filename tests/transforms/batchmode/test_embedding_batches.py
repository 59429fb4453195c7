"""Hosted embeddings in provider batches: the vectors of each row, at half the price."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import pytest

from tests.transforms.batchmode.conftest import Job

SIX = Counter(f"d{n}" for n in range(6))
TEXTS = Counter(f"text d{n}" for n in range(6))
MODELS = {"openai": "text-embedding-3-small", "gemini": "gemini-embedding-001"}
HALF = {"openai": Decimal("0.000001"), "gemini": Decimal("0.0000075")}
"""Half of the list price of 100 tokens: 0.02 and 0.15 USD per million."""


@pytest.fixture
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def job(job: Job) -> Job:
    job.configure(
        backend={"model": MODELS[job.provider], "operation": "embeddings", "dimensions": 4},
        routes=[{"name": "ask", "backends": ["mini"]}],
        prompts={},
    )
    return job


both = pytest.mark.parametrize("provider", ["openai", "gemini"], indirect=True)


@both
def test_vectors_come_with_a_provider_batch_at_half_the_price(job: Job) -> None:
    assert job.run().reason_class == "provider_batches"
    assert [len(batch.requests) for batch in job.batches] == [6]
    job.emulator.finish(job.batches[0])
    done = job.run()
    assert (done.state, done.results, job.accounted()) == ("complete", 6, SIX)
    assert job.emulator.bill == TEXTS
    assert not job.emulator.online
    vectors = {row["document_id"]: row["embedding"] for row in job.rows("results")}
    assert vectors == {name: [float(len(f"text {name}")), 0.5, 0.5, 0.5] for name in SIX}
    assert {row["cost"]["amount"] for row in job.rows("results")} == {HALF[job.provider]}


@both
def test_what_an_embedding_batch_left_undone_goes_out_again(job: Job) -> None:
    job.run()
    job.emulator.finish(job.batches[0], lambda prompt: "expired" if prompt == "text d0" else "succeeded")
    job.run()
    assert [len(batch.requests) for batch in job.batches] == [6, 1]
    job.emulator.finish(job.batches[1])
    done = job.run()
    assert (done.state, job.accounted(), job.emulator.bill) == ("complete", SIX, TEXTS)
