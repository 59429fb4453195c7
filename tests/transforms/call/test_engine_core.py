"""The production core in virtual time: retries, parking, fallback, deadlines, in-flight limits."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from schemas.backends import HostedBackend
from schemas.errors import BatchClaimedError, BatchError, LedgerError
from schemas.failures import FailureClass
from schemas.limits import Limits
from schemas.outcomes import ZERO
from tests.transforms.call.fakes import (
    CANARY,
    HAIKU,
    LABEL_SCHEMA,
    MINI,
    FakeTransport,
    MemoryLedgers,
    MemoryLog,
    Sent,
    answer_for,
    anthropic_answer,
    error,
    make_batch,
    make_core,
    make_workload,
    openai_answer,
    run_batch,
    run_virtual,
)
from transforms.call.ports import LostError, NotSentError
from transforms.call.request import CallBatchResult
from transforms.call.wire import WireResponse

F = FailureClass


def always(reply: WireResponse | Exception) -> Any:
    return lambda sent, seen: reply


def first(reply: WireResponse | Exception) -> Any:
    """`reply` to a document's first call, a good answer to the others."""
    return lambda sent, seen: answer_for(sent) if seen else reply


def test_an_answer_becomes_a_result_with_its_cost_and_origin() -> None:
    result, transport = run_batch(always(anthropic_answer("fine")))
    outcome = result.outcomes[0]
    assert outcome.is_result
    assert (outcome.answer, outcome.backend, outcome.provider) == ("fine", "haiku", "anthropic")
    assert (outcome.request_model, outcome.response_model) == (
        "claude-haiku-4-5",
        "claude-haiku-4-5-20251001",
    )
    assert (outcome.response_id, outcome.finish_reasons, outcome.operation) == (
        "msg_01",
        ("end_turn",),
        "chat",
    )
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (100, 20)
    # 100 tokens at 1 USD and 20 at 5 USD a million
    assert outcome.charge.amount == outcome.charge.list_amount == Decimal("0.0002")
    assert (outcome.charge.basis, outcome.charge.certainty, outcome.charge.price_as_of) == (
        "tokens",
        "exact",
        "2026-11-22",
    )
    assert (outcome.calls, outcome.ambiguous_calls, outcome.replayed_calls) == (1, 0, 0)
    assert outcome.chain_tried == ("haiku",)
    assert outcome.latency_ms == pytest.approx(50)
    assert outcome.answered_at == "2026-11-22T09:00:00.050000+00:00"
    assert (outcome.document_sha256, outcome.prompt_sha256) == ("d" * 64, "p" * 64)
    assert len(outcome.request_sha256 or "") == 64
    assert transport.sent[0].key == CANARY


def test_outcomes_come_in_the_order_of_the_requests_whatever_the_order_of_the_answers() -> None:
    async def script(sent: Sent, seen: int) -> WireResponse:
        await asyncio.sleep(10 - int(sent.prompt.removeprefix("row-")))
        return anthropic_answer(sent.prompt)

    result, _ = run_batch(script, make_batch(10))
    assert [outcome.answer for outcome in result.outcomes] == [f"row-{row}" for row in range(10)]


@pytest.mark.parametrize(
    ("reply", "failure", "calls"),
    [
        (error(400, "invalid_request_error"), F.BAD_REQUEST, 1),
        (error(422, "invalid_request_error"), F.BAD_REQUEST, 1),
        (error(401, "authentication_error"), F.AUTHENTICATION, 1),
        (error(403, "permission_error"), F.PERMISSION, 1),
        (error(404, "not_found_error"), F.NOT_FOUND, 1),
        (error(402, "billing_error"), F.QUOTA_EXHAUSTED, 1),
        (error(429, "insufficient_quota", "insufficient_quota"), F.QUOTA_EXHAUSTED, 1),
        (error(413, "request_too_large"), F.REQUEST_TOO_LARGE, 1),
        (error(400, "invalid_request_error", "context_length_exceeded"), F.REQUEST_TOO_LARGE, 1),
        (error(500, "api_error"), F.PROVIDER_ERROR, 6),
        (error(502, "api_error"), F.PROVIDER_ERROR, 6),
        (error(504, "api_error"), F.PROVIDER_ERROR, 6),
        (error(408, "timeout_error"), F.PROVIDER_ERROR, 6),
        (error(409, "api_error"), F.PROVIDER_ERROR, 6),
        (error(503, "overloaded_error"), F.OVERLOADED, 6),
        (error(529, "overloaded_error"), F.OVERLOADED, 6),
        (error(200, "overloaded_error"), F.OVERLOADED, 6),
        (error(302, ""), F.NOT_FOUND, 1),
        (NotSentError("refused"), F.CONNECTION, 6),
        (NotSentError("not allowed", final=True), F.CONNECTION, 1),
    ],
)
def test_a_failure_that_is_not_billed_is_retried_by_its_class_and_costs_nothing(
    reply: WireResponse | Exception, failure: FailureClass, calls: int
) -> None:
    ledgers = MemoryLedgers()
    result, transport = run_batch(always(reply), ledgers=ledgers)
    outcome = result.outcomes[0]
    assert outcome.failure is failure
    assert outcome.message
    assert (outcome.calls, len(transport.sent)) == (calls, calls)
    assert (outcome.charge.amount, outcome.charge.basis, outcome.ambiguous_calls) == (ZERO, "none", 0)
    assert [call.end for call in ledgers.calls()] == ["failed"] * calls


@pytest.mark.parametrize(
    ("reply", "failure", "cause"),
    [
        (LostError("timeout", "late"), F.TIMEOUT, "timeout"),
        (LostError("connection", "reset"), F.CONNECTION, "connection"),
        (WireResponse(200, {}, b"<html>proxy</html>"), F.MALFORMED_RESPONSE, "malformed"),
        (WireResponse(200, {}, b'{"id": "half an answ'), F.MALFORMED_RESPONSE, "malformed"),
        (WireResponse(200, {}, b"{}"), F.MALFORMED_RESPONSE, "malformed"),
    ],
)
def test_a_call_without_a_known_end_is_tried_once_more_and_counted_at_its_worst(
    reply: WireResponse | Exception, failure: FailureClass, cause: str
) -> None:
    ledgers = MemoryLedgers()
    result, transport = run_batch(always(reply), ledgers=ledgers)
    outcome = result.outcomes[0]
    assert outcome.failure is failure
    assert (outcome.calls, outcome.ambiguous_calls, len(transport.sent)) == (2, 2, 2)
    worst = ledgers.calls()[0].worst
    assert worst is not None
    assert worst > 0
    assert outcome.ambiguous_amount == 2 * worst
    assert [call.cause for call in result.ambiguous] == [cause] * 2
    assert {call.worst_amount for call in result.ambiguous} == {str(worst)}
    assert (result.ambiguous[0].row, result.ambiguous[0].route, result.ambiguous[0].backend) == (
        0,
        "r",
        "haiku",
    )


def test_an_answer_after_an_unknown_end_is_a_result_that_tells_of_both() -> None:
    result, transport = run_batch(first(LostError("timeout", "late")))
    outcome = result.outcomes[0]
    assert outcome.is_result
    assert (outcome.calls, outcome.ambiguous_calls, len(transport.sent)) == (2, 1, 2)
    assert outcome.charge.amount == Decimal("0.0002")
    assert outcome.ambiguous_amount > 0


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (anthropic_answer("half", "max_tokens"), F.TRUNCATED),
        (anthropic_answer("half", "model_context_window_exceeded"), F.TRUNCATED),
        (anthropic_answer("half", "pause_turn"), F.TRUNCATED),
        (anthropic_answer("no", "refusal"), F.REFUSED),
        (anthropic_answer(" \n"), F.EMPTY_ANSWER),
        (anthropic_answer("odd", "a_reason_of_tomorrow"), F.MALFORMED_RESPONSE),
        (anthropic_answer("not json"), F.INVALID_JSON),
        (anthropic_answer('{"label": "z"}'), F.SCHEMA_MISMATCH),
        (anthropic_answer("[1]"), F.SCHEMA_MISMATCH),
    ],
)
def test_a_paid_answer_that_is_no_result_is_kept_with_its_cost_and_never_bought_again(
    reply: WireResponse, failure: FailureClass
) -> None:
    batch = make_batch(1, ("haiku", "mini"), json_schema=LABEL_SCHEMA)
    result, transport = run_batch(always(reply), batch)
    outcome = result.outcomes[0]
    assert outcome.failure is failure
    assert (outcome.calls, len(transport.sent)) == (1, 1)
    assert outcome.chain_tried == ("haiku",)
    assert outcome.answer
    assert outcome.output is None
    assert outcome.charge.amount == Decimal("0.0002")
    assert outcome.usage.output_tokens == 20


def test_a_structured_answer_is_parsed_and_checked() -> None:
    result, transport = run_batch(
        always(anthropic_answer('{"label": "a"}')), make_batch(1, json_schema=LABEL_SCHEMA)
    )
    assert result.outcomes[0].output == {"label": "a"}
    assert transport.sent[0].body["output_config"]["format"]["schema"] == LABEL_SCHEMA


def test_an_answer_without_token_counts_has_an_unknown_price_and_not_zero() -> None:
    result, _ = run_batch(always(anthropic_answer("fine", usage={})))
    charge = result.outcomes[0].charge
    assert result.outcomes[0].is_result
    assert (charge.amount, charge.list_amount, charge.certainty) == (None, None, "unknown")


def test_a_retry_after_parks_the_whole_lane_and_not_only_its_document() -> None:
    def script(sent: Sent, seen: int) -> WireResponse:
        limited = sent.prompt == "row-0" and not seen
        return error(429, "rate_limit_error", retry_after="30") if limited else answer_for(sent)

    backends = {"haiku": HAIKU.model_copy(update={"max_in_flight": 2})}
    result, transport = run_batch(script, make_batch(6), workload=make_workload(backends))
    assert all(outcome.is_result for outcome in result.outcomes)
    parked_at = 0.05
    assert not [sent for sent in transport.sent if parked_at < sent.at < parked_at + 30]
    assert [outcome.calls for outcome in result.outcomes] == [2, 1, 1, 1, 1, 1]


def test_another_lane_goes_on_while_one_is_parked() -> None:
    def script(sent: Sent, seen: int) -> WireResponse:
        limited = sent.model == "claude-haiku-4-5" and not seen
        return error(429, "rate_limit_error", retry_after="60") if limited else answer_for(sent)

    transport = FakeTransport(script)

    async def main() -> float:
        core = make_core(transport, max_in_flight=1)
        slow = asyncio.create_task(core.run(make_batch(3, ("haiku",), "slow")))
        await asyncio.sleep(1)
        await core.run(make_batch(3, ("mini",), "quick"))
        quick_after = asyncio.get_running_loop().time()
        await slow
        return quick_after

    assert run_virtual(main()) < 2


def test_a_retry_after_beyond_two_minutes_closes_the_lane_and_fails_its_documents_retryably() -> None:
    script = always(error(429, "rate_limit_error", retry_after="100000"))
    backends = {"haiku": HAIKU.model_copy(update={"max_in_flight": 1})}
    result, transport = run_batch(script, make_batch(50), workload=make_workload(backends))
    assert len(transport.sent) == 1
    assert {outcome.failure for outcome in result.outcomes} == {F.RATE_LIMITED}
    assert "100000 s" in result.outcomes[-1].message
    assert [outcome.calls for outcome in result.outcomes] == [1] + [0] * 49


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (error(401, "authentication_error"), F.AUTHENTICATION),
        (error(403, "permission_error"), F.PERMISSION),
        (error(404, "not_found_error"), F.NOT_FOUND),
        (error(429, "rate_limit_error", "enforced_spend_limit_reached"), F.QUOTA_EXHAUSTED),
    ],
)
def test_a_refused_key_or_model_stops_the_lane_instead_of_a_thousand_doomed_calls(
    reply: WireResponse, failure: FailureClass
) -> None:
    result, transport = run_batch(always(reply), make_batch(1000))
    assert len(transport.sent) <= HAIKU.max_in_flight
    assert {outcome.failure for outcome in result.outcomes} == {failure}
    assert "no further calls were made" in result.outcomes[-1].message
    assert sum(outcome.calls for outcome in result.outcomes) == len(transport.sent)


@pytest.mark.parametrize(
    "reply",
    [
        error(429, "rate_limit_error"),
        error(500, "api_error"),
        error(529, "overloaded_error"),
        error(401, "authentication_error"),
        error(403, "permission_error"),
        error(404, "not_found_error"),
        error(402, "billing_error"),
        LostError("timeout", "late"),
        LostError("connection", "reset"),
        NotSentError("refused"),
        WireResponse(200, {}, b"garbage"),
    ],
)
def test_the_next_backend_of_the_chain_answers_when_one_is_not_available(reply: Any) -> None:
    def script(sent: Sent, seen: int) -> Any:
        return reply if sent.model.startswith("claude") else openai_answer("from mini")

    outcome = run_batch(script, make_batch(1, ("haiku", "mini")))[0].outcomes[0]
    assert (outcome.is_result, outcome.answer, outcome.backend) == (True, "from mini", "mini")
    assert outcome.chain_tried == ("haiku", "mini")
    assert outcome.calls > 1


def test_a_chain_without_an_answer_tells_of_every_backend_and_stays_retryable() -> None:
    def script(sent: Sent, seen: int) -> WireResponse:
        return error(529, "overloaded_error") if sent.model.startswith("claude") else error(400, "bad")

    outcome = run_batch(script, make_batch(1, ("haiku", "mini")))[0].outcomes[0]
    assert outcome.failure is F.OVERLOADED
    assert "backend 'haiku'" in outcome.message
    assert "backend 'mini'" in outcome.message


def test_a_bad_request_is_not_sent_to_the_next_backend() -> None:
    result, transport = run_batch(always(error(400, "bad")), make_batch(1, ("haiku", "mini")))
    assert result.outcomes[0].failure is F.BAD_REQUEST
    assert len(transport.sent) == 1


def test_a_document_ends_at_its_deadline_even_if_its_provider_never_recovers() -> None:
    limits = Limits(max_calls=100, document_deadline_s=20)
    ledgers = MemoryLedgers()
    result, transport = run_batch(
        always(error(500, "api_error")), ledgers=ledgers, workload=make_workload(limits=limits)
    )
    assert result.outcomes[0].failure is F.DEADLINE
    assert "api_error happened" in result.outcomes[0].message
    assert transport.sent[-1].at < 20
    assert len(transport.sent) > 3


def test_a_document_waiting_for_its_turn_does_not_use_up_its_deadline() -> None:
    async def script(sent: Sent, seen: int) -> WireResponse:
        await asyncio.sleep(9)
        return answer_for(sent)

    limits = Limits(document_deadline_s=10)
    backends = {"haiku": HAIKU.model_copy(update={"max_in_flight": 1})}
    result, _ = run_batch(script, make_batch(5), workload=make_workload(backends, limits))
    assert all(outcome.is_result for outcome in result.outcomes)


def test_a_hanging_call_ends_at_the_request_timeout() -> None:
    async def script(sent: Sent, seen: int) -> WireResponse:
        await asyncio.sleep(0 if seen else 1e6)
        return answer_for(sent)

    workload = make_workload(limits=Limits(request_timeout_s=7))
    result, transport = run_batch(script, workload=workload)
    assert result.outcomes[0].is_result
    assert [call.cause for call in result.ambiguous] == ["timeout"]
    assert 7 <= transport.sent[1].at < 8


def test_no_more_calls_are_in_flight_than_the_run_and_each_backend_allow() -> None:
    backends = {
        "haiku": HAIKU.model_copy(update={"max_in_flight": 5}),
        "mini": MINI.model_copy(update={"max_in_flight": 50}),
    }
    transport = FakeTransport(lambda sent, seen: answer_for(sent))

    async def main() -> None:
        core = make_core(transport, workload=make_workload(backends), max_in_flight=20)
        await asyncio.gather(
            *(core.run(make_batch(40, (name,), f"{name}-{n}")) for name in backends for n in range(3))
        )

    run_virtual(main())
    assert len(transport.sent) == 240
    assert transport.most_in_flight == 20
    assert transport.most_by_model["claude-haiku-4-5"] == 5


def test_backends_with_the_same_model_and_key_share_one_lane() -> None:
    twin = HAIKU.model_copy(update={"max_in_flight": 3})
    transport = FakeTransport(lambda sent, seen: answer_for(sent))

    async def main() -> None:
        core = make_core(transport, workload=make_workload({"haiku": twin, "twin": twin}))
        await asyncio.gather(
            core.run(make_batch(9, ("haiku",), "x")), core.run(make_batch(9, ("twin",), "y"))
        )

    run_virtual(main())
    assert transport.most_in_flight == 3


def test_an_earlier_batch_is_finished_first() -> None:
    backends = {"haiku": HAIKU.model_copy(update={"max_in_flight": 4})}
    transport = FakeTransport(lambda sent, seen: answer_for(sent))
    finished: list[str] = []

    async def main() -> None:
        core = make_core(transport, workload=make_workload(backends))

        async def run(name: str) -> None:
            await core.run(make_batch(40, batch_id=name))
            finished.append(name)

        await asyncio.gather(*(run(f"b{n}") for n in range(4)))

    run_virtual(main())
    assert finished == ["b0", "b1", "b2", "b3"]


def test_an_intent_that_cannot_be_written_sends_nothing() -> None:
    ledgers = MemoryLedgers(fails_after=1)  # the header fits, the first intent does not
    transport = FakeTransport(lambda sent, seen: answer_for(sent))

    async def main() -> None:
        await make_core(transport, ledgers).run(make_batch(20))

    with pytest.raises(LedgerError, match="full"):
        run_virtual(main())
    assert transport.sent == []


def test_an_answer_that_cannot_be_written_fails_the_batch_and_is_never_used() -> None:
    ledgers = MemoryLedgers(fails_after=2)  # header and intent fit, the answer does not
    transport = FakeTransport(lambda sent, seen: answer_for(sent))

    async def main() -> None:
        await make_core(transport, ledgers).run(make_batch(1))

    with pytest.raises(LedgerError):
        run_virtual(main())
    assert [call.end for call in ledgers.calls()] == [None]
    result, again = run_batch(lambda sent, seen: answer_for(sent), make_batch(1), ledgers.after_a_crash())
    assert result.outcomes[0].is_result
    assert [call.cause for call in result.ambiguous] == ["crash"]
    assert len(again.sent) == 1


def test_a_result_is_handed_out_only_when_the_ledger_is_durable() -> None:
    ledgers = MemoryLedgers()
    run_batch(always(anthropic_answer("fine")), make_batch(3), ledgers)
    assert ledgers.synced["b1"] == len(ledgers.files["b1"])
    assert ledgers.held == set()


def test_a_batch_that_another_worker_holds_is_refused() -> None:
    ledgers = MemoryLedgers(held={"b1"})
    with pytest.raises(BatchClaimedError):
        run_batch(always(anthropic_answer("fine")), ledgers=ledgers)


def test_a_defect_in_one_document_does_not_waste_the_answers_that_others_are_waiting_for() -> None:
    async def script(sent: Sent, seen: int) -> Any:
        if sent.prompt == "row-0":
            raise ZeroDivisionError("a defect")
        await asyncio.sleep(5)
        return answer_for(sent)

    ledgers = MemoryLedgers()
    with pytest.raises(ZeroDivisionError):
        run_batch(script, make_batch(8), ledgers, max_in_flight=4)
    ends = [call.end for call in ledgers.calls()]
    assert ends.count("answered") == 3
    assert len(ends) == 4  # nothing new was started


def test_a_batch_that_names_an_assignment_twice_is_refused_before_anything_is_sent() -> None:
    batch = make_batch(2)
    twice = type(batch)("b1", 1, (batch.requests[0], batch.requests[0]))
    transport = FakeTransport(lambda sent, seen: answer_for(sent))
    with pytest.raises(BatchError, match="twice"):
        run_virtual(make_core_and_run(transport, twice))
    assert transport.sent == []


async def make_core_and_run(transport: FakeTransport, batch: Any) -> CallBatchResult:
    return await make_core(transport).run(batch)


def test_closing_settles_what_is_in_flight_and_sends_nothing_more() -> None:
    async def script(sent: Sent, seen: int) -> WireResponse:
        await asyncio.sleep(2)
        return answer_for(sent)

    ledgers = MemoryLedgers()
    transport = FakeTransport(script)

    async def main() -> BaseException | None:
        core = make_core(transport, ledgers, max_in_flight=3)
        batch = asyncio.create_task(core.run(make_batch(30)))
        await asyncio.sleep(1)
        await core.close(grace_s=10)
        assert asyncio.get_running_loop().time() < 4
        with pytest.raises(BatchError, match="cancelled"):
            await core.run(make_batch(1, batch_id="b2"))
        return batch.exception()

    assert isinstance(run_virtual(main()), BatchError)
    assert [call.end for call in ledgers.calls()] == ["answered"] * 3
    assert ledgers.held == set()


class SlowLog(MemoryLog):
    """A ledger that takes three seconds to make its records durable, as one far away may."""

    async def sync(self) -> None:
        await asyncio.sleep(3)
        await super().sync()

    async def close(self) -> None:
        await self.sync()
        await super().close()


class SlowLedgers(MemoryLedgers):
    async def open(self, batch_id: str) -> MemoryLog:
        await super().open(batch_id)
        return SlowLog(self, batch_id)


def test_what_was_answered_is_durable_even_when_the_grace_of_closing_is_over() -> None:
    sent_so_far: list[Sent] = []

    async def script(sent: Sent, seen: int) -> WireResponse:
        sent_so_far.append(sent)
        await asyncio.sleep(0.1)
        if len(sent_so_far) == 1:
            return answer_for(sent)
        return error(429, "rate_limit_error", retry_after="60")  # all others wait from here on

    ledgers = SlowLedgers()

    async def main() -> None:
        core = make_core(FakeTransport(script), ledgers, max_in_flight=1)
        batch = asyncio.create_task(core.run(make_batch(30)))
        await asyncio.sleep(1)
        await core.close(grace_s=0.1)
        assert batch.done()

    run_virtual(main())
    assert "answered" in [call.end for call in ledgers.calls()]
    assert ledgers.synced == {"b1": len(ledgers.files["b1"])}
    assert ledgers.held == set()


def test_what_does_not_end_in_time_after_closing_is_recorded_as_unknown() -> None:
    async def script(sent: Sent, seen: int) -> WireResponse:
        await asyncio.sleep(1000)
        return answer_for(sent)

    ledgers = MemoryLedgers()

    async def main() -> None:
        core = make_core(
            FakeTransport(script),
            ledgers,
            make_workload(limits=Limits(request_timeout_s=500)),
            max_in_flight=3,
        )
        batch = asyncio.create_task(core.run(make_batch(30)))
        await asyncio.sleep(1)
        await core.close(grace_s=10)
        assert batch.done()

    run_virtual(main())
    calls = ledgers.calls()
    assert [(call.end, call.final["cause"]) for call in calls] == [("unknown", "cancelled")] * 3


def test_a_key_that_a_server_echoes_is_masked_in_outcome_and_ledger() -> None:
    ledgers = MemoryLedgers()

    def script(sent: Sent, seen: int) -> WireResponse:
        if sent.prompt == "row-0":
            return error(400, f"bad key {sent.key}")
        if sent.prompt == "row-1":
            return WireResponse(200, {}, f"garbage {sent.key}".encode())
        answer = anthropic_answer(f"your key is {sent.key}")
        return WireResponse(200, {"request-id": f"for {sent.key}"}, answer.body)

    result, _ = run_batch(script, make_batch(3), ledgers)
    assert CANARY not in repr(result)
    assert CANARY.encode() not in bytes(ledgers.files["b1"])
    assert result.outcomes[2].answer == "your key is [key]"


def test_a_rehearsal_bills_nothing_and_says_what_it_would_have_cost() -> None:
    result, _ = run_batch(first(LostError("timeout", "late")), mode="rehearsal")
    outcome = result.outcomes[0]
    assert (outcome.charge.basis, outcome.charge.amount) == ("rehearsal", ZERO)
    assert outcome.charge.list_amount == Decimal("0.0002")
    assert (outcome.ambiguous_calls, outcome.ambiguous_amount) == (1, ZERO)


def test_a_text_that_json_cannot_carry_is_that_documents_failure() -> None:
    result, transport = run_batch(always(anthropic_answer("fine")), make_batch(1, prompt="\ud800"))
    assert result.outcomes[0].failure is F.INVALID_TEXT
    assert transport.sent == []


def test_a_backend_at_an_address_of_its_own_has_an_estimated_price() -> None:
    own = HostedBackend(provider="openai", model="gpt-4.1-mini", base_url="http://127.0.0.1:9/v1")
    result, _ = run_batch(
        always(openai_answer("fine")), make_batch(1, ("own",)), workload=make_workload({"own": own})
    )
    assert result.outcomes[0].charge.certainty == "estimated"
