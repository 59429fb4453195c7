"""Every fault at every provider, online and in a provider's batch: what it is called, and what it cost.

A cell says the failure's class, the calls that were made, how many of them have no known end, and how
many answers were paid. A document has two calls and a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import orjson
import pytest

from schemas.backends import HostedBackend, TokenPrice
from schemas.failures import FailureClass as F
from schemas.limits import Limits
from schemas.outcomes import money
from tests.transforms.call.fakes import (
    LABEL_SCHEMA,
    Reply,
    anthropic_answer,
    error,
    gemini_answer,
    make_batch,
    make_workload,
    openai_answer,
    run_batch,
)
from transforms.batchmode.results import anthropic_line, gemini_line, no_line, not_worked_on, openai_line
from transforms.call.codecs import codec_of
from transforms.call.ports import LostError, NotSentError
from transforms.call.structured import SchemaBook
from transforms.call.wire import Answer, CallFailure, WireResponse

PRICE = TokenPrice(input_per_million=Decimal(1), output_per_million=Decimal(10))
ONE_ANSWER = money("0.0003")  # 100 tokens in, 20 out
LIMITS = Limits(max_calls=2, document_deadline_s=60, request_timeout_s=5)


def hosted(provider: Any, model: str, **more: Any) -> HostedBackend:
    return HostedBackend(provider=provider, model=model, price=PRICE, **more)


VERTEX: dict[str, Any] = {"platform": "vertex", "project": "p1", "location": "europe-west1"}
VECTORS: dict[str, Any] = {"operation": "embeddings", "dimensions": 2}
BACKENDS = {
    "openai": hosted("openai", "gpt-4.1-mini"),
    "anthropic": hosted("anthropic", "claude-haiku-4-5"),
    "gemini": hosted("gemini", "gemini-2.5-flash"),
    "claude_on_vertex": hosted("anthropic", "claude-haiku-4-5", **VERTEX),
    "gemini_on_vertex": hosted("gemini", "gemini-2.5-flash", **VERTEX),
    "openai_vectors": hosted("openai", "text-embedding-3-small", **VECTORS),
    "gemini_vectors": hosted("gemini", "gemini-embedding-001", **VECTORS),
}
CHAT = tuple(name for name, backend in BACKENDS.items() if backend.operation == "chat")


def answer(backend: HostedBackend, text: str, end: str = "complete") -> WireResponse:
    """A paid answer, and how the provider says that it ended."""
    ends = {
        "anthropic": ("end_turn", "max_tokens", "refusal", "pondering"),
        "openai": ("stop", "length", "content_filter", "pondering"),
        "gemini": ("STOP", "MAX_TOKENS", "SAFETY", "PONDERING"),
    }[backend.provider]
    make = {"anthropic": anthropic_answer, "openai": openai_answer, "gemini": gemini_answer}[backend.provider]
    return make(text, ends[("complete", "truncated", "refused", "unheard of").index(end)])


def cut_off(backend: HostedBackend) -> WireResponse:
    """A body that ends in the middle."""
    whole = answer(backend, "fine").body if backend.operation == "chat" else b'{"data": [{"embedding": [1'
    return WireResponse(200, {}, whole[:-9])


@dataclass(frozen=True)
class Fault:
    """What a provider does each time, and what must come of it."""

    reply: Callable[[HostedBackend], Reply]
    failure: F
    calls: int = 1
    ambiguous: int = 0
    paid: int = 0
    typed: bool = False  # asks for JSON


def status(code: int, failure: F, calls: int = 1) -> Fault:
    return Fault(lambda _: error(code, "some_error"), failure, calls)


def paid(failure: F, text: str, end: str = "complete", *, typed: bool = False) -> Fault:
    return Fault(lambda backend: answer(backend, text, end), failure, paid=1, typed=typed)


def body(data: bytes, failure: F = F.MALFORMED_RESPONSE) -> Fault:
    return Fault(lambda _: WireResponse(200, {}, data), failure, 2, 2)


QUOTA = {"openai": ("insufficient_quota", "insufficient_quota")}
FAULTS: dict[str, Fault] = {
    "429": Fault(lambda _: error(429, "rate_limit_error"), F.DEADLINE, 32),
    "429, wait 300 s": Fault(lambda _: error(429, "rate_limit_error", retry_after="300"), F.RATE_LIMITED),
    "429, spend limit": Fault(
        lambda b: error(429, *QUOTA.get(b.provider, ("rate_limit_error", "enforced_spend_limit_reached"))),
        F.QUOTA_EXHAUSTED,
    ),
    "400": status(400, F.BAD_REQUEST),
    "401": status(401, F.AUTHENTICATION),
    "402": status(402, F.QUOTA_EXHAUSTED),
    "403": status(403, F.PERMISSION),
    "404": status(404, F.NOT_FOUND),
    "408": status(408, F.PROVIDER_ERROR, 2),
    "409": status(409, F.PROVIDER_ERROR, 2),
    "413": status(413, F.REQUEST_TOO_LARGE),
    "422": status(422, F.BAD_REQUEST),
    "500": status(500, F.PROVIDER_ERROR, 2),
    "502": status(502, F.PROVIDER_ERROR, 2),
    "503": status(503, F.OVERLOADED, 2),
    "504": status(504, F.PROVIDER_ERROR, 2),
    "529": status(529, F.OVERLOADED, 2),
    "500 without JSON": Fault(lambda _: WireResponse(500, {}, b"<html>"), F.PROVIDER_ERROR, 2),
    "redirect": Fault(lambda _: WireResponse(302, {"location": "https://evil.example"}, b""), F.NOT_FOUND),
    "not sent": Fault(lambda _: NotSentError("refused"), F.CONNECTION, 2),
    "reset": Fault(lambda _: LostError("connection", "reset"), F.CONNECTION, 2, 2),
    "hang": Fault(lambda _: LostError("timeout", "late"), F.TIMEOUT, 2, 2),
    "page instead of an answer": body(b"<html>upstream</html>"),
    "cut off": Fault(cut_off, F.MALFORMED_RESPONSE, 2, 2),
    "nothing in it": body(b"{}"),
    "error with status 200": Fault(
        lambda _: replace(error(500, "api_error"), status=200), F.PROVIDER_ERROR, 2
    ),
    "truncated": paid(F.TRUNCATED, "half an ans", "truncated"),
    "refused": paid(F.REFUSED, "I can't", "refused"),
    "unheard-of end": paid(F.MALFORMED_RESPONSE, "well", "unheard of"),
    "empty": paid(F.EMPTY_ANSWER, " "),
    "no JSON": paid(F.INVALID_JSON, "hm", typed=True),
    "not the schema": paid(F.SCHEMA_MISMATCH, '{"label": "z"}', typed=True),
}


def cells() -> Iterator[tuple[str, str]]:
    for name, fault in FAULTS.items():
        yield from ((name, at) for at in (CHAT if fault.paid else BACKENDS))


@pytest.mark.parametrize(("name", "at"), cells())
def test_a_fault_online_has_its_class_and_its_price(name: str, at: str) -> None:
    fault, backend = FAULTS[name], BACKENDS[at]
    result, transport = run_batch(
        lambda sent, seen: fault.reply(backend),
        make_batch(1, (at,), json_schema=LABEL_SCHEMA if fault.typed else None),
        workload=make_workload({at: backend}, LIMITS),
    )
    (outcome,) = result.outcomes
    assert (outcome.failure, outcome.is_result) == (fault.failure, False)
    assert (outcome.calls, outcome.ambiguous_calls) == (fault.calls, fault.ambiguous)
    assert len(transport.sent) == fault.calls
    assert outcome.charge.amount == fault.paid * ONE_ANSWER
    assert len(result.ambiguous) == fault.ambiguous
    assert outcome.message


def line_of(provider: str, response: WireResponse) -> Any:
    """A line of a batch's results around what the same call online would have been answered."""
    data: Any = orjson.loads(response.body)
    if provider == "openai":
        inner = {"status_code": response.status, "request_id": "r", "body": data}
        return openai_line({"custom_id": "t", "response": inner, "error": None}).result
    if provider == "anthropic":
        return anthropic_line({"custom_id": "t", "result": {"type": "succeeded", "message": data}}).result
    return gemini_line({"key": "t", "response": data}).result


@pytest.mark.parametrize("at", ["openai", "anthropic", "gemini"])
@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.paid])
def test_a_paid_fault_in_a_batch_is_what_it_is_online(name: str, at: str) -> None:
    fault, backend = FAULTS[name], BACKENDS[at]
    response = fault.reply(backend)
    assert isinstance(response, WireResponse)
    result = line_of(at, response)
    assert isinstance(result, WireResponse)
    found = codec_of(backend).decode(result)
    assert isinstance(found, Answer)
    found = SchemaBook().check(found, LABEL_SCHEMA if fault.typed else None)
    assert found.failure == fault.failure
    assert (found.usage.input_tokens, found.usage.output_tokens) == (100, 20)


@pytest.mark.parametrize("at", ["openai", "anthropic", "gemini"])
def test_what_a_batch_did_not_answer_is_never_a_result(at: str) -> None:
    ends = {"expired": F.DEADLINE, "cancelled": F.CANCELLED, "failed": F.PROVIDER_ERROR}
    for end, failure in ends.items():
        found = not_worked_on(end)
        assert (found.failure, found.ambiguous) == (failure, False)
    assert no_line(at).ambiguous
    result = line_of(at, WireResponse(200, {}, b"{}"))
    if isinstance(result, WireResponse):
        result = codec_of(BACKENDS[at]).decode(result)
    assert isinstance(result, CallFailure)
    assert result.ambiguous


def test_there_are_at_least_25_faults_and_every_provider_has_them() -> None:
    assert len(FAULTS) >= 25
    assert {at for _, at in cells()} == set(BACKENDS)
