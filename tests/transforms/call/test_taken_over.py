"""A worker that stands still and is taken over: what it had not sealed, and what it may yet commit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from decimal import Decimal

import pytest

from schemas.errors import LedgerError
from schemas.failures import FailureClass
from tests.transforms.call.fakes import (
    FakeTransport,
    MemoryLedgers,
    MemoryLog,
    Sent,
    answer_for,
    error,
    make_batch,
    make_core,
    run_batch,
    run_virtual,
)
from tests.transforms.call.test_held import MemoryOutbox, run
from transforms.call.budget import NoCap
from transforms.call.request import CallBatchResult
from transforms.call.wire import WireResponse


class GatheringLog(MemoryLog):
    """Gathers records and seals them when it is told to; a taken-over one never can."""

    _store: GatheringLedgers

    async def room(self) -> None:
        pass

    async def sealed(self) -> None:
        await self._store.seals.wait()
        await self.sync()

    async def sync(self) -> None:
        if self._store.taken_over:
            raise LedgerError("another process has taken the batch over")
        await super().sync()


@dataclass
class GatheringLedgers(MemoryLedgers):
    taken_over: bool = False
    seals: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self, batch_id: str) -> MemoryLog:
        await super().open(batch_id)
        return GatheringLog(self, batch_id)

    def after_a_crash(self) -> GatheringLedgers:
        return GatheringLedgers({name: bytearray(data) for name, data in self.files.items()})


class Settled(NoCap):
    """A budget that notes what calls were settled at: (worst, actual)."""

    def __init__(self) -> None:
        self.calls: list[tuple[Decimal, Decimal]] = []

    def settle(self, worst: Decimal, actual: Decimal) -> None:
        self.calls.append((worst, actual))


def answered_while_another_waits(taken_over: bool) -> tuple[list[tuple[Decimal, Decimal]], Settled]:
    """One row is answered, unsealed; another still in flight. What is settled before and after the seal."""
    ledgers, budget = GatheringLedgers(), Settled()
    early: list[tuple[Decimal, Decimal]] = []

    async def reply(sent: Sent) -> WireResponse:
        if sent.prompt == "row-1":
            await asyncio.sleep(1.0)
            early.extend(budget.calls)
            ledgers.taken_over = taken_over
            ledgers.seals.set()
        return answer_for(sent)

    async def main() -> None:
        core = make_core(FakeTransport(lambda sent, _: reply(sent)), ledgers, budget=budget)
        try:
            await core.run(make_batch(2))
        except LedgerError:
            assert taken_over

    run_virtual(main())
    return early, budget


def test_a_call_counts_at_its_worst_until_its_end_is_sealed_and_then_at_what_it_cost() -> None:
    early, budget = answered_while_another_waits(taken_over=False)
    assert early == []
    assert len(budget.calls) == 2
    assert all(0 < actual < worst for worst, actual in budget.calls)


def test_what_could_not_be_sealed_counts_at_its_worst_for_good() -> None:
    """To everybody else those calls were sent and have no known end."""
    early, budget = answered_while_another_waits(taken_over=True)
    assert early == []
    assert len(budget.calls) == 2
    assert all(0 < actual == worst for worst, actual in budget.calls)


def replies(sent: Sent, _seen: int) -> WireResponse:
    if sent.prompt == "row-1":
        return error(400, "invalid_request_error")
    if sent.prompt == "row-2":
        return error(401, "authentication_error")
    return answer_for(sent)


def ended(ledgers: GatheringLedgers, attempt: int = 1) -> tuple[CallBatchResult, FakeTransport]:
    ledgers.seals.set()
    return run_batch(replies, make_batch(3, attempt=attempt), ledgers)


def test_who_takes_over_an_attempt_whose_calls_have_ended_makes_no_further_call() -> None:
    """Its process may yet commit it, and its record would know nothing of them."""
    ledgers = GatheringLedgers()
    first, transport = ended(ledgers)
    assert sorted(transport.prompts()) == ["row-0", "row-1", "row-2"]
    before = bytes(ledgers.files["b1"])

    taken = ledgers.after_a_crash()
    second, transport = ended(taken)
    assert transport.sent == []
    assert bytes(taken.files["b1"]) == before
    assert [o.failure for o in second.outcomes] == [o.failure for o in first.outcomes]
    assert [o.failure for o in second.outcomes] == [
        None,
        FailureClass.BAD_REQUEST,
        FailureClass.AUTHENTICATION,
    ]
    assert [(o.calls, o.charge.amount) for o in second.outcomes] == [
        (o.calls, o.charge.amount) for o in first.outcomes
    ]

    _, transport = ended(taken.after_a_crash(), attempt=2)
    assert sorted(transport.prompts()) == ["row-0", "row-1", "row-2"]  # another attempt is another question


def test_a_document_that_was_never_asked_is_left_to_the_next_attempt() -> None:
    ledgers = GatheringLedgers()
    ended(ledgers)
    result, transport = run_batch(replies, make_batch(4), ledgers.after_a_crash())
    assert transport.sent == []
    assert result.outcomes[3].failure is FailureClass.CANCELLED
    assert result.outcomes[3].calls == 0


@pytest.mark.parametrize("taken_over", [False, True])
def test_who_was_taken_over_leaves_no_requests_for_a_providers_batch(taken_over: bool) -> None:
    """Whoever has the batch now may know an answer already."""
    ledgers, outbox = GatheringLedgers(taken_over=taken_over), MemoryOutbox()
    try:
        run(outbox, make_batch(2), ledgers=ledgers)
    except LedgerError:
        assert taken_over
    assert len(outbox.added) == 2
    assert outbox.sealed == (not taken_over)


def test_an_attempt_that_was_cut_off_among_its_calls_goes_on() -> None:
    ledgers = GatheringLedgers()
    ledgers.fails_after = 4  # header, three calls: none has a recorded end
    with pytest.raises(LedgerError):
        ended(ledgers)
    _, transport = ended(ledgers.after_a_crash())
    assert sorted(transport.prompts()) == ["row-0", "row-1", "row-2"]
