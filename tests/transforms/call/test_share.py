"""Identical requests are paid once: in a batch, across batches, after a crash; and what is not shared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from schemas.errors import LedgerError
from schemas.failures import FailureClass
from schemas.limits import Limits
from schemas.outcomes import ZERO, Outcome, SharedFrom
from tests.transforms.call.fakes import (
    FakeTransport,
    MemoryLedgers,
    MemoryLog,
    Sent,
    VirtualClock,
    answer_for,
    anthropic_answer,
    error,
    make_batch,
    make_core,
    make_workload,
    run_virtual,
    with_prompt,
)
from transforms.call.core import CallCore
from transforms.call.ledger_totals import LedgerTotals
from transforms.call.ports import LostError
from transforms.call.request import CallBatch, CallBatchResult
from transforms.call.share import Asking, Place, SharedAnswer, Shares, share_key

F = FailureClass
SAME = "the very same question"


def fine(sent: Sent, seen: int) -> Any:
    return answer_for(sent, f"answer {seen} to {sent.prompt}")


def run_shared(
    batches: list[CallBatch], script: Any = fine, ledgers: MemoryLedgers | None = None, **core: Any
) -> tuple[list[CallBatchResult], FakeTransport, MemoryLedgers]:
    """Batches through one core that shares answers, at the same time, in virtual time."""
    ledgers = ledgers or MemoryLedgers()
    transport = FakeTransport(script)

    async def main() -> list[CallBatchResult]:
        made = sharing(make_core(transport, ledgers, **core))
        return await asyncio.gather(*(made.run(batch) for batch in batches))

    return run_virtual(main()), transport, ledgers


def sharing(core: CallCore) -> CallCore:
    core.desk.shares = Shares(VirtualClock())
    return core


def spent(ledgers: MemoryLedgers) -> LedgerTotals:
    totals = LedgerTotals()
    for name in ledgers.files:
        for call in ledgers.calls(name):
            totals.add(call)
    return totals


def billed(outcomes: list[Outcome]) -> Any:
    return sum((outcome.charge.amount or ZERO for outcome in outcomes), ZERO)


def test_identical_documents_of_a_batch_are_paid_once_and_all_have_the_answer() -> None:
    (result,), transport, ledgers = run_shared([make_batch(40, prompt=SAME)])
    assert len(transport.sent) == 1
    assert {outcome.answer for outcome in result.outcomes} == {f"answer 0 to {SAME}"}
    payer = [outcome for outcome in result.outcomes if outcome.shared_from is None]
    others = [outcome for outcome in result.outcomes if outcome.shared_from is not None]
    assert (len(payer), len(others)) == (1, 39)
    origin = SharedFrom("b1", payer[0].assignment.row, "r", payer[0].assignment.document_id)
    assert {outcome.shared_from for outcome in others} == {origin}
    assert {(o.charge.amount, o.charge.basis, o.calls, o.usage.input_tokens) for o in others} == {
        (ZERO, "shared", 0, None)
    }
    assert billed(result.outcomes) == spent(ledgers).amount > 0
    assert spent(ledgers).calls == 1


def test_each_row_keeps_its_own_assignment_and_digests() -> None:
    (result,), _, _ = run_shared([make_batch(3, prompt=SAME)])
    assert [o.assignment.row for o in result.outcomes] == [0, 1, 2]
    assert len({o.request_sha256 for o in result.outcomes}) == 1
    assert {o.document_sha256 for o in result.outcomes} == {"d" * 64}


def test_batches_that_run_at_the_same_time_share_and_name_the_batch_that_paid() -> None:
    batches = [make_batch(5, prompt=SAME, batch_id=name) for name in ("b1", "b2", "b3")]
    results, transport, ledgers = run_shared(batches)
    assert len(transport.sent) == 1
    shared = [o.shared_from for r in results for o in r.outcomes if o.shared_from is not None]
    assert len(shared) == 14
    assert {origin.batch_id for origin in shared} == {"b1"}
    assert billed([o for r in results for o in r.outcomes]) == spent(ledgers).amount


def test_a_batch_that_comes_later_finds_the_answer_of_an_earlier_one() -> None:
    transport = FakeTransport(fine)

    async def main() -> CallBatchResult:
        core = sharing(make_core(transport))
        await core.run(make_batch(1, prompt=SAME))
        return await core.run(make_batch(1, prompt=SAME, batch_id="b2"))

    result = run_virtual(main())
    assert len(transport.sent) == 1
    assert result.outcomes[0].shared_from == SharedFrom("b1", 0, "r", "d0")


def test_another_backend_is_asked_for_itself() -> None:
    assert share_key("haiku", "0" * 64) != share_key("mini", "0" * 64)
    batches = [make_batch(2, ("haiku",), "b1", prompt=SAME), make_batch(2, ("mini",), "b2", prompt=SAME)]
    _, transport, _ = run_shared(batches)
    assert sorted(sent.model for sent in transport.sent) == ["claude-haiku-4-5", "gpt-4.1-mini"]


def test_documents_that_differ_are_all_asked() -> None:
    _, transport, _ = run_shared([make_batch(30)])
    assert len(set(transport.prompts())) == len(transport.sent) == 30


def test_a_replay_gives_the_same_rows_without_a_call_and_without_another_ledger() -> None:
    before, _, ledgers = run_shared([make_batch(4, prompt=SAME, batch_id=b) for b in ("b1", "b2")])
    alone = MemoryLedgers({"b2": ledgers.files["b2"]})
    (after,), transport, _ = run_shared([make_batch(4, prompt=SAME, batch_id="b2")], ledgers=alone)
    assert transport.sent == []
    assert [shape(o) for o in after.outcomes] == [shape(o) for o in before[1].outcomes]


def shape(outcome: Outcome) -> tuple[Any, ...]:
    charge = outcome.charge
    return (
        outcome.answer,
        charge.amount,
        charge.basis,
        outcome.calls,
        outcome.shared_from,
        outcome.request_sha256,
    )


def test_after_a_crash_what_was_answered_is_shared_with_rows_that_had_no_answer_yet() -> None:
    _, _, ledgers = run_shared([make_batch(1, prompt=SAME)])
    paid = make_batch(5, prompt=SAME)
    paid = CallBatch(paid.batch_id, 1, tuple(reversed(paid.requests)))  # the row that paid stands last
    (result,), transport, _ = run_shared([paid], ledgers=ledgers.after_a_crash())
    assert transport.sent == []
    assert [o.shared_from is None for o in result.outcomes] == [False] * 4 + [True]


def test_a_paid_answer_that_is_no_result_is_shared_too() -> None:
    refusal = anthropic_answer("", "refusal")
    (result,), transport, ledgers = run_shared([make_batch(9, prompt=SAME)], lambda sent, seen: refusal)
    assert len(transport.sent) == 1
    assert {o.failure for o in result.outcomes} == {F.REFUSED}
    assert billed(result.outcomes) == spent(ledgers).amount > 0


def test_a_failure_that_can_be_retried_is_not_shared() -> None:
    def once(sent: Sent, seen: int) -> Any:
        return error(400, "invalid_request_error") if seen == 0 else fine(sent, seen)

    (result,), transport, _ = run_shared([make_batch(5, prompt=SAME)], once)
    assert [o.failure for o in result.outcomes].count(F.BAD_REQUEST) == 1
    assert len(transport.sent) == 2
    assert sum(o.shared_from is not None for o in result.outcomes) == 3


def test_while_the_provider_is_down_identical_documents_do_not_queue_up_for_hours() -> None:
    transport = FakeTransport(lambda sent, seen: error(500, "api_error"))

    async def main() -> float:
        core = sharing(make_core(transport, workload=make_workload(limits=Limits(max_calls=3))))
        started = asyncio.get_running_loop().time()
        result = await core.run(make_batch(200, prompt=SAME))
        assert {o.failure for o in result.outcomes} == {F.PROVIDER_ERROR}
        return asyncio.get_running_loop().time() - started

    alone = 0.5 + 1.0 + 3 * 0.05  # two waits and three calls
    assert run_virtual(main()) < 12 * alone


def test_who_waits_for_another_does_not_wait_beyond_its_deadline() -> None:
    async def slow(sent: Sent, seen: int) -> Any:
        await asyncio.sleep(50)
        raise LostError("connection", "reset")

    limits = Limits(document_deadline_s=60, request_timeout_s=55, max_calls=1)
    (result,), _, _ = run_shared([make_batch(8, prompt=SAME)], slow, workload=make_workload(limits=limits))
    assert {o.failure for o in result.outcomes} <= {F.CONNECTION, F.DEADLINE, F.TIMEOUT}
    assert F.DEADLINE in {o.failure for o in result.outcomes}


def test_an_answer_is_shared_only_once_it_is_durable() -> None:
    order: list[str] = []

    class WatchedLog(MemoryLog):
        def append(self, data: bytes) -> None:
            order.extend(kind for kind in ("answered", "shared") if f'"kind":"{kind}"'.encode() in data)
            super().append(data)

        async def sync(self) -> None:
            await asyncio.sleep(0.05)
            order.append("synced")
            await super().sync()

    run_shared([make_batch(3, prompt=SAME)], ledgers=ledgers_of(WatchedLog))
    assert order[:4] == ["answered", "synced", "shared", "shared"]


def test_an_answer_that_could_not_be_synced_is_shared_with_nobody() -> None:
    class FailingLog(MemoryLog):
        async def sync(self) -> None:
            raise LedgerError("the disk is broken")

    transport = FakeTransport(fine)

    async def main() -> list[Any]:
        core = sharing(make_core(transport, ledgers_of(FailingLog, "b1")))
        batches = [make_batch(1, prompt=SAME, batch_id=name) for name in ("b1", "b2")]
        return await asyncio.gather(*(core.run(b) for b in batches), return_exceptions=True)

    failed, good = run_virtual(main())
    assert isinstance(failed, LedgerError)
    assert good.outcomes[0].shared_from is None
    assert len(transport.sent) == 2


def ledgers_of(kind: Callable[[MemoryLedgers, str], MemoryLog], only: str = "") -> MemoryLedgers:
    class Ledgers(MemoryLedgers):
        async def open(self, batch_id: str) -> MemoryLog:
            log = await super().open(batch_id)
            return kind(self, batch_id) if only in ("", batch_id) else log

    return Ledgers()


def test_a_document_that_is_tried_again_does_not_get_its_old_failure_back() -> None:
    refusal = anthropic_answer("", "refusal")
    _, _, ledgers = run_shared([make_batch(2, prompt=SAME)], lambda sent, seen: refusal)
    again = [make_batch(2, prompt=SAME, attempt=2)]
    (result,), transport, _ = run_shared(again, ledgers=ledgers.after_a_crash())
    assert len(transport.sent) == 1
    assert all(o.is_result for o in result.outcomes)


def test_when_sharing_is_off_each_document_is_paid() -> None:
    transport = FakeTransport(fine)

    async def main() -> CallBatchResult:
        return await make_core(transport).run(make_batch(4, prompt=SAME))

    result = run_virtual(main())
    assert len(transport.sent) == 4
    assert all(o.shared_from is None for o in result.outcomes)


def test_closing_while_others_wait_loses_nothing_and_ends() -> None:
    async def slow(sent: Sent, seen: int) -> Any:
        await asyncio.sleep(5)
        return fine(sent, seen)

    transport, ledgers = FakeTransport(slow), MemoryLedgers()

    async def main() -> Any:
        core = sharing(make_core(transport, ledgers))
        work = asyncio.create_task(core.run(make_batch(6, prompt=SAME)))
        await asyncio.sleep(1)
        await core.close(grace_s=10)
        return await asyncio.gather(work, return_exceptions=True)

    run_virtual(main())
    assert [call.end for call in ledgers.calls()] == ["answered"]
    (result,), transport, _ = run_shared([make_batch(6, prompt=SAME)], ledgers=ledgers.after_a_crash())
    assert transport.sent == []
    assert all(o.is_result for o in result.outcomes)


def test_a_turn_that_is_given_to_who_was_just_cancelled_goes_to_the_next() -> None:
    async def main() -> Any:
        shares = Shares(VirtualClock())
        first = await shares.turn(b"k", lambda _: True, 60)
        assert isinstance(first, Asking)
        second = asyncio.create_task(shares.turn(b"k", lambda _: True, 60))
        third = asyncio.create_task(shares.turn(b"k", lambda _: True, 60))
        await asyncio.sleep(0)
        shares.failed(first)
        second.cancel()
        return await third

    assert isinstance(run_virtual(main()), Asking)


class HeldElsewhere:
    """An index in which another process has every claim until an instant. It counts who looks."""

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s
        self.looks = 0

    def claim(self, key: bytes) -> bool:
        self.looks += 1
        return asyncio.get_running_loop().time() >= self.until_s

    def release(self, key: bytes) -> None:
        """Nothing to do."""

    def find(self, key: bytes) -> SharedAnswer | None:
        return None

    def add(self, key: bytes, place: Place) -> None:
        """Nothing to do."""


@pytest.mark.parametrize("until_s", [0.0, 0.1, 1.0, 10.0, 59.0])
def test_who_waits_for_another_process_looks_the_less_often_the_longer_it_has_waited(until_s: float) -> None:
    index = HeldElsewhere(until_s)

    async def main() -> float:
        assert isinstance(await Shares(VirtualClock(), index).turn(b"k", lambda _: True, 60), Asking)
        return asyncio.get_running_loop().time()

    assert until_s <= run_virtual(main()) <= until_s + max(0.02, min(0.1 * until_s, 1.0))
    assert index.looks <= 120


def test_it_gives_up_when_its_patience_is_over_and_not_later() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            await Shares(VirtualClock(), HeldElsewhere(1000)).turn(b"k", lambda _: True, 60)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(60)


def test_memory_is_bounded_and_the_oldest_answers_go_first() -> None:
    async def main() -> list[bool]:
        ledgers = MemoryLedgers()
        log = await ledgers.open("b1")
        shares = Shares(VirtualClock(), most_bytes=10_000)
        for n in range(50):
            asking = await shares.turn(bytes([n]), lambda _: True, 60)
            assert isinstance(asking, Asking)
            answer = SharedAnswer.of(SharedFrom("b1", n, "r", None), {"body": "x" * 500}, fresh=True)
            shares.answered(asking, log, Place("b1", 0, 0), answer)
            await shares.leave(log)
        return [
            isinstance(await shares.turn(bytes([n]), lambda _: True, 60), SharedAnswer) for n in range(50)
        ]

    known = run_virtual(main())
    assert known[:40] == [False] * 40
    assert all(known[-9:])


@pytest.mark.parametrize("rows", [1, 7, 64, 300])
def test_a_mixture_is_paid_once_per_distinct_request_and_adds_up(rows: int) -> None:
    batch = make_batch(rows)
    questions = [with_prompt(request, f"question {n % 7}") for n, request in enumerate(batch.requests)]
    mixed = CallBatch("b1", 1, tuple(questions))
    (result,), transport, ledgers = run_shared([mixed])
    assert len(transport.sent) == min(rows, 7)
    for n, outcome in enumerate(result.outcomes):
        assert outcome.answer == f"answer 0 to question {n % 7}"
    assert billed(result.outcomes) == spent(ledgers).amount
