"""A cap that holds: at every instant, and with any number of workers."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.backends import HostedBackend, TokenPrice
from schemas.errors import LedgerError, StoreError
from schemas.failures import FailureClass
from schemas.outcomes import ZERO, money
from tests.support.budgets import FrozenClock, MemoryRecord, now, now_or_no, settled
from tests.transforms.call.fakes import (
    HAIKU,
    FakeTransport,
    MemoryLedgers,
    VirtualClock,
    answer_for,
    make_batch,
    make_core,
    make_workload,
    run_batch,
    run_virtual,
)
from transforms.call.budget import LeasedBudget, NoCap, sized_draw
from transforms.call.budget_file import LocalBudgetRecord, open_budget, read_budget, record_path
from transforms.call.budget_record import BudgetState
from transforms.call.ports import LostError
from transforms.call.request import CallBatchResult


def worker(record: MemoryRecord, name: str = "w1") -> LeasedBudget:
    return LeasedBudget(record, name, FrozenClock(), record.state.cap)


def test_a_reservation_is_replaced_by_what_the_call_cost() -> None:
    record = MemoryRecord("10")
    budget = worker(record)
    assert now(budget.reserve(money(4)))
    budget.settle(money(4), money(1))
    now(budget.release_unused())
    assert (record.state.spent, record.state.leases) == (money(1), {})


def test_what_is_reserved_stays_leased_when_the_rest_is_given_back() -> None:
    record = MemoryRecord("10")
    budget = worker(record)
    assert now(budget.reserve(money(4)))
    now(budget.release_unused())
    assert record.state.leases == {"w1": money(4)}
    budget.settle(money(4), money(2))
    now(budget.release_unused())
    assert (record.state.spent, record.state.leases) == (money(2), {})


def test_nothing_is_reserved_beyond_the_cap_and_the_sentence_says_so() -> None:
    budget = worker(MemoryRecord("10", spent="8"))
    assert not now(budget.reserve(money(3)))
    assert now(budget.reserve(money(2)))
    assert "10 USD" in budget.sentence


def test_a_cap_of_zero_allows_nothing_but_what_is_free() -> None:
    budget = worker(MemoryRecord("0"))
    assert not now(budget.reserve(money("0.000000000001")))
    assert now(budget.reserve(ZERO))


def test_who_would_pass_the_cap_waits_for_calls_in_flight_that_may_cost_less() -> None:
    budget = worker(MemoryRecord("10"))

    async def main() -> bool:
        assert await budget.reserve(money(8))
        second = asyncio.create_task(budget.reserve(money(8)))
        await settled()
        assert not second.done()
        budget.settle(money(8), money(1))
        return await second

    assert now(main())


def test_who_waits_is_told_no_when_the_last_call_in_flight_cost_too_much() -> None:
    budget = worker(MemoryRecord("10"))

    async def main() -> list[bool]:
        assert await budget.reserve(money(8))
        waiting = [asyncio.create_task(budget.reserve(money(8))) for _ in range(20)]
        await settled()
        budget.settle(money(8), money(8))
        return await asyncio.gather(*waiting)

    assert now(main()) == [False] * 20


def test_thousands_at_the_cap_do_not_ask_the_record_each() -> None:
    record = MemoryRecord("10", spent="10")

    async def main() -> None:
        budget = LeasedBudget(record, "w", VirtualClock(), money(10))
        assert not any([await budget.reserve(money(1)) for _ in range(5000)])

    run_virtual(main())
    assert record.updates == 1


def test_a_worker_of_an_earlier_run_draws_nothing_more() -> None:
    record = MemoryRecord("10")
    zombie = worker(record, "zombie")
    assert now(zombie.reserve(money(1)))
    record.data = BudgetState(money(10), money(5), "next run").to_json()
    assert not now_or_no(zombie, money(1))
    now(zombie.release_unused())
    assert (record.state.spent, record.state.leases) == (money(5), {})


def test_a_record_that_is_missing_or_strange_stops_spending() -> None:
    record = MemoryRecord("10")
    for data in (None, b"", b"{}", b'{"version": "budget/9"}', b'["x"]'):
        record.data = data
        with pytest.raises(StoreError, match="start the run again"):
            now(LeasedBudget(record, "w", FrozenClock(), money(10)).reserve(money(1)))


def test_the_record_survives_its_own_bytes() -> None:
    state = BudgetState(money("1.5"), money("0.000000000001"), "e", {"w": money("0.3")})
    assert BudgetState.from_json(state.to_json()) == state


def test_a_killed_workers_lease_is_void_and_a_power_cuts_counts_for_good() -> None:
    before = BudgetState(money(10), money(3), "e", {"dead": money(4)}, boot_id="boot 1")
    same = BudgetState.opened(before, money(10), money(2), "f", "boot 1")
    assert (same.spent, same.leases, same.unaccounted) == (money(2), {}, ZERO)
    cut = BudgetState.opened(before, money(10), money(2), "f", "boot 2")
    assert (cut.spent, cut.leases, cut.unaccounted) == (money(7), {}, money(5))
    again = BudgetState.opened(cut, money(10), money("2.5"), "g", "boot 2")
    assert (again.spent, again.unaccounted) == (money("7.5"), money(5))
    unknown = BudgetState.opened(before, money(10), money(2), "f", "")
    assert unknown.spent == money(7)


def test_a_worker_reserves_nothing_of_what_it_is_giving_back() -> None:
    record = MemoryRecord("100")
    budget = worker(record)
    assert now(budget.reserve(money(1)))
    taken: list[bool] = []
    update = record.update

    async def slow_update(change: Any) -> Any:
        budget.settle(money(1), money(1))
        taken.append(now_taken(budget, money(1)))
        return await update(change)

    record.update = slow_update  # type: ignore[method-assign]
    now(budget.release_unused())
    assert taken == [False]
    assert record.state.spent + sum(record.state.leases.values(), ZERO) <= money(100)


def now_taken(budget: LeasedBudget, worst: Decimal) -> bool:
    """Whether it can be taken from the lease alone."""
    return budget._take(worst)


def test_what_a_settlement_frees_is_counted_before_the_record_is_believed_again() -> None:
    record = MemoryRecord("10")
    budget = worker(record)

    async def main() -> bool:
        assert await budget.reserve(money(6))
        late = asyncio.create_task(budget.reserve(money(7)))
        await settled()
        budget.settle(money(6), money(1))  # 9 are left: 5 of the lease and 4 in the record
        return await late

    assert now(main())


def test_a_smaller_call_is_not_refused_because_a_larger_one_was() -> None:
    budget = worker(MemoryRecord("10"))
    assert not now(budget.reserve(money(11)))
    assert now(budget.reserve(money(9)))


class _Unstoppable(MemoryRecord):
    """A change that has begun is made, whoever still waits for it: in production a thread makes it."""

    async def update(self, change: Any) -> Any:
        return await asyncio.shield(asyncio.ensure_future(self._changed(change)))

    async def _changed(self, change: Any) -> Any:
        await asyncio.sleep(0)
        return await super().update(change)


@pytest.mark.parametrize("what", ["draw", "give back"])
def test_who_is_cancelled_at_the_record_reports_what_it_spent_once(what: str) -> None:
    record = _Unstoppable("10")

    async def main() -> None:
        budget = worker(record)
        assert await budget.reserve(money(4))
        budget.settle(money(4), money(3))
        work = budget.reserve(money(5)) if what == "draw" else budget.release_unused()
        cancelled = asyncio.ensure_future(work)
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert cancelled.cancelled()
        await budget.release_unused()

    now(main())
    assert (record.state.spent, record.state.leases) == (money(3), {})


class CapMachine(RuleBasedStateMachine):
    """Workers reserve, settle, give back, die and are born; the cap holds after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.record = MemoryRecord("20")
        self.workers = [worker(self.record, f"w{n}") for n in range(3)]
        self.in_flight: list[tuple[int, Decimal]] = []
        self.billed = ZERO
        self.born = 3

    @rule(who=st.integers(0, 2), cents=st.integers(1, 800))
    def reserve(self, who: int, cents: int) -> None:
        worst = money(cents) / 100
        if now_or_no(self.workers[who], worst):
            self.in_flight.append((who, worst))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), part=st.sampled_from([0, 1, 50, 100]))
    def settle(self, data: st.DataObject, part: int) -> None:
        who, worst = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        actual = money(worst * part / 100)
        self.workers[who].settle(worst, actual)
        self.billed += actual

    @rule(who=st.integers(0, 2))
    def give_back(self, who: int) -> None:
        now(self.workers[who].release_unused())

    @rule(who=st.integers(0, 2))
    def die(self, who: int) -> None:
        """Its calls in flight may all have been billed at their worst."""
        self.billed += sum((worst for other, worst in self.in_flight if other == who), ZERO)
        self.in_flight = [entry for entry in self.in_flight if entry[0] != who]
        self.workers[who] = worker(self.record, f"w{self.born}")
        self.born += 1

    @invariant()
    def the_record_never_promises_more_than_the_cap(self) -> None:
        state = self.record.state
        assert state.spent + sum(state.leases.values(), ZERO) <= state.cap

    @invariant()
    def billed_and_in_flight_never_pass_the_cap(self) -> None:
        assert self.billed + sum((worst for _, worst in self.in_flight), ZERO) <= money(20)


TestCapMachine = CapMachine.TestCase
TestCapMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_local_record_is_written_anew_when_a_run_starts(tmp_path: Path) -> None:
    assert read_budget(str(tmp_path)) is None
    open_budget(str(tmp_path), Decimal(5), Decimal(1))
    first = read_budget(str(tmp_path))
    assert first is not None
    assert (first.cap, first.spent, first.leases) == (money(5), money(1), {})
    open_budget(str(tmp_path), Decimal(7), Decimal(2))
    second = read_budget(str(tmp_path))
    assert second is not None
    assert (second.cap, second.spent) == (money(7), money(2))
    assert second.epoch != first.epoch


def test_a_record_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "budget").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match=r"record\.json"):
        open_budget(str(tmp_path), Decimal(5), ZERO)


_RACER = """
import asyncio, os, sys
from decimal import Decimal
from schemas.outcomes import money
from transforms.call.budget import LeasedBudget
from transforms.call.budget_file import LocalBudgetRecord
from transforms.call.ports import SystemClock

async def main():
    budget = LeasedBudget(LocalBudgetRecord(sys.argv[1]), str(os.getpid()), SystemClock(), money(50))
    calls = 0
    async def caller():
        nonlocal calls
        while await budget.reserve(money(1)):
            calls += 1
            await asyncio.sleep(0.001)
            budget.settle(money(1), money(1))
    sys.stdin.readline()
    await asyncio.gather(*(caller() for _ in range(64)))
    await budget.release_unused()
    print(calls)
asyncio.run(main())
"""


def test_eight_processes_with_64_callers_each_make_50_calls_on_a_cap_of_50(tmp_path: Path) -> None:
    open_budget(str(tmp_path), Decimal(50), ZERO)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    calls = [int(racer.communicate("go\n", timeout=120)[0]) for racer in racers]
    assert all(racer.returncode == 0 for racer in racers)
    assert sum(calls) == 50
    state = read_budget(str(tmp_path))
    assert state is not None
    assert (state.spent, state.leases) == (money(50), {})


def capped_run(
    cap: Decimal, rows: int, script: Any = None, **core: Any
) -> tuple[CallBatchResult, Any, MemoryRecord]:
    """A batch under a cap; prices as HAIKU's."""
    record = MemoryRecord(str(cap))
    transport = FakeTransport(script or (lambda sent, seen: answer_for(sent)))

    async def main() -> CallBatchResult:
        budget = LeasedBudget(record, "w", VirtualClock(), money(cap))
        return await make_core(transport, budget=budget, capped=True, **core).run(make_batch(rows))

    return run_virtual(main()), transport, record


def test_rows_beyond_the_cap_end_as_budget_exhausted_without_a_call() -> None:
    result, transport, record = capped_run(Decimal("0.05"), 400)
    done = [outcome for outcome in result.outcomes if outcome.is_result]
    refused = [outcome for outcome in result.outcomes if not outcome.is_result]
    assert {outcome.failure for outcome in refused} == {FailureClass.BUDGET_EXHAUSTED}
    assert all((outcome.calls, outcome.charge.amount) == (0, ZERO) for outcome in refused)
    assert len(transport.sent) == len(done)
    # a call costs 0.0002 and is reserved at less than 0.007: all but the last few fit
    assert 200 < len(done) <= 250
    assert record.state.spent == money("0.0002") * len(done) <= money("0.05")
    assert record.state.leases == {}


def test_a_call_that_could_not_be_recorded_was_not_sent_and_is_not_spent() -> None:
    record, transport = MemoryRecord("1"), FakeTransport(lambda sent, seen: answer_for(sent))

    async def main() -> None:
        budget = LeasedBudget(record, "w", VirtualClock(), money(1))
        core = make_core(transport, MemoryLedgers(fails_after=1), budget=budget, capped=True)
        with pytest.raises(LedgerError):
            await core.run(make_batch(3))
        await core.close(0)

    run_virtual(main())
    assert transport.sent == []
    assert (record.state.spent, record.state.leases) == (ZERO, {})


def test_a_call_without_a_known_end_counts_at_its_worst() -> None:
    def lost(sent: Any, seen: int) -> Exception:
        return LostError("timeout", "late")

    result, _, record = capped_run(Decimal("0.05"), 1, lost)
    assert record.state.spent == result.outcomes[0].ambiguous_amount > money("0.01")


def test_calls_that_failed_without_a_bill_cost_nothing() -> None:
    from tests.transforms.call.fakes import error

    _, _, record = capped_run(Decimal("0.05"), 3, lambda sent, seen: error(500, "api_error"))
    assert (record.state.spent, record.state.leases) == (ZERO, {})


def test_a_model_without_a_price_is_refused_under_a_cap_and_called_without_one() -> None:
    unheard = HostedBackend(provider="anthropic", model="claude-of-tomorrow")
    workload = make_workload({"haiku": unheard})
    result, transport, _ = capped_run(Decimal(1), 2, workload=workload)
    assert {outcome.failure for outcome in result.outcomes} == {FailureClass.UNKNOWN_PRICE}
    assert transport.sent == []
    free, transport = run_batch(lambda sent, seen: answer_for(sent), workload=workload)
    assert free.outcomes[0].is_result
    assert free.outcomes[0].charge.amount is None
    assert len(transport.sent) == 1


def test_the_workloads_own_price_is_what_is_reserved_and_billed() -> None:
    price = TokenPrice(input_per_million=Decimal(10), output_per_million=Decimal(100))
    backend = HAIKU.model_copy(update={"price": price})
    result, _, record = capped_run(Decimal(1), 1, workload=make_workload({"haiku": backend}))
    charge = result.outcomes[0].charge
    assert (charge.amount, charge.price_source) == (money("0.003"), "workload")
    assert record.state.spent == money("0.003")


def test_without_a_cap_everything_is_allowed() -> None:
    budget = NoCap()
    assert now(budget.reserve(money(10**9)))
    budget.settle(money(10**9), money(10**9))


def test_a_damaged_record_stops_the_next_run_with_a_way_out(tmp_path: Path) -> None:
    open_budget(str(tmp_path), Decimal(5), ZERO)
    record_path(str(tmp_path)).write_bytes(b"{")
    with pytest.raises(StoreError, match="delete it"):
        open_budget(str(tmp_path), Decimal(5), ZERO)
    record_path(str(tmp_path)).unlink()
    open_budget(str(tmp_path), Decimal(5), ZERO)


def test_a_record_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    open_budget(str(tmp_path), Decimal(5), ZERO)
    before = record_path(str(tmp_path)).read_bytes()

    def explode(data: bytes | None) -> tuple[bytes | None, None]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        LocalBudgetRecord(str(tmp_path)).update_now(explode)
    assert record_path(str(tmp_path)).read_bytes() == before
    open_budget(str(tmp_path), Decimal(6), ZERO)  # the lock was let go


# ---- a record that is slow, as an object in a bucket is


class _SlowRecord(MemoryRecord):
    """Takes `takes_s` for a change, one after the other, whoever asks."""

    takes_s = 0.5
    changes = 0

    def __init__(self, cap: str) -> None:
        super().__init__(cap)
        self._turn = asyncio.Lock()

    async def update(self, change: Any) -> Any:
        async with self._turn:
            await asyncio.sleep(self.takes_s)
            self.changes += 1
            return await super().update(change)


@pytest.mark.parametrize(
    ("took_s", "between_s", "following"),
    [
        (0.1, math.inf, 256),  # a first draw, and nobody else came
        (30.0, math.inf, 64 * 256),  # a first draw that waited for those of others
        (1.0, 5.0, 4 * 256),
        (1.0, 30.0, 256),
        (0.1, 30.0, 256),  # never less than at first
    ],
)
def test_a_draw_is_larger_the_longer_the_one_before_took(
    took_s: float, between_s: float, following: int
) -> None:
    assert sized_draw(256, took_s, between_s) == following
    assert sized_draw(256, took_s, between_s, largest=300) == min(following, 300)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_slow_record_is_asked_seldom_and_keeps_no_worker_waiting(workers: int) -> None:
    calls_each, at_a_time, call_s = 20_000, 64, 0.05
    ideal_s = calls_each * call_s / at_a_time

    async def main() -> tuple[float, int, Decimal]:
        record = _SlowRecord("1000000")
        budgets = [LeasedBudget(record, f"w{n}", VirtualClock(), record.state.cap) for n in range(workers)]

        async def work(budget: LeasedBudget) -> None:
            async def call_after_call() -> None:
                for _ in range(calls_each // at_a_time):
                    assert await budget.reserve(money(1))
                    await asyncio.sleep(call_s)
                    budget.settle(money(1), money("0.1"))

            await asyncio.gather(*(call_after_call() for _ in range(at_a_time)))
            await budget.release_unused()

        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(work(budget) for budget in budgets))
        return asyncio.get_running_loop().time() - started, record.changes, record.state.spent

    took, changes, spent = run_virtual(main())
    assert spent == money("0.1") * workers * (calls_each // at_a_time) * at_a_time
    assert changes <= 12 * workers
    assert took <= 1.5 * ideal_s + 4 * workers
