from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.failures import FailureClass
from transforms.batchmode.results import Spool, anthropic_line, no_line, not_worked_on, openai_line
from transforms.call.wire import CallFailure, WireResponse

MESSAGE = {"id": "msg_1", "type": "message"}


def failure_of_line(line: dict[str, Any], provider: str) -> CallFailure:
    result = (openai_line if provider == "openai" else anthropic_line)(line).result
    assert isinstance(result, CallFailure)
    return result


def openai_response(status: int, body: Any) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "req_9", "body": body}
    return {"custom_id": "t-1", "response": response, "error": None}


def errored(kind: str, message: str = "why") -> dict[str, Any]:
    error = {"type": "error", "error": {"type": kind, "message": message}}
    return {"custom_id": "t-1", "result": {"type": "errored", "error": error}}


def test_an_answer_is_the_response_that_the_same_call_online_would_have_had() -> None:
    line = openai_line(openai_response(200, {"id": "chatcmpl-1"}))
    assert line.custom_id == "t-1"
    assert line.result == WireResponse(200, {"x-request-id": "req_9"}, b'{"id":"chatcmpl-1"}')
    line = anthropic_line({"custom_id": "t-1", "result": {"type": "succeeded", "message": MESSAGE}})
    assert line.result == WireResponse(200, {}, orjson.dumps(MESSAGE))


@pytest.mark.parametrize(
    ("line", "failure"),
    [
        (openai_response(400, {"error": {"message": "bad", "type": "invalid_request_error"}}), "bad_request"),
        (openai_response(429, {"error": {"message": "slow", "type": "rate_limit_error"}}), "rate_limited"),
        (openai_response(500, {"error": {"message": "oops"}}), "provider_error"),
        (openai_response(400, {"error": {"code": "context_length_exceeded"}}), "request_too_large"),
        ({"custom_id": "t-1", "error": {"code": "batch_expired", "message": "late"}}, "deadline"),
        ({"custom_id": "t-1", "error": {"code": "batch_cancelled", "message": "no"}}, "cancelled"),
        ({"custom_id": "t-1", "error": {"code": "insufficient_quota", "message": "no"}}, "quota_exhausted"),
        ({"custom_id": "t-1", "error": {"code": "never_heard_of", "message": "no"}}, "provider_error"),
    ],
)
def test_a_failed_line_of_openai_is_a_definite_end(line: dict[str, Any], failure: str) -> None:
    found = failure_of_line(line, "openai")
    assert (found.failure, found.ambiguous) == (FailureClass(failure), False)


@pytest.mark.parametrize(
    ("line", "failure"),
    [
        (errored("invalid_request_error"), "bad_request"),
        (errored("invalid_request_error", "prompt is too long: 9 > 8"), "request_too_large"),
        (errored("overloaded_error"), "overloaded"),
        (errored("api_error"), "provider_error"),
        (errored("rate_limit_error"), "rate_limited"),
        (errored("authentication_error"), "authentication"),
        (errored("of_tomorrow"), "provider_error"),
        ({"custom_id": "t-1", "result": {"type": "expired"}}, "deadline"),
        ({"custom_id": "t-1", "result": {"type": "canceled"}}, "cancelled"),
    ],
)
def test_a_failed_line_of_anthropic_is_a_definite_end(line: dict[str, Any], failure: str) -> None:
    found = failure_of_line(line, "anthropic")
    assert (found.failure, found.ambiguous) == (FailureClass(failure), False)


@pytest.mark.parametrize(
    "result", [{"type": "postponed"}, {}, None, 7, {"type": "succeeded", "message": None}]
)
def test_a_line_that_nobody_understands_may_have_been_billed(result: Any) -> None:
    assert failure_of_line({"custom_id": "t-1", "result": result}, "anthropic").ambiguous
    assert failure_of_line(
        {"custom_id": "t-1", "response": result, "error": result or None}, "openai"
    ).ambiguous


def test_no_line_may_have_been_billed_and_what_was_not_worked_on_was_not() -> None:
    assert no_line("openai").ambiguous
    assert not any(not_worked_on(end).ambiguous for end in ("expired", "cancelled", "failed"))
    assert "too many tokens" in not_worked_on("failed", "too many tokens").message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("custom_id", "response", "error", "result", "type", "status_code", "body", "message", "code")
objects = st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4)


@given(
    st.dictionaries(st.sampled_from(KEYS), json_values | objects, max_size=5),
    st.sampled_from([openai_line, anthropic_line]),
)
def test_no_line_of_any_shape_breaks_the_reading(line: dict[str, Any], read: Any) -> None:
    result = read(line).result
    assert isinstance(result, WireResponse | CallFailure)


def test_the_spool_keeps_the_first_line_of_each_request_whatever_their_order() -> None:
    answer = WireResponse(200, {"a": "b"}, b'{"text":"\xc3\xa9"}')
    failure = CallFailure(FailureClass.DEADLINE, "late")
    ambiguous = CallFailure(FailureClass.MALFORMED_RESPONSE, "odd", ambiguous=True)
    with Spool(4) as spool:
        spool.put(3, failure)
        spool.put(0, answer)
        spool.put(None, answer)
        spool.put(3, answer)
        assert spool.get(3) == failure, "reading in between"
        spool.put(2, ambiguous)
        assert [spool.get(n) for n in range(4)] == [answer, None, ambiguous, failure]
        assert (spool.strangers, spool.repeated) == (1, 1)
