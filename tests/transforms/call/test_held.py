"""What the engine does with requests of backends in batch mode: with an outbox in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

import pytest

from schemas.backends import HostedBackend
from schemas.failures import FailureClass
from schemas.limits import Limits
from schemas.outcomes import ZERO
from schemas.workload import Workload
from tests.transforms.call.fakes import (
    HAIKU,
    MINI,
    FakeTransport,
    MemoryLedgers,
    answer_for,
    error,
    make_batch,
    make_core,
    make_workload,
)
from transforms.call.ports import HeldRequest
from transforms.call.request import CallBatch, CallBatchResult

State = Literal["new", "waiting", "online"]
BATCHED = HAIKU.model_copy(update={"mode": "batch"})


@dataclass
class MemoryOutbox:
    """An outbox in memory; `states` by row, `new` where nothing is said."""

    states: dict[int, State] = field(default_factory=dict)
    share: bool = True
    added: list[HeldRequest] = field(default_factory=list)
    joined: list[int] = field(default_factory=list)
    sealed: int = 0

    def open(self, batch_id: str) -> MemoryOutbox:
        return self

    def state(self, row: int, route: str, backend: str) -> State:
        return self.states.get(row, "new")

    def join(self, row: int, route: str, backend: str, request_sha256: str) -> bool:
        known = {(r.backend, r.request_sha256) for r in self.added}
        if not self.share or (backend, request_sha256) not in known:
            return False
        self.joined.append(row)
        return True

    def add(self, request: HeldRequest) -> None:
        assert not self.sealed
        self.added.append(request)

    def seal(self) -> None:
        self.sealed += 1


@dataclass
class CountingBudget:
    """Allows so much, and remembers what was settled; gives way to others while it is asked."""

    left: Decimal = Decimal(1_000)
    settled: Decimal = ZERO
    sentence: str = "the budget would be passed"

    async def reserve(self, worst: Decimal) -> bool:
        await asyncio.sleep(0)
        if worst > self.left:
            return False
        self.left -= worst
        return True

    def settle(self, worst: Decimal, actual: Decimal) -> None:
        self.left += worst - actual
        self.settled += actual

    async def release_unused(self) -> None:
        """Nothing to do."""


def workload_with(backend: HostedBackend = BATCHED, limits: Limits | None = None) -> Workload:
    return make_workload({"haiku": backend, "mini": MINI}, limits)


def run(
    outbox: MemoryOutbox | None,
    batch: CallBatch,
    budget: CountingBudget | None = None,
    workload: Workload | None = None,
    ledgers: MemoryLedgers | None = None,
) -> tuple[CallBatchResult, FakeTransport]:
    transport = FakeTransport(lambda sent, _seen: answer_for(sent), latency_s=0)

    async def main() -> CallBatchResult:
        core = make_core(
            transport, ledgers, workload or workload_with(), budget=budget or CountingBudget(), capped=True
        )
        core.desk.outbox = outbox
        return await core.run(batch)

    return asyncio.run(main()), transport


def test_a_request_of_a_backend_in_batch_mode_waits_and_is_not_sent() -> None:
    outbox, budget, ledgers = MemoryOutbox(), CountingBudget(), MemoryLedgers()
    result, transport = run(outbox, make_batch(3), budget, ledgers=ledgers)
    assert [o.failure for o in result.outcomes] == [FailureClass.AWAITING_BATCH] * 3
    assert [(o.backend, o.chain_tried, o.calls) for o in result.outcomes] == [("haiku", ("haiku",), 0)] * 3
    assert not transport.sent
    assert not ledgers.calls()
    assert sorted((r.row, r.document_id, r.route) for r in outbox.added) == [
        (0, "d0", "r"), (1, "d1", "r"), (2, "d2", "r"),
    ]  # fmt: skip
    assert outbox.sealed == 1
    assert budget.settled == sum(r.worst or ZERO for r in outbox.added) > 0, "set aside until it comes back"
    assert all(r.worst_tokens > len(r.body) for r in outbox.added)


def test_what_is_on_its_way_costs_nothing_more() -> None:
    outbox, budget = MemoryOutbox({0: "waiting"}), CountingBudget()
    result, transport = run(outbox, make_batch(1), budget)
    assert result.outcomes[0].failure is FailureClass.AWAITING_BATCH
    assert (outbox.added, transport.sent, budget.settled) == ([], [], ZERO)


def test_what_has_used_up_its_chances_is_called_online() -> None:
    outbox = MemoryOutbox({0: "online"})
    result, transport = run(outbox, make_batch(1))
    assert result.outcomes[0].is_result
    assert (transport.prompts(), outbox.added) == (["row-0"], [])


def test_a_waiting_document_does_not_fall_back_along_its_chain() -> None:
    result, transport = run(MemoryOutbox(), make_batch(1, ("haiku", "mini")))
    assert result.outcomes[0].failure is FailureClass.AWAITING_BATCH
    assert not transport.sent


def test_after_its_batches_a_document_falls_back_like_any_other() -> None:
    down = FakeTransport(
        lambda sent, _seen: (
            error(401, "authentication_error") if sent.model.startswith("claude") else answer_for(sent)
        )
    )

    async def main() -> CallBatchResult:
        core = make_core(down, workload=workload_with())
        core.desk.outbox = MemoryOutbox({0: "online"})
        return await core.run(make_batch(1, ("haiku", "mini")))

    outcome = asyncio.run(main()).outcomes[0]
    assert (outcome.is_result, outcome.backend) == (True, "mini")


def test_a_backend_online_is_not_held_unless_its_request_is_on_its_way() -> None:
    online = workload_with(HAIKU)
    outbox = MemoryOutbox({1: "waiting"})
    result, transport = run(outbox, make_batch(2), workload=online)
    assert [o.failure for o in result.outcomes] == [None, FailureClass.AWAITING_BATCH]
    assert (transport.prompts(), outbox.added) == (["row-0"], [])


def test_without_an_outbox_a_backend_in_batch_mode_is_called_online() -> None:
    result, transport = run(None, make_batch(2))
    assert all(o.is_result for o in result.outcomes)
    assert len(transport.sent) == 2


def test_the_cap_stops_what_would_pass_it_and_nothing_else() -> None:
    outbox = MemoryOutbox()
    run(outbox, make_batch(1))
    one = outbox.added[0].worst or ZERO
    outbox, budget = MemoryOutbox(), CountingBudget(left=one * Decimal("2.5"))
    result, _ = run(outbox, make_batch(4), budget)
    failures = [o.failure for o in result.outcomes]
    assert failures.count(FailureClass.AWAITING_BATCH) == 2
    assert failures.count(FailureClass.BUDGET_EXHAUSTED) == 2
    assert len(outbox.added) == 2


def test_a_model_without_a_price_is_refused_under_a_cap() -> None:
    unknown = HostedBackend(provider="openai", model="of-tomorrow", mode="batch")
    outbox = MemoryOutbox()
    result, _ = run(outbox, make_batch(1), workload=workload_with(unknown))
    assert (result.outcomes[0].failure, outbox.added) == (FailureClass.UNKNOWN_PRICE, [])


def test_identical_requests_reserve_and_go_out_once_even_when_they_come_at_the_same_time() -> None:
    outbox, budget = MemoryOutbox(), CountingBudget()
    result, _ = run(outbox, make_batch(5, prompt="the same"), budget)
    assert [o.failure for o in result.outcomes] == [FailureClass.AWAITING_BATCH] * 5
    assert len(outbox.added) == 1
    assert len({*outbox.joined, outbox.added[0].row}) == 5
    assert budget.settled == outbox.added[0].worst


@pytest.mark.parametrize("seal_fails", [True, False])
def test_no_outcome_is_handed_out_before_the_seal(seal_fails: bool) -> None:
    class Failing(MemoryOutbox):
        def seal(self) -> None:
            super().seal()
            if seal_fails:
                raise OSError("no room")

    outbox = Failing()
    if seal_fails:
        with pytest.raises(OSError, match="no room"):
            run(outbox, make_batch(1))
    else:
        run(outbox, make_batch(1))
    assert outbox.sealed == 1
