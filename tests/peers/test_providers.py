"""Gemini and embeddings against a vendor that others wrote, with its journal as the bill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.backends import HostedBackend
from schemas.run import RunContext
from tests.peers.mock_vendor import MockVendor
from tests.transforms.call.fakes import LABEL_SCHEMA, make_batch, make_workload
from transforms.call.engine import open_call_engine
from transforms.call.request import CallBatchResult

pytestmark = pytest.mark.peer
KEYS = {"GEMINI_API_KEY": "k", "OPENAI_API_KEY": "k"}


def run(folder: Path, backend: HostedBackend, rows: int, **changes: Any) -> CallBatchResult:
    workload = make_workload({"own": backend})
    context = RunContext("run", str(folder), "w" * 64, False, 16)
    engine = open_call_engine(workload, context, budget_limit=None, environ=KEYS)
    try:
        return engine.submit(make_batch(rows, ("own",), "b" * 32, **changes)).result(60)
    finally:
        engine.close()


def gemini(vendor: MockVendor) -> HostedBackend:
    return HostedBackend(provider="gemini", model="gemini-2.5-flash", base_url=vendor.base_url("gemini"))


def test_gemini_answers_and_each_answer_is_billed_once(tmp_path: Path, mock_vendor: MockVendor) -> None:
    limited = mock_vendor.failure(429, "rate_limit_error", contains="row-3", times=1)
    mock_vendor.rules([limited, mock_vendor.rule({"label": "a"}, usage=(11, 5))])
    result = run(tmp_path, gemini(mock_vendor), 12, json_schema=LABEL_SCHEMA)
    assert [outcome.output for outcome in result.outcomes] == [{"label": "a"}] * 12
    assert {(o.usage.input_tokens, o.usage.output_tokens) for o in result.outcomes} == {(11, 5)}
    assert [outcome.calls for outcome in result.outcomes] == [1] * 3 + [2] + [1] * 8
    assert len(mock_vendor.journal(status=200)) == 12
    assert len(mock_vendor.journal()) == 13


def test_an_answer_that_does_not_fit_is_billed_twice_and_not_more(
    tmp_path: Path, mock_vendor: MockVendor
) -> None:
    mended = mock_vendor.rule({"label": "b"}, contains="can't be used")
    mock_vendor.rules([mended, mock_vendor.rule("no JSON")])
    result = run(tmp_path, gemini(mock_vendor), 6, json_schema=LABEL_SCHEMA, repair=True)
    assert [(o.output, o.calls) for o in result.outcomes] == [({"label": "b"}, 2)] * 6
    assert len(mock_vendor.journal()) == 12


def test_embeddings_come_one_to_a_document(tmp_path: Path, mock_vendor: MockVendor) -> None:
    backend = HostedBackend(
        provider="openai",
        model="text-embedding-3-small",
        operation="embeddings",
        dimensions=1536,
        base_url=mock_vendor.base_url("openai"),
    )
    result = run(tmp_path, backend, 5)
    vectors = [np.frombuffer(outcome.vector or b"", "<f4") for outcome in result.outcomes]
    assert [len(vector) for vector in vectors] == [1536] * 5
    assert all(outcome.is_result for outcome in result.outcomes)  # this vendor counts no tokens for them
    assert len(mock_vendor.journal(status=200)) == 5
