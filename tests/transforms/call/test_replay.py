"""Paid once: what a ledger knows is never sent again, whatever instant the process died at."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from schemas.errors import LedgerError
from schemas.failures import FailureClass
from schemas.limits import Limits
from tests.transforms.call.fakes import (
    LABEL_SCHEMA,
    FakeTransport,
    MemoryLedgers,
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
from transforms.call.ledger import scan
from transforms.call.ports import LostError
from transforms.call.wire import WireResponse


def fine(sent: Sent, seen: int) -> WireResponse:
    return answer_for(sent, f"answer to {sent.prompt}")


def test_answers_of_the_same_attempt_are_replayed_with_their_own_cost() -> None:
    ledgers = MemoryLedgers()
    before, _ = run_batch(fine, make_batch(5), ledgers)
    after, transport = run_batch(fine, make_batch(5), ledgers)
    assert transport.sent == []
    for old, new in zip(before.outcomes, after.outcomes, strict=True):
        assert (new.answer, new.charge, new.usage, new.calls) == (
            old.answer,
            old.charge,
            old.usage,
            old.calls,
        )
        assert (new.latency_ms, new.answered_at, new.request_sha256) == (
            old.latency_ms,
            old.answered_at,
            old.request_sha256,
        )
        assert (new.replayed_calls, old.replayed_calls) == (1, 0)


def test_a_replay_adds_nothing_to_the_ledger() -> None:
    ledgers = MemoryLedgers()
    run_batch(fine, make_batch(5), ledgers)
    before = bytes(ledgers.files["b1"])
    run_batch(fine, make_batch(5), ledgers)
    assert bytes(ledgers.files["b1"]) == before


def test_a_later_attempt_asks_again() -> None:
    ledgers = MemoryLedgers()
    run_batch(fine, make_batch(3), ledgers)
    result, transport = run_batch(fine, make_batch(3, attempt=2), ledgers)
    assert len(transport.sent) == 3
    assert [outcome.calls for outcome in result.outcomes] == [1, 1, 1]


def test_another_question_is_asked_although_the_row_was_answered() -> None:
    ledgers = MemoryLedgers()
    run_batch(fine, make_batch(1), ledgers)
    result, transport = run_batch(fine, make_batch(1, prompt="another question"), ledgers)
    assert len(transport.sent) == 1
    outcome = result.outcomes[0]
    assert outcome.answer == "answer to another question"
    assert (outcome.calls, outcome.replayed_calls) == (2, 0)
    assert outcome.usage.input_tokens == 200  # both were paid


@pytest.mark.parametrize(
    "reply",
    [
        anthropic_answer("not json"),
        anthropic_answer('{"label": "z"}'),
        anthropic_answer("half", "max_tokens"),
        anthropic_answer("no", "refusal"),
    ],
)
def test_a_paid_answer_that_is_no_result_is_replayed_as_that_failure(reply: WireResponse) -> None:
    ledgers = MemoryLedgers()
    batch = make_batch(1, json_schema=LABEL_SCHEMA)
    before, _ = run_batch(lambda sent, seen: reply, batch, ledgers)
    after, transport = run_batch(fine, batch, ledgers)
    assert transport.sent == []
    assert after.outcomes[0].failure is before.outcomes[0].failure is not None
    assert after.outcomes[0].charge == before.outcomes[0].charge


def test_failed_calls_of_an_earlier_life_are_counted_and_tried_again() -> None:
    ledgers = MemoryLedgers()
    run_batch(lambda sent, seen: error(500, "api_error"), make_batch(1), ledgers)
    result, transport = run_batch(fine, make_batch(1), ledgers)
    outcome = result.outcomes[0]
    assert outcome.is_result
    assert (outcome.calls, len(transport.sent)) == (7, 1)


def test_a_fallback_is_replayed_with_the_chain_that_was_tried() -> None:
    def script(sent: Sent, seen: int) -> WireResponse:
        return (
            error(401, "authentication_error") if sent.model.startswith("claude") else openai_answer("mini")
        )

    ledgers = MemoryLedgers()
    batch = make_batch(2, ("haiku", "mini"))
    run_batch(script, batch, ledgers)
    result, transport = run_batch(script, batch, ledgers)
    assert transport.sent == []
    assert result.outcomes[0].backend == "mini"
    assert result.outcomes[0].chain_tried == ("haiku", "mini")


def test_calls_in_flight_when_the_process_died_are_listed_once_and_only_once() -> None:
    ledgers = dead_in_flight(rows=3)
    listed = []
    for _ in range(3):
        ledgers = ledgers.after_a_crash()
        result, _ = run_batch(fine, make_batch(3), ledgers)
        listed.append([(call.row, call.cause) for call in result.ambiguous])
    assert listed == [[(0, "crash"), (1, "crash"), (2, "crash")]] * 3
    assert all((outcome.calls, outcome.ambiguous_calls) == (2, 1) for outcome in result.outcomes)
    assert [call.end for call in ledgers.calls()].count("unknown") == 3


def dead_in_flight(rows: int, ledgers: MemoryLedgers | None = None) -> MemoryLedgers:
    """A ledger whose process died while all its calls were in flight."""
    ledgers = ledgers or MemoryLedgers()

    async def main() -> None:
        async def never(sent: Sent, seen: int) -> Any:
            await asyncio.sleep(1e6)

        core = make_core(FakeTransport(never), ledgers)
        core_task = asyncio.create_task(core.run(make_batch(rows)))
        await asyncio.sleep(1)
        frozen.update(ledgers.after_a_crash().files)
        core_task.cancel()
        await asyncio.gather(core_task, return_exceptions=True)

    frozen: dict[str, bytearray] = {}
    run_virtual(main())
    return MemoryLedgers(frozen)


def test_a_row_that_dies_in_flight_every_time_is_not_paid_for_without_end() -> None:
    ledgers = MemoryLedgers()
    for _ in range(2):
        ledgers = dead_in_flight(1, ledgers)
    workload = make_workload(limits=Limits(max_calls=2))
    result, transport = run_batch(fine, make_batch(1), ledgers, workload=workload)
    assert transport.sent == []
    assert result.outcomes[0].failure is FailureClass.TIMEOUT
    assert result.outcomes[0].ambiguous_calls == 2


def test_no_answered_row_is_sent_again_wherever_the_ledger_was_cut() -> None:
    """Every prefix of the ledger is what a kill at some instant leaves behind."""
    ledgers = MemoryLedgers()

    def script(sent: Sent, seen: int) -> Any:
        if sent.prompt == "row-1" and not seen:
            return LostError("connection", "reset")
        if sent.prompt == "row-2" and not seen:
            return error(429, "rate_limit_error")
        return anthropic_answer("no", "refusal") if sent.prompt == "row-3" else answer_for(sent)

    batch = make_batch(4)
    uncut, _ = run_batch(script, batch, ledgers)
    data = bytes(ledgers.files["b1"])
    for length in range(0, len(data) + 1, 3):
        left = MemoryLedgers({"b1": bytearray(data[:length])})
        frames, _ = scan(data[:length])
        rows = {frame["id"]: frame["row"] for frame in frames if frame["kind"] == "intended"}
        done = {rows[frame["id"]] for frame in frames if frame["kind"] == "answered"}
        unended = len(rows) - sum(frame["kind"] in ("answered", "failed", "unknown") for frame in frames)
        result, transport = run_batch(script, batch, left)
        asked_again = {int(prompt.removeprefix("row-")) for prompt in transport.prompts()}
        assert asked_again.isdisjoint(done)
        assert asked_again | done == {0, 1, 2, 3}
        assert [o.failure for o in result.outcomes] == [o.failure for o in uncut.outcomes]
        assert sum(call.cause == "crash" for call in result.ambiguous) == unended
        assert sum(o.ambiguous_calls for o in result.outcomes) == len(result.ambiguous)
        again, silent = run_batch(script, batch, left)
        assert silent.sent == []
        assert [o.charge for o in again.outcomes] == [o.charge for o in result.outcomes]


def test_a_rehearsals_ledger_is_never_used_by_a_real_run_nor_the_other_way_round() -> None:
    for first, second in (("rehearsal", "live"), ("live", "rehearsal")):
        ledgers = MemoryLedgers()
        run_batch(fine, make_batch(1), ledgers, mode=first)
        with pytest.raises(LedgerError, match="don't mix"):
            run_batch(fine, make_batch(1), ledgers, mode=second)


def test_an_answer_recorded_at_another_address_is_still_the_answer() -> None:
    ledgers = MemoryLedgers()
    workload = make_workload()
    moved = {
        name: backend.model_copy(update={"base_url": "http://127.0.0.1:9"})
        for name, backend in workload.hosted_backends().items()
        if name == "haiku"
    }
    run_batch(fine, make_batch(1), ledgers, workload=workload)
    _, transport = run_batch(fine, make_batch(1), ledgers, workload=make_workload(moved))
    assert transport.sent == []
