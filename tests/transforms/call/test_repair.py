"""An answer that does not fit is sent back once: paid, shown, recorded, and replayed as it was."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from schemas.backends import HostedBackend
from schemas.failures import FailureClass
from schemas.limits import Limits
from schemas.outcomes import Outcome, Usage
from tests.transforms.call.fakes import (
    HAIKU,
    LABEL_SCHEMA,
    FakeTransport,
    MemoryLedgers,
    Reply,
    Sent,
    anthropic_answer,
    error,
    make_batch,
    make_request,
    make_workload,
    openai_answer,
    run_batch,
)
from transforms.call.budget import NoCap
from transforms.call.codecs import codec_of
from transforms.call.ports import LostError
from transforms.call.repair import repair_request
from transforms.call.wire import Answer, WireResponse

F = FailureClass
GOOD, BAD, WORSE = '{"label": "a"}', '{"label": "z"}', "no JSON at all"
ONE_ANSWER = Decimal("0.0002")  # 100 tokens at 1 USD and 20 at 5 USD a million


def is_repair(sent: Sent) -> bool:
    return len(sent.body["messages"]) - (sent.body["messages"][0]["role"] == "system") > 1


def replies(first: Reply, second: Reply) -> Any:
    """`first` to the question, `second` to the repair."""
    return lambda sent, seen: second if is_repair(sent) else first


def asked(chain: tuple[str, ...] = ("haiku",), rows: int = 1, **changes: Any) -> Any:
    return make_batch(rows, chain, json_schema=LABEL_SCHEMA, repair=True, **changes)


def outcome_of(script: Any, **core: Any) -> tuple[Outcome, FakeTransport]:
    result, transport = run_batch(script, asked(), **core)
    return result.outcomes[0], transport


@pytest.mark.parametrize("bad", [BAD, WORSE, "[1]", '"text"'])
def test_an_answer_that_does_not_fit_is_mended_and_both_are_paid_and_shown(bad: str) -> None:
    ledgers = MemoryLedgers()
    outcome, transport = outcome_of(replies(anthropic_answer(bad), anthropic_answer(GOOD)), ledgers=ledgers)
    assert outcome.is_result
    assert (outcome.answer, outcome.output) == (GOOD, {"label": "a"})
    assert (outcome.calls, len(transport.sent), outcome.replayed_calls) == (2, 2, 0)
    assert outcome.charge.amount == 2 * ONE_ANSWER
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (200, 40)
    assert [call.end for call in ledgers.calls()] == ["answered", "answered"]
    first, second = ledgers.calls()
    assert first.request_sha256 != second.request_sha256 == outcome.request_sha256


def test_the_second_request_has_the_first_answer_and_what_is_wrong_in_it() -> None:
    _, transport = outcome_of(replies(anthropic_answer(BAD), anthropic_answer(GOOD)))
    question, answer, complaint = transport.sent[1].body["messages"]
    assert (question["role"], answer, complaint["role"]) == (
        "user",
        {"role": "assistant", "content": BAD},
        "user",
    )
    assert question == transport.sent[0].body["messages"][0]
    assert "['label'] does not fit the JSON Schema: `enum` must be ['a', 'b']" in complaint["content"]
    assert transport.sent[1].body["output_config"] == transport.sent[0].body["output_config"]


@pytest.mark.parametrize(
    ("second", "failure"),
    [
        (anthropic_answer(BAD), F.SCHEMA_MISMATCH),
        (anthropic_answer(WORSE), F.INVALID_JSON),
        (anthropic_answer("no", "refusal"), F.REFUSED),
        (anthropic_answer("half", "max_tokens"), F.TRUNCATED),
        (anthropic_answer(" "), F.EMPTY_ANSWER),
    ],
)
def test_there_is_one_repair_and_no_second_one(second: WireResponse, failure: FailureClass) -> None:
    outcome, transport = outcome_of(replies(anthropic_answer(WORSE), second))
    assert outcome.failure is failure
    assert (outcome.calls, len(transport.sent)) == (2, 2)
    assert outcome.charge.amount == 2 * ONE_ANSWER
    assert "the first answer was rejected (the answer is not JSON" in outcome.message


@pytest.mark.parametrize(
    "first",
    [
        anthropic_answer("no", "refusal"),
        anthropic_answer(BAD, "max_tokens"),
        anthropic_answer(" "),
        anthropic_answer(BAD, "a_reason_of_tomorrow"),
        anthropic_answer(GOOD),
    ],
)
def test_only_an_answer_that_does_not_fit_is_sent_back(first: WireResponse) -> None:
    outcome, transport = outcome_of(replies(first, anthropic_answer(GOOD)))
    assert (outcome.calls, len(transport.sent)) == (1, 1)


def test_nothing_is_sent_back_when_the_prompt_says_so_or_has_no_schema() -> None:
    answer = Answer(BAD, Usage(1, 1), failure=F.SCHEMA_MISMATCH)
    assert repair_request(make_request(0, json_schema=LABEL_SCHEMA), answer) is None
    result, transport = run_batch(
        replies(anthropic_answer(BAD), anthropic_answer(GOOD)), make_batch(1, json_schema=LABEL_SCHEMA)
    )
    assert (result.outcomes[0].failure, len(transport.sent)) == (F.SCHEMA_MISMATCH, 1)


def crashed_after(appends: int, script: Any) -> MemoryLedgers:
    """The ledger of a process that died when so many frames were written."""
    ledgers = MemoryLedgers(fails_after=appends)
    with pytest.raises(Exception, match="full"):
        run_batch(script, asked(), ledgers)
    return ledgers.after_a_crash()


def test_a_crash_between_the_two_replays_the_first_and_sends_only_the_repair() -> None:
    script = replies(anthropic_answer(BAD), anthropic_answer(GOOD))
    ledgers = crashed_after(3, script)  # header, first intent, first answer
    result, transport = run_batch(script, asked(), ledgers)
    outcome = result.outcomes[0]
    assert outcome.is_result
    assert [is_repair(sent) for sent in transport.sent] == [True]
    assert (outcome.calls, outcome.replayed_calls) == (2, 1)
    assert outcome.charge.amount == 2 * ONE_ANSWER
    assert result.ambiguous == []


def test_a_crash_while_the_repair_is_in_flight_asks_it_again_and_lists_the_first_try() -> None:
    script = replies(anthropic_answer(BAD), anthropic_answer(GOOD))
    ledgers = crashed_after(4, script)  # and the second intent
    result, transport = run_batch(script, asked(), ledgers)
    assert result.outcomes[0].is_result
    assert [is_repair(sent) for sent in transport.sent] == [True]
    assert [call.cause for call in result.ambiguous] == ["crash"]
    assert (result.outcomes[0].calls, result.outcomes[0].ambiguous_calls) == (3, 1)


@pytest.mark.parametrize("second", [GOOD, BAD])
def test_a_recorded_pair_is_replayed_without_a_call_and_comes_out_the_same(second: str) -> None:
    ledgers = MemoryLedgers()
    script = replies(anthropic_answer(BAD), anthropic_answer(second))
    before = run_batch(script, asked(), ledgers)[0].outcomes[0]
    result, transport = run_batch(script, asked(), ledgers.after_a_crash())
    after = result.outcomes[0]
    assert transport.sent == []
    assert (after.failure, after.answer, after.output, after.message, after.request_sha256) == (
        before.failure,
        before.answer,
        before.output,
        before.message,
        before.request_sha256,
    )
    assert (after.calls, after.replayed_calls, after.charge.amount) == (2, 2, 2 * ONE_ANSWER)


def test_a_repair_that_gets_no_answer_leaves_the_first_answers_failure_which_no_rerun_pays_again() -> None:
    outcome, _ = outcome_of(replies(anthropic_answer(BAD), error(500, "api_error")))
    assert outcome.failure is F.SCHEMA_MISMATCH
    assert "it was to be repaired, but: " in outcome.message
    assert "api_error happened" in outcome.message
    assert outcome.answer == BAD
    assert outcome.calls == 7  # the first, and six tries of the second
    assert outcome.charge.amount == ONE_ANSWER


def test_a_repair_goes_to_the_backend_that_answered_and_not_along_the_chain() -> None:
    def script(sent: Sent, seen: int) -> Reply:
        if sent.model.startswith("claude"):
            return error(529, "overloaded_error")
        return openai_answer(GOOD if is_repair(sent) else BAD)

    result, transport = run_batch(script, asked(("haiku", "mini")))
    outcome = result.outcomes[0]
    assert (outcome.is_result, outcome.backend, outcome.chain_tried) == (True, "mini", ("haiku", "mini"))
    assert [sent.model for sent in transport.sent if is_repair(sent)] == ["gpt-4.1-mini"]
    failing = run_batch(
        replies(anthropic_answer(BAD), error(529, "overloaded_error")), asked(("haiku", "mini"))
    )
    assert failing[0].outcomes[0].failure is F.SCHEMA_MISMATCH
    assert {sent.model for sent in failing[1].sent} == {"claude-haiku-4-5"}


def test_a_repair_whose_end_is_unknown_is_tried_once_more_and_counted_at_its_worst() -> None:
    outcome, _ = outcome_of(replies(anthropic_answer(BAD), LostError("timeout", "late")))
    assert outcome.failure is F.SCHEMA_MISMATCH
    assert (outcome.calls, outcome.ambiguous_calls) == (3, 2)
    assert outcome.ambiguous_amount > 0


class CountingBudget(NoCap):
    """Allows so many reservations, and notes what was reserved and settled."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.reserved: list[Decimal] = []
        self.settled: list[Decimal] = []
        self.sentence = "the budget of 1 USD would be passed; no call was made"

    async def reserve(self, worst: Any, *rest: Any, **named: Any) -> Any:
        if len(self.reserved) >= self.allowed:
            return False
        self.reserved.append(worst)
        return True

    def settle(self, worst: Any, actual: Any, *rest: Any, **named: Any) -> None:
        self.settled.append(actual)


def test_each_of_the_two_calls_is_reserved_at_its_own_worst_case() -> None:
    budget = CountingBudget(2)
    ledgers = MemoryLedgers()
    outcome, _ = outcome_of(
        replies(anthropic_answer(BAD), anthropic_answer(GOOD)), budget=budget, ledgers=ledgers
    )
    assert outcome.is_result
    assert len(budget.reserved) == 2
    first, second = (call.worst for call in ledgers.calls())
    assert 0 < first < second  # type: ignore[operator]


def test_a_repair_that_the_cap_does_not_allow_is_not_made_and_says_so() -> None:
    outcome, transport = outcome_of(
        replies(anthropic_answer(BAD), anthropic_answer(GOOD)), budget=CountingBudget(1)
    )
    assert outcome.failure is F.SCHEMA_MISMATCH
    assert "it was to be repaired, but: the budget of 1 USD would be passed" in outcome.message
    assert len(transport.sent) == 1


def test_the_documents_deadline_covers_both_calls() -> None:
    limits = Limits(document_deadline_s=10, request_timeout_s=9)

    async def script(sent: Sent, seen: int) -> Reply:
        await asyncio.sleep(8)
        return anthropic_answer(BAD)

    workload = make_workload({"haiku": HAIKU}, limits)
    result, transport = run_batch(script, asked(), workload=workload)
    assert result.outcomes[0].failure is F.SCHEMA_MISMATCH
    assert len(transport.sent) == 2
    assert result.ambiguous[0].cause == "timeout"


def test_every_row_has_at_most_two_paid_answers_whatever_is_answered() -> None:
    texts = [GOOD, BAD, WORSE]

    def script(sent: Sent, seen: int) -> Reply:
        row = int(sent.body["messages"][0]["content"].removeprefix("row-"))
        return anthropic_answer(texts[(row // 3 if is_repair(sent) else row) % 3])

    ledgers = MemoryLedgers()
    result, transport = run_batch(script, asked(rows=30), ledgers)
    paid = [sum(call.row == row for call in ledgers.calls()) for row in range(30)]
    assert max(paid) == 2
    assert [outcome.calls for outcome in result.outcomes] == paid
    assert sum(o.charge.amount for o in result.outcomes if o.charge.amount) == ONE_ANSWER * len(
        transport.sent
    )


@pytest.mark.parametrize(
    ("backend", "turns"),
    [
        (
            {"provider": "openai", "model": "m"},
            lambda body: [(m["role"], m["content"]) for m in body["messages"][1:]],
        ),
        (
            {"provider": "gemini", "model": "m"},
            lambda body: [
                ({"model": "assistant"}.get(c["role"], c["role"]), c["parts"][0]["text"])
                for c in body["contents"]
            ],
        ),
    ],
)
def test_every_wire_format_carries_the_conversation(backend: dict[str, Any], turns: Any) -> None:
    answer = Answer(BAD, Usage(1, 1), failure=F.SCHEMA_MISMATCH, message="it is wrong")
    request = repair_request(make_request(3, json_schema=LABEL_SCHEMA, repair=True), answer)
    assert request is not None
    hosted = HostedBackend.model_validate(backend)
    said = turns(codec_of(hosted).body(hosted, request))
    assert [role for role, _ in said] == ["user", "assistant", "user"]
    assert said[0][1] == "row-3"
    assert said[1][1] == BAD
    assert "it is wrong" in said[2][1]
