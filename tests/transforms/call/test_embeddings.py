"""Hosted embeddings: the official types, vectors that are what was asked for, and rows of their own cost."""

from __future__ import annotations

import base64
import math
import struct
from decimal import Decimal
from typing import Any

import numpy as np
import openai.types
import orjson
import pytest
from google.genai import types as google
from hypothesis import given
from hypothesis import strategies as st
from openai.types import EmbeddingCreateParams
from pydantic import TypeAdapter

from schemas.backends import HostedBackend
from schemas.errors import ConfigurationError
from schemas.failures import FailureClass
from schemas.outcomes import Usage
from tests.transforms.call.fakes import (
    MemoryLedgers,
    error,
    make_batch,
    make_request,
    make_workload,
    run_batch,
    with_parameters,
)
from transforms.call.codecs import codec_of
from transforms.call.site import check_parameters
from transforms.call.vectors import vector_space
from transforms.call.wire import Answer, CallFailure, Codec, WireResponse, encode

F = FailureClass
OPENAI = HostedBackend(
    provider="openai", model="text-embedding-3-small", operation="embeddings", dimensions=4
)
GEMINI = HostedBackend(provider="gemini", model="gemini-embedding-001", operation="embeddings", dimensions=4)
REQUEST = TypeAdapter(EmbeddingCreateParams)
VECTOR = [0.5, -0.5, 0.25, 1.0]
both = pytest.mark.parametrize("backend", [OPENAI, GEMINI], ids=["openai", "gemini"])


def packed(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def sent(backend: HostedBackend, **changes: Any) -> tuple[str, dict[str, Any]]:
    codec = codec_of(backend)
    wire = encode(codec, backend, make_request(1, **changes), codec.default_base_url, "live").wire
    return wire.url, orjson.loads(wire.body)


def openai_vector(embedding: Any, **changes: Any) -> WireResponse:
    body = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": embedding}],
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }
    return WireResponse(200, {}, orjson.dumps({**body, **changes}))


def gemini_vector(values: Any, **changes: Any) -> WireResponse:
    body = {"embedding": {"values": values}, "usageMetadata": {"promptTokenCount": 9}}
    return WireResponse(200, {}, orjson.dumps({**body, **changes}))


def vector_from(backend: HostedBackend, values: Any) -> WireResponse:
    return openai_vector(values) if backend.provider == "openai" else gemini_vector(values)


def decoded(backend: HostedBackend, response: WireResponse) -> Answer:
    answer = codec_of(backend).decode(response)
    assert isinstance(answer, Answer)
    return answer


def test_openais_requests_are_what_the_official_sdk_would_send() -> None:
    url, body = sent(with_parameters(OPENAI, user="u-1"))
    REQUEST.validate_python(body)
    assert url == "https://api.openai.com/v1/embeddings"
    assert body == {
        "model": "text-embedding-3-small",
        "input": "row-1",
        "encoding_format": "base64",
        "dimensions": 4,
        "user": "u-1",
    }


def test_a_server_that_refuses_base64_can_be_asked_for_numbers() -> None:
    assert sent(with_parameters(OPENAI, encoding_format="float"))[1]["encoding_format"] == "float"


def test_geminis_requests_are_made_of_what_the_official_sdk_knows() -> None:
    url, body = sent(with_parameters(GEMINI, taskType="CLUSTERING"))
    assert url.endswith("/v1beta/models/gemini-embedding-001:embedContent")
    google.Content.model_validate(body.pop("content"))
    config = google.EmbedContentConfig.model_validate(body)
    assert (config.output_dimensionality, config.task_type) == (4, "CLUSTERING")


@both
def test_a_model_that_takes_no_length_is_not_sent_one_and_is_held_to_it_all_the_same(
    backend: HostedBackend,
) -> None:
    backend = backend.model_copy(update={"send_dimensions": False})
    assert not {"dimensions", "outputDimensionality"} & sent(backend)[1].keys()
    assert decoded(backend, vector_from(backend, VECTOR[:3])).failure is F.MALFORMED_RESPONSE


@pytest.mark.parametrize(
    ("backend", "key"),
    [
        *((OPENAI, key) for key in ("model", "input", "dimensions")),
        *((GEMINI, key) for key in ("model", "content", "outputDimensionality")),
    ],
)
def test_a_parameter_that_switchgear_sets_itself_is_refused_by_name(backend: HostedBackend, key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"parameters\.{key}"):
        check_parameters({"b": with_parameters(backend, **{key: 1})}, [])


def test_vectors_are_read_from_base64_as_the_official_sdk_reads_them_and_from_numbers() -> None:
    encoded = base64.b64encode(packed(VECTOR)).decode()
    for embedding in (encoded, VECTOR):
        response = openai_vector(embedding)
        answer = decoded(OPENAI, response)
        assert (answer.vector, answer.failure, answer.usage) == (packed(VECTOR), None, Usage(9))
        assert answer.response_model == "text-embedding-3-small"
    openai.types.CreateEmbeddingResponse.model_validate_json(openai_vector(VECTOR).body, strict=True)


def test_geminis_vectors_are_read_from_what_the_official_sdk_calls_an_embedding() -> None:
    response = gemini_vector(VECTOR)
    google.ContentEmbedding.model_validate(orjson.loads(response.body)["embedding"])
    answer = decoded(GEMINI, response)
    assert (answer.vector, answer.failure, answer.usage) == (packed(VECTOR), None, Usage(9))


@pytest.mark.parametrize(
    ("embedding", "why"),
    [
        (VECTOR[:3], "3 dimensions, and the backend's `dimensions` is 4"),
        ([*VECTOR, 1.0], "5 dimensions"),
        ([], "0 dimensions"),
        ([0.1, None, 0.2, 0.3], "no vector"),
        ([0.1, "x", 0.2, 0.3], "no vector"),
        ([1e39, 0.0, 0.0, 0.0], "no finite number"),
        ({"a": 1}, "no vector"),
        (None, "no vector"),
    ],
)
@both
def test_what_is_no_vector_of_that_length_is_no_result_and_was_paid(
    backend: HostedBackend, embedding: Any, why: str
) -> None:
    answer = decoded(backend, vector_from(backend, embedding))
    assert (answer.failure, answer.vector) == (F.MALFORMED_RESPONSE, None)
    assert why in answer.message
    assert answer.usage == Usage(9)


@pytest.mark.parametrize(
    "embedding",
    [
        "no base64!",
        base64.b64encode(packed(VECTOR)[:-1]).decode(),
        base64.b64encode(packed([math.nan, 0, 0, 0])).decode(),
        base64.b64encode(packed([math.inf, 0, 0, 0])).decode(),
    ],
)
def test_base64_that_holds_no_vector_is_malformed(embedding: str) -> None:
    assert decoded(OPENAI, openai_vector(embedding)).failure is F.MALFORMED_RESPONSE


def test_several_vectors_for_one_text_are_none() -> None:
    entry = {"object": "embedding", "index": 0, "embedding": VECTOR}
    assert decoded(OPENAI, openai_vector(None, data=[entry, entry])).failure is F.MALFORMED_RESPONSE


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"data": []}', b'{"embedding": {}}', b"[]"])
@both
def test_a_response_without_vector_and_bill_is_ambiguous(backend: HostedBackend, body: bytes) -> None:
    result = codec_of(backend).decode(WireResponse(200, {}, body))
    assert isinstance(result, CallFailure)
    assert (result.failure, result.ambiguous) == (F.MALFORMED_RESPONSE, True)


@both
def test_errors_are_those_of_the_provider(backend: HostedBackend) -> None:
    result = codec_of(backend).decode(error(429, "rate_limit_error", retry_after="3"))
    assert isinstance(result, CallFailure)
    assert (result.failure, result.retry_after_s) == (F.RATE_LIMITED, 3.0)
    in_200 = codec_of(backend).decode(error(200, "server_error"))
    assert isinstance(in_200, CallFailure)
    assert in_200.failure is F.PROVIDER_ERROR


ANYTHING = (
    st.none() | st.integers(-2, 2) | st.text(max_size=4) | st.lists(st.floats() | st.none(), max_size=5)
)


@given(
    st.dictionaries(
        st.sampled_from(["data", "embedding", "usage", "usageMetadata", "error"]),
        ANYTHING
        | st.lists(st.dictionaries(st.just("embedding"), ANYTHING), max_size=2)
        | st.dictionaries(st.sampled_from(["values", "prompt_tokens", "promptTokenCount"]), ANYTHING),
    ),
    st.sampled_from([OPENAI, GEMINI]),
)
def test_no_response_of_any_shape_breaks_a_codec(data: dict[str, Any], backend: HostedBackend) -> None:
    codec: Codec = codec_of(backend)
    result = codec.decode(WireResponse(200, {}, orjson.dumps(data)))
    if isinstance(result, Answer) and result.failure is None:
        assert len(result.vector or b"") == 16


@pytest.mark.parametrize(("backend", "price"), [(OPENAI, "0.00000018"), (GEMINI, "0.00000135")])
def test_a_document_is_one_request_with_a_vector_and_a_cost_of_its_own(
    backend: HostedBackend, price: str
) -> None:
    def script(sent: Any, seen: int) -> WireResponse:
        row = int(sent.prompt.removeprefix("row-"))
        return vector_from(backend, [float(row), 0.0, 0.0, 1.0])

    ledgers = MemoryLedgers()
    batch = make_batch(5, ("vec",), prompt_sha256="")
    result, transport = run_batch(script, batch, ledgers, workload=make_workload({"vec": backend}))
    assert sorted(transport.prompts()) == [f"row-{n}" for n in range(5)]
    for row, outcome in enumerate(result.outcomes):
        assert outcome.is_result
        assert np.frombuffer(outcome.vector or b"", "<f4").tolist() == [row, 0, 0, 1]
        assert (outcome.operation, outcome.token_count, outcome.usage) == ("embeddings", 9, Usage(9))
        assert (outcome.answer, outcome.prompt_sha256, outcome.calls) == (None, None, 1)
        assert (outcome.charge.amount, outcome.charge.certainty) == (Decimal(price), "exact")
    # nothing but input is reserved: a vector has no output tokens
    per_token = Decimal(price) / 9
    assert all(call.worst is not None and call.worst < per_token * 1000 for call in ledgers.calls())


def test_a_recorded_vector_is_replayed_and_not_asked_for_again() -> None:
    ledgers = MemoryLedgers()
    batch, workload = make_batch(2, ("vec",)), make_workload({"vec": OPENAI})
    before, _ = run_batch(lambda sent, seen: openai_vector(VECTOR), batch, ledgers, workload=workload)
    after, transport = run_batch(
        lambda sent, seen: openai_vector(VECTOR[::-1]), batch, ledgers.after_a_crash(), workload=workload
    )
    assert transport.sent == []
    assert [o.vector for o in after.outcomes] == [o.vector for o in before.outcomes] == [packed(VECTOR)] * 2
    assert [o.replayed_calls for o in after.outcomes] == [1, 1]


def test_a_vector_without_a_token_count_has_an_unknown_price_and_not_zero() -> None:
    result, _ = run_batch(
        lambda sent, seen: gemini_vector(VECTOR, usageMetadata=None),
        make_batch(1, ("vec",)),
        workload=make_workload({"vec": GEMINI}),
    )
    outcome = result.outcomes[0]
    assert outcome.is_result
    assert (outcome.charge.amount, outcome.charge.certainty, outcome.token_count) == (None, "unknown", None)


def test_the_space_is_that_of_model_length_parameters_host_and_reality() -> None:
    def space(base: str = "https://api.openai.com/v1", rehearsal: bool = False, **changes: Any) -> str:
        return vector_space(OPENAI.model_copy(update=changes), base, rehearsal=rehearsal)

    assert space() == space(base="https://api.openai.com/v2", max_in_flight=3)
    variants = [
        space(),
        space(model="text-embedding-3-large"),
        space(dimensions=8),
        space(provider="gemini"),
        space(parameters={"taskType": "CLUSTERING"}),
        space(base="https://elsewhere.example/v1"),
        space(rehearsal=True),
    ]
    assert len(set(variants)) == len(variants)
    assert all(variant.startswith("hosted-space/1:") for variant in variants)
