"""Wire formats against the official SDKs' own types, and what every kind of response is."""

from __future__ import annotations

from typing import Any

import anthropic.types
import openai.types.chat
import orjson
import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from schemas.backends import HostedBackend
from schemas.errors import ConfigurationError
from schemas.failures import FailureClass
from schemas.outcomes import Usage
from tests.transforms.call.fakes import (
    HAIKU,
    LABEL_SCHEMA,
    MINI,
    anthropic_answer,
    make_request,
    openai_answer,
    with_parameters,
)
from transforms.call.anthropic import AnthropicCodec
from transforms.call.openai import OpenAICodec
from transforms.call.site import CODECS, check_parameters
from transforms.call.wire import Answer, CallFailure, Codec, WireResponse, encode, retry_after_s

F = FailureClass
ANTHROPIC, OPENAI = AnthropicCodec(), OpenAICodec()
ANTHROPIC_REQUEST = TypeAdapter(MessageCreateParamsNonStreaming)
OPENAI_REQUEST = TypeAdapter(CompletionCreateParamsNonStreaming)


def sent_body(codec: Codec, backend: HostedBackend, **changes: Any) -> dict[str, Any]:
    encoded = encode(codec, backend, make_request(1, **changes), codec.default_base_url, "live")
    return orjson.loads(encoded.wire.body)


@pytest.mark.parametrize("schema", [None, LABEL_SCHEMA])
@pytest.mark.parametrize("parameters", [{}, {"temperature": 0.5, "stop_sequences": ["END"], "top_k": 5}])
def test_anthropic_requests_are_what_the_official_sdk_would_send(schema: Any, parameters: Any) -> None:
    body = sent_body(ANTHROPIC, with_parameters(HAIKU, **parameters), json_schema=schema)
    ANTHROPIC_REQUEST.validate_python(body)
    known = set(MessageCreateParamsNonStreaming.__annotations__) | set(
        anthropic.types.message_create_params.MessageCreateParamsBase.__annotations__
    )
    assert set(body) <= known | {"temperature", "top_k"}
    assert body["messages"] == [{"role": "user", "content": "row-1"}]
    assert (body["system"], body["max_tokens"], body["model"]) == ("be brief", 1024, "claude-haiku-4-5")
    for name, value in parameters.items():
        assert body[name] == value
    if schema:
        assert body["output_config"] == {"format": {"type": "json_schema", "schema": LABEL_SCHEMA}}


@pytest.mark.parametrize("schema", [None, LABEL_SCHEMA])
@pytest.mark.parametrize("parameters", [{}, {"temperature": 0.5, "seed": 7, "reasoning_effort": "low"}])
def test_openai_requests_are_what_the_official_sdk_would_send(schema: Any, parameters: Any) -> None:
    body = sent_body(OPENAI, with_parameters(MINI, **parameters), json_schema=schema)
    OPENAI_REQUEST.validate_python(body)
    base = openai.types.chat.completion_create_params.CompletionCreateParamsBase
    assert set(body) <= set(base.__annotations__)
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "row-1"},
    ]
    assert body["max_completion_tokens"] == 1024
    for name, value in parameters.items():
        assert body[name] == value
    if schema:
        assert body["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": LABEL_SCHEMA},
        }


def test_a_compatible_server_gets_the_limit_under_the_name_that_all_of_them_know() -> None:
    body = sent_body(OPENAI, MINI.model_copy(update={"base_url": "http://127.0.0.1:1/v1"}))
    assert body["max_tokens"] == 1024
    assert "max_completion_tokens" not in body


def test_an_empty_system_text_is_not_sent() -> None:
    assert "system" not in sent_body(ANTHROPIC, HAIKU, system="")
    assert [m["role"] for m in sent_body(OPENAI, MINI, system="")["messages"]] == ["user"]


@pytest.mark.parametrize(("codec", "address"), [(ANTHROPIC, "anthropic"), (OPENAI, "openai")])
def test_the_default_address_is_the_official_sdks(codec: Codec, address: str) -> None:
    official = {
        "anthropic": lambda: str(anthropic.Anthropic(api_key="x").base_url),
        "openai": lambda: str(openai.OpenAI(api_key="x").base_url),
    }[address]()
    assert codec.default_base_url == official.rstrip("/")


def test_keys_travel_where_each_provider_looks_for_them() -> None:
    request = encode(ANTHROPIC, HAIKU, make_request(1), "https://api.anthropic.com", "live").wire
    assert (request.auth, request.headers["anthropic-version"]) == ("x-api-key", "2023-06-01")
    assert request.url == "https://api.anthropic.com/v1/messages"
    request = encode(OPENAI, MINI, make_request(1), "https://api.openai.com/v1", "live").wire
    assert (request.auth, request.url) == ("bearer", "https://api.openai.com/v1/chat/completions")


@pytest.mark.parametrize(
    ("backend", "key"),
    [
        *((HAIKU, key) for key in ("model", "max_tokens", "messages", "system", "stream")),
        *((MINI, key) for key in ("model", "messages", "max_tokens", "max_completion_tokens", "stream", "n")),
        (MINI, "response_format"),
    ],
)
def test_a_parameter_that_switchgear_sets_itself_is_refused_by_name(backend: HostedBackend, key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"parameters\.{key}"):
        check_parameters({"b": with_parameters(backend, **{key: 1})}, [LABEL_SCHEMA])


def test_an_output_config_of_ones_own_is_merged_unless_it_sets_the_format() -> None:
    body = sent_body(
        ANTHROPIC, with_parameters(HAIKU, output_config={"effort": "low"}), json_schema=LABEL_SCHEMA
    )
    assert body["output_config"]["effort"] == "low"
    assert body["output_config"]["format"]["schema"] == LABEL_SCHEMA
    clash = with_parameters(HAIKU, output_config={"format": {"type": "json_schema", "schema": {}}})
    with pytest.raises(ConfigurationError, match="output_config"):
        check_parameters({"b": clash}, [LABEL_SCHEMA])


def test_a_parameter_that_json_cannot_carry_is_found_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"backends\.b"):
        check_parameters({"b": with_parameters(MINI, seed=10**30)}, [])


def digest(
    backend: HostedBackend = MINI, base: str = "https://a.example/v1", mode: str = "live", **changes: Any
) -> str:
    return encode(CODECS[backend.provider], backend, make_request(1, **changes), base, mode).sha256


def test_the_digest_is_of_the_question_and_not_of_the_address_or_the_order_of_keys() -> None:
    assert digest() == digest(base="https://b.example/v1")
    turned = dict(reversed(LABEL_SCHEMA.items()))
    assert digest(json_schema=LABEL_SCHEMA) == digest(json_schema=turned)
    assert orjson.dumps(LABEL_SCHEMA) != orjson.dumps(turned)


def test_the_digest_changes_with_everything_that_can_change_the_answer() -> None:
    variants = [
        digest(),
        digest(prompt="other"),
        digest(system="other"),
        digest(json_schema=LABEL_SCHEMA),
        digest(MINI.model_copy(update={"model": "gpt-4.1"})),
        digest(MINI.model_copy(update={"max_output_tokens": 7})),
        digest(with_parameters(MINI, temperature=0)),
        digest(HAIKU),
        digest(mode="rehearsal"),
    ]
    assert len(set(variants)) == len(variants)


def decoded(codec: Codec, response: WireResponse) -> Answer:
    answer = codec.decode(response)
    assert isinstance(answer, Answer)
    return answer


def test_anthropic_answers_are_read_from_what_the_official_sdk_calls_a_message() -> None:
    response = anthropic_answer(
        "",
        content=[
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "one "},
            {"type": "text", "text": "two"},
        ],
        usage={
            "input_tokens": 10,
            "output_tokens": 5,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 1000,
            "speed": "fast",
        },
    )
    anthropic.types.Message.model_validate_json(response.body, strict=True)
    answer = decoded(ANTHROPIC, response)
    assert (answer.text, answer.failure) == ("one two", None)
    assert answer.usage == Usage(1110, 5, 100, 1000)  # ours counts cached tokens as input, too
    assert answer.price_context == (("speed", "fast"),)


def test_openai_answers_are_read_from_what_the_official_sdk_calls_a_completion() -> None:
    response = openai_answer(
        "fine",
        usage={
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 120,
            "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
        },
        service_tier="priority",
    )
    openai.types.chat.ChatCompletion.model_validate_json(response.body, strict=True)
    answer = decoded(OPENAI, response)
    assert (answer.text, answer.failure, answer.response_id) == ("fine", None, "chatcmpl-01")
    assert answer.usage == Usage(100, 20, 64, None)
    assert answer.price_context == (("service_tier", "priority"),)


def refusal() -> WireResponse:
    message = {"role": "assistant", "content": None, "refusal": "I can't"}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return openai_answer(None, choices=[choice])


@pytest.mark.parametrize(
    ("response", "failure", "text"),
    [
        (openai_answer("half", "length"), F.TRUNCATED, "half"),
        (openai_answer(None, "length"), F.TRUNCATED, None),
        (openai_answer("", "content_filter"), F.REFUSED, None),
        (refusal(), F.REFUSED, "I can't"),
        (openai_answer(None), F.EMPTY_ANSWER, None),
        (openai_answer("  "), F.EMPTY_ANSWER, "  "),
        (openai_answer(None, "tool_calls"), F.MALFORMED_RESPONSE, None),
        (openai_answer("x", "eos"), F.MALFORMED_RESPONSE, "x"),
        (openai_answer("x", choices=[]), F.MALFORMED_RESPONSE, None),
    ],
)
def test_an_openai_answer_that_is_no_result_keeps_text_and_usage(
    response: WireResponse, failure: FailureClass, text: str | None
) -> None:
    answer = decoded(OPENAI, response)
    assert (answer.failure, answer.text, answer.usage.output_tokens) == (failure, text, 20)
    assert answer.message


def test_every_stop_reason_that_the_official_sdk_knows_is_decided() -> None:
    from typing import get_args

    reasons = get_args(anthropic.types.StopReason)
    results = {
        reason for reason in reasons if decoded(ANTHROPIC, anthropic_answer("x", reason)).failure is None
    }
    assert results == {"end_turn", "stop_sequence"}
    known = get_args(openai.types.chat.chat_completion.Choice.model_fields["finish_reason"].annotation)
    assert {r for r in known if decoded(OPENAI, openai_answer("x", r)).failure is None} == {"stop"}


@pytest.mark.parametrize(
    ("status", "error", "failure"),
    [
        (
            429,
            {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}},
            F.QUOTA_EXHAUSTED,
        ),
        (429, {"type": "rate_limit_error"}, F.RATE_LIMITED),
        (429, {"type": "insufficient_quota", "code": "insufficient_quota"}, F.QUOTA_EXHAUSTED),
        (429, {"type": "requests", "code": "rate_limit_exceeded"}, F.RATE_LIMITED),
        (
            400,
            {"type": "invalid_request_error", "message": "prompt is too long: 300000 tokens"},
            F.REQUEST_TOO_LARGE,
        ),
        (
            400,
            {"type": "invalid_request_error", "message": "Your credit balance is too low"},
            F.QUOTA_EXHAUSTED,
        ),
        (400, {"code": "context_length_exceeded"}, F.REQUEST_TOO_LARGE),
        (400, {"code": "content_filter"}, F.REFUSED),
        (402, {"type": "billing_error"}, F.QUOTA_EXHAUSTED),
        (418, {}, F.BAD_REQUEST),
        (599, {}, F.PROVIDER_ERROR),
        (200, {"type": "rate_limit_error"}, F.RATE_LIMITED),
        (200, {"code": 429}, F.RATE_LIMITED),
        (200, {"code": 503}, F.OVERLOADED),
        (200, {"type": "never heard of"}, F.PROVIDER_ERROR),
    ],
)
@pytest.mark.parametrize("codec", [ANTHROPIC, OPENAI])
def test_an_error_is_classified_by_its_code_then_its_status(
    codec: Codec, status: int, error: dict[str, Any], failure: FailureClass
) -> None:
    result = codec.decode(WireResponse(status, {}, orjson.dumps({"type": "error", "error": error})))
    assert isinstance(result, CallFailure)
    assert (result.failure, result.ambiguous) == (failure, False)
    assert f"HTTP {status}" in result.message


@pytest.mark.parametrize("codec", [ANTHROPIC, OPENAI])
@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"null", b'{"a": 1}', b'{"choices": [], "content": 5}']
)
def test_a_success_without_an_answer_may_have_been_billed(codec: Codec, body: bytes) -> None:
    result = codec.decode(WireResponse(200, {}, body))
    assert isinstance(result, CallFailure)
    assert (result.failure, result.ambiguous) == (F.MALFORMED_RESPONSE, True)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "content", "choices", "message", "usage", "type", "text", "code", "refusal"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = (
    "type",
    "error",
    "content",
    "choices",
    "usage",
    "stop_reason",
    "stop_details",
    "model",
    "id",
    "service_tier",
)


@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON),
    st.sampled_from([200, 200, 200, 302, 400, 429, 500]),
    st.sampled_from([ANTHROPIC, OPENAI]),
)
def test_no_response_of_any_shape_breaks_a_codec(data: dict[str, Any], status: int, codec: Codec) -> None:
    response = WireResponse(status, {"retry-after": "soon"}, orjson.dumps(data))
    assert isinstance(codec.decode(response), Answer | CallFailure)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        (
            {"retry-after": "Sun, 22 Nov 2026 09:00:30 GMT", "date": "Sun, 22 Nov 2026 09:00:10 GMT"},
            20.0,
        ),
        ({"retry-after": "Sun, 22 Nov 2026 09:00:00 GMT", "date": "Sun, 22 Nov 2026 09:00:10 GMT"}, 0.0),
        ({"retry-after": "Sun, 22 Nov 2026 09:00:30 GMT"}, None),
    ],
)
def test_retry_after_is_read_as_number_or_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds
