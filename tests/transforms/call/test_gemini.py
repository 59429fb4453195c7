"""Gemini's wire format against the official SDK's own types, and what every kind of response is."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from google.genai import Client, types
from hypothesis import given
from hypothesis import strategies as st

from schemas.backends import HostedBackend
from schemas.errors import ConfigurationError
from schemas.failures import FailureClass
from schemas.outcomes import Usage
from tests.transforms.call.fakes import (
    FLASH,
    LABEL_SCHEMA,
    FakeTransport,
    MemoryLedgers,
    error,
    gemini_answer,
    make_batch,
    make_request,
    make_workload,
    run_batch,
    with_parameters,
)
from transforms.call.gemini import GeminiCodec
from transforms.call.site import check_parameters
from transforms.call.wire import Answer, CallFailure, WireResponse, encode

F = FailureClass
CODEC = GeminiCodec()


def sent(backend: HostedBackend = FLASH, **changes: Any) -> tuple[str, dict[str, Any]]:
    encoded = encode(CODEC, backend, make_request(1, **changes), CODEC.default_base_url, "live")
    return encoded.wire.url, orjson.loads(encoded.wire.body)


def decoded(response: WireResponse) -> Answer:
    answer = CODEC.decode(response)
    assert isinstance(answer, Answer)
    return answer


def failed(status: int, body: Any, **headers: str) -> CallFailure:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    failure = CODEC.decode(WireResponse(status, named, orjson.dumps(body)))
    assert isinstance(failure, CallFailure)
    return failure


@pytest.mark.parametrize("schema", [None, LABEL_SCHEMA])
@pytest.mark.parametrize("parameters", [{}, {"temperature": 0.5, "topK": 5, "seed": 7}])
def test_requests_are_made_of_what_the_official_sdk_knows(schema: Any, parameters: Any) -> None:
    safety = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    backend = with_parameters(
        FLASH, **parameters, thinkingConfig={"thinkingBudget": 0}, safetySettings=safety
    )
    url, body = sent(backend, json_schema=schema)
    assert url == "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent"
    assert set(body) == {"contents", "systemInstruction", "generationConfig", "safetySettings"}
    for content in (*body["contents"], body["systemInstruction"]):
        types.Content.model_validate(content)
    config = types.GenerationConfig.model_validate(body["generationConfig"])
    assert config.max_output_tokens == 1024
    assert config.thinking_config is not None
    assert types.SafetySetting.model_validate(body["safetySettings"][0]).threshold == "BLOCK_NONE"
    assert body["contents"] == [{"role": "user", "parts": [{"text": "row-1"}]}]
    assert body["systemInstruction"] == {"parts": [{"text": "be brief"}]}
    for name, value in parameters.items():
        assert body["generationConfig"][name] == value
    assert config.response_json_schema == schema
    assert config.response_mime_type == ("application/json" if schema else None)


def test_the_default_address_and_version_are_the_installed_sdks() -> None:
    options = Client(api_key="x")._api_client._http_options
    assert CODEC.default_base_url == f"{options.base_url}{options.api_version}"


def test_another_version_is_asked_for_by_the_address() -> None:
    backend = FLASH.model_copy(update={"base_url": "https://generativelanguage.googleapis.com/v1"})
    encoded = encode(CODEC, backend, make_request(1), str(backend.base_url), "live")
    assert encoded.wire.url.startswith("https://generativelanguage.googleapis.com/v1/models/")


def test_the_key_travels_where_google_looks_for_it() -> None:
    wire = encode(CODEC, FLASH, make_request(1), CODEC.default_base_url, "live").wire
    assert wire.auth == "x-goog-api-key"


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-flash", "/models/gemini-2.5-flash:generateContent"),
        ("tunedModels/mine-1", "/tunedModels/mine-1:generateContent"),
        ("odd?name#here", "/models/odd%3Fname%23here:generateContent"),
    ],
)
def test_the_model_stands_in_the_path(model: str, path: str) -> None:
    assert CODEC.path(FLASH.model_copy(update={"model": model})) == path


def test_the_digest_is_of_the_model_too_though_it_is_not_in_the_body() -> None:
    def digest(backend: HostedBackend) -> str:
        return encode(CODEC, backend, make_request(1), "https://a.example", "live").sha256

    other = FLASH.model_copy(update={"model": "gemini-2.5-pro"})
    assert digest(FLASH) != digest(other)
    assert digest(FLASH) == digest(FLASH.model_copy())


@pytest.mark.parametrize(
    "key",
    [
        "contents",
        "systemInstruction",
        "generationConfig",
        "maxOutputTokens",
        "candidateCount",
        "responseMimeType",
        "responseSchema",
        "responseJsonSchema",
        "cachedContent",
    ],
)
def test_a_parameter_that_switchgear_sets_itself_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"parameters\.{key}"):
        check_parameters({"b": with_parameters(FLASH, **{key: 1})}, [])


def test_answers_are_read_from_what_the_official_sdk_calls_a_response() -> None:
    parts = [{"text": "hm", "thought": True}, {"text": "one "}, {"text": "two"}]
    response = gemini_answer(
        None,
        candidates=[{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}],
        usageMetadata={
            "promptTokenCount": 1000,
            "cachedContentTokenCount": 800,
            "candidatesTokenCount": 20,
            "thoughtsTokenCount": 300,
            "toolUsePromptTokenCount": 7,
            "totalTokenCount": 1327,
        },
    )
    types.GenerateContentResponse.model_validate_json(response.body)
    answer = decoded(response)
    assert (answer.text, answer.failure, answer.finish_reasons) == ("one two", None, ("STOP",))
    assert (answer.response_model, answer.response_id) == ("gemini-2.5-flash", "r-01")
    # thoughts are billed as output; what was cached is part of the prompt
    assert answer.usage == Usage(1007, 320, 800)


def test_counts_of_zero_are_left_out_on_the_wire() -> None:
    answer = decoded(gemini_answer(None, "MAX_TOKENS", usageMetadata={"promptTokenCount": 9}))
    assert answer.usage == Usage(9, 0)


REFUSALS = {
    "SAFETY",
    "RECITATION",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
}


@pytest.mark.parametrize("reason", sorted(reason.value for reason in types.FinishReason))
def test_every_finish_reason_of_the_sdk_is_judged_and_only_stop_makes_a_result(reason: str) -> None:
    expected = {"STOP": None, "MAX_TOKENS": F.TRUNCATED}.get(
        reason, F.REFUSED if reason in REFUSALS else F.MALFORMED_RESPONSE
    )
    answer = decoded(gemini_answer("text", reason))
    assert answer.failure is expected
    assert answer.text == "text"  # whatever it is, it was paid and is kept
    assert answer.usage == Usage(100, 20)
    assert answer.finish_reasons == (reason,)


def test_a_finish_reason_of_tomorrow_is_no_result() -> None:
    assert decoded(gemini_answer("text", "ENLIGHTENED")).failure is F.MALFORMED_RESPONSE


@pytest.mark.parametrize("reason", [reason.value for reason in types.BlockedReason])
def test_a_blocked_prompt_has_no_candidates_and_is_a_refusal_that_is_billed(reason: str) -> None:
    body = {
        "promptFeedback": {"blockReason": reason},
        "usageMetadata": {"promptTokenCount": 42, "totalTokenCount": 42},
    }
    response = WireResponse(200, {}, orjson.dumps(body))
    types.GenerateContentResponse.model_validate_json(response.body)
    answer = decoded(response)
    assert (answer.failure, answer.text, answer.usage) == (F.REFUSED, None, Usage(42, 0))
    assert reason in answer.message


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_thinking_that_leaves_nothing_to_say_is_an_empty_answer_that_was_paid(text: str | None) -> None:
    usage = {"promptTokenCount": 100, "thoughtsTokenCount": 900}
    answer = decoded(gemini_answer(text, usageMetadata=usage))
    assert (answer.failure, answer.usage) == (F.EMPTY_ANSWER, Usage(100, 900))


@pytest.mark.parametrize(
    "body", [{}, {"candidates": []}, {"candidates": [{"content": {"parts": [{"text": "half"}]}}]}]
)
def test_a_response_without_an_end_is_ambiguous_unless_it_bills(body: dict[str, Any]) -> None:
    failure = failed(200, body)
    assert (failure.failure, failure.ambiguous) == (F.MALFORMED_RESPONSE, True)
    billed = decoded(WireResponse(200, {}, orjson.dumps({**body, "usageMetadata": {"promptTokenCount": 1}})))
    assert billed.failure is F.MALFORMED_RESPONSE


def rpc(code: int, status: str, message: str = "no", *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def detail(kind: str, **values: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/google.rpc.{kind}", **values}


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (400, rpc(400, "INVALID_ARGUMENT"), F.BAD_REQUEST),
        (
            400,
            rpc(400, "INVALID_ARGUMENT", "API key not valid", detail("ErrorInfo", reason="API_KEY_INVALID")),
            F.AUTHENTICATION,
        ),
        (400, rpc(400, "INVALID_ARGUMENT", "API key expired. Please renew"), F.AUTHENTICATION),
        (
            400,
            rpc(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
            F.PERMISSION,
        ),
        (
            400,
            rpc(
                400,
                "INVALID_ARGUMENT",
                "The input token count (1100000) exceeds the maximum number of tokens allowed (1048576).",
            ),
            F.REQUEST_TOO_LARGE,
        ),
        (401, rpc(401, "UNAUTHENTICATED"), F.AUTHENTICATION),
        (403, rpc(403, "PERMISSION_DENIED"), F.PERMISSION),
        (
            403,
            rpc(403, "PERMISSION_DENIED", "x", detail("ErrorInfo", reason="BILLING_DISABLED")),
            F.QUOTA_EXHAUSTED,
        ),
        (404, rpc(404, "NOT_FOUND"), F.NOT_FOUND),
        (429, rpc(429, "RESOURCE_EXHAUSTED"), F.RATE_LIMITED),
        (
            429,
            rpc(
                429,
                "RESOURCE_EXHAUSTED",
                "quota",
                detail("QuotaFailure", violations=[{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}]),
            ),
            F.QUOTA_EXHAUSTED,
        ),
        (
            429,
            rpc(
                429,
                "RESOURCE_EXHAUSTED",
                "quota",
                detail("QuotaFailure", violations=[{"quotaId": "GenerateRequestsPerMinutePerProject"}]),
            ),
            F.RATE_LIMITED,
        ),
        (499, rpc(499, "CANCELLED"), F.PROVIDER_ERROR),
        (500, rpc(500, "INTERNAL"), F.PROVIDER_ERROR),
        (503, rpc(503, "UNAVAILABLE"), F.OVERLOADED),
        (504, rpc(504, "DEADLINE_EXCEEDED"), F.PROVIDER_ERROR),
        (200, rpc(503, "UNAVAILABLE"), F.OVERLOADED),
        (200, rpc(429, "RESOURCE_EXHAUSTED"), F.RATE_LIMITED),
        (200, rpc(500, "INTERNAL"), F.PROVIDER_ERROR),
        (429, {"error": {"code": 429, "message": "no details"}}, F.RATE_LIMITED),
        (503, ["not", "an", "object"], F.OVERLOADED),
    ],
)
def test_every_error_body_has_its_class_and_bills_nothing(
    status: int, body: Any, failure: FailureClass
) -> None:
    found = failed(status, body)
    assert (found.failure, found.ambiguous) == (failure, False)


@pytest.mark.parametrize(
    ("details", "seconds"),
    [
        ([detail("RetryInfo", retryDelay="34.074824224s")], 34.074824224),
        ([detail("Help"), detail("RetryInfo", retryDelay="5s")], 5.0),
        ([detail("RetryInfo", retryDelay="5")], None),
        ([detail("RetryInfo", retryDelay="-5s")], None),
        ([detail("RetryInfo")], None),
        (["odd"], None),
        ([], None),
    ],
)
def test_how_long_to_wait_stands_in_the_details_of_the_error(details: Any, seconds: float | None) -> None:
    body = {"error": {"code": 429, "message": "m", "status": "RESOURCE_EXHAUSTED", "details": details}}
    assert failed(429, body).retry_after_s == seconds
    assert failed(429, body, retry_after="2").retry_after_s == 2.0  # a header says it of the response


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(0, 1) | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=2)
        | st.dictionaries(
            st.sampled_from(["parts", "text", "content", "finishReason", "blockReason", "@type", "status"]),
            children,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["candidates", "usageMetadata", "promptFeedback", "error", "modelVersion"]), JSON
    ),
    st.sampled_from([200, 400, 429, 500]),
)
def test_no_response_of_any_shape_breaks_the_codec(data: dict[str, Any], status: int) -> None:
    result = CODEC.decode(WireResponse(status, {}, orjson.dumps(data)))
    assert isinstance(result, Answer | CallFailure)
    assert status == 200 or isinstance(result, CallFailure)


def test_a_document_goes_through_the_engine_with_its_cost() -> None:
    usage = {"promptTokenCount": 1000, "cachedContentTokenCount": 500, "thoughtsTokenCount": 100}
    result, transport = run_batch(
        lambda sent, seen: gemini_answer("fine", usageMetadata=usage),
        make_batch(1, ("flash",)),
        workload=make_workload({"flash": FLASH}),
    )
    outcome = result.outcomes[0]
    assert (outcome.answer, outcome.provider, outcome.operation) == ("fine", "gcp.gemini", "chat")
    # 500 tokens at 0.30, 500 cached ones at 0.03 and 100 at 2.50 USD a million
    assert str(outcome.charge.amount) == "0.000415000000"
    assert outcome.charge.certainty == "exact"
    assert outcome.usage.cache_read_input_tokens == 500
    assert transport.sent[0].model == "gemini-2.5-flash"


def test_a_retry_info_parks_the_lane_for_that_long() -> None:
    limited = WireResponse(
        429, {}, orjson.dumps(rpc(429, "RESOURCE_EXHAUSTED", "slow", detail("RetryInfo", retryDelay="7s")))
    )
    result, transport = run_batch(
        lambda sent, seen: gemini_answer("fine") if seen else limited,
        make_batch(1, ("flash",)),
        MemoryLedgers(),
        workload=make_workload({"flash": FLASH}),
    )
    assert result.outcomes[0].is_result
    assert transport.sent[1].at >= 7


def test_the_chain_goes_on_behind_gemini_and_to_it() -> None:
    def script(sent: Any, seen: int) -> WireResponse:
        return (
            error(529, "overloaded_error") if sent.model.startswith("claude") else gemini_answer("from flash")
        )

    result, transport = run_batch(
        script,
        make_batch(1, ("haiku", "flash")),
        workload=make_workload(
            {"haiku": HostedBackend(provider="anthropic", model="claude-haiku-4-5"), "flash": FLASH}
        ),
    )
    assert isinstance(transport, FakeTransport)
    assert (result.outcomes[0].answer, result.outcomes[0].backend) == ("from flash", "flash")
