"""A cap in several parts: as good as one, whoever dies while money moves between them."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.errors import StoreError
from schemas.outcomes import ZERO, money
from tests.peers.cloud_storage import CloudStorage
from tests.support.budgets import now, now_or_no, race
from tests.support.parted_budgets import CapInParts, DeadError
from tests.transforms.call.fakes import VirtualClock, run_virtual
from transforms.call.budget import LeasedBudget
from transforms.call.budget_file import lease_from, open_budget, read_budget, record_of, record_path
from transforms.call.budget_parts import PartState, divided, grant, noted, part_of, parts_for
from transforms.call.budget_record import BudgetState, Grant


def spend(budget: LeasedBudget, amount: str) -> None:
    assert now_or_no(budget, money(amount))
    budget.settle(money(amount), money(amount))


# ---- few workers have one record, and it is what it always was


def test_up_to_a_hundred_workers_share_one_record_and_more_share_one_for_each_fifty() -> None:
    found = {workers: parts_for(workers) for workers in (1, 2, 100, 101, 200, 500, 1000, 2000)}
    assert found == {1: 1, 2: 1, 100: 1, 101: 3, 200: 4, 500: 10, 1000: 20, 2000: 40}


def test_workers_are_spread_evenly_over_parts() -> None:
    source = random.Random(1)
    holders = [f"{source.randrange(1, 4_000_000)}-{source.getrandbits(32):08x}" for _ in range(1000)]
    shares = [sum(part_of(holder, 20) == part for holder in holders) for part in range(20)]
    assert min(shares) >= 30
    assert max(shares) <= 75


def test_a_cap_in_one_part_is_the_record_that_earlier_versions_wrote(tmp_path: Path) -> None:
    assert open_budget(str(tmp_path), Decimal(5), Decimal(1)) == 4
    record = orjson.loads(record_path(str(tmp_path)).read_bytes())
    assert set(record) == {"version", "cap", "spent", "epoch", "leases", "boot_id", "unaccounted"}
    assert record["version"] == "budget/1"
    assert [path.name for path in (tmp_path / "budget").glob("*.json")] == ["record.json"]


def test_a_record_and_its_parts_survive_their_own_bytes() -> None:
    whole = BudgetState(money(9), money(1), "e", parts=(Grant(money(3), money(2), money("0.5")), Grant()))
    assert BudgetState.from_json(whole.to_json()) == whole
    part = PartState("e", money(3), money(1), money("0.25"), {"w": money("0.75")}, "f")
    assert PartState.from_json(part.to_json()) == part
    assert orjson.loads(whole.to_json())["version"] == "budget/2"


@pytest.mark.parametrize("data", [None, b"", b"{}", b'{"version": "budget-part/9"}', b'["x"]'])
def test_a_part_that_is_missing_or_strange_stops_spending(data: bytes | None) -> None:
    with pytest.raises(StoreError, match="start the run again"):
        PartState.from_json(data)


# ---- money that moves


def test_each_part_begins_with_an_even_share_and_half_stays_with_the_whole() -> None:
    state = divided(BudgetState(money(1000), money(200), "e"), 20)
    assert {given.granted for given in state.parts} == {money(20)}
    assert state.left == 400
    for cap in ("0", "0.000000000001", "0.000000000041"):
        assert divided(BudgetState(money(cap), ZERO, "e"), 40).left >= 0


def test_a_part_is_given_more_by_the_first_worker_who_asks_and_the_others_take_that() -> None:
    state = divided(BudgetState(money(1000), ZERO, "e"), 4)
    seen = state.parts[2].granted
    more = grant(state, 2, seen, money(1))
    assert more.parts[2].granted > seen
    assert grant(more, 2, seen, money(1)) == more


def test_what_is_noted_twice_or_late_counts_once() -> None:
    state = divided(BudgetState(money(100), ZERO, "e"), 2)
    once = noted(state, {1: Grant(money(5), money(3), money(1))})
    assert noted(once, {1: Grant(money(5), money(3), money(1))}) == once
    assert noted(once, {1: Grant(money(5), money(2), money(0))}) == once
    assert once.left == state.left + 3


def test_the_last_cent_is_spent_by_whoever_needs_it_wherever_it_lies() -> None:
    cap = CapInParts("10", 4)
    spend(cap.worker("a", 0), "0.01")  # and holds a lease in part 0 that it does not use
    idle = cap.whole
    assert sum(given.held for given in idle.parts) > 3
    leased = sum(sum(part.leases.values()) for part in cap.parts)
    last = cap.worker("b", 3)
    spend(last, str(money("9.99") - leased + money("0.01")))
    assert cap.leased_to_nobody == 0
    assert not now_or_no(last, money("0.000000000001"))


def test_of_a_cap_that_is_used_up_nothing_is_written_however_often_it_is_asked() -> None:
    cap = CapInParts("10", 3)
    spend(cap.worker("a", 1), "10")
    other = cap.worker("b", 2)
    before = dict(cap.changes)
    assert not any(now_or_no(other, money(1)) for _ in range(20))
    assert cap.changes == before


def test_what_was_spent_in_other_parts_is_known_once_it_was_asked_for() -> None:
    cap = CapInParts("10", 2)
    first, second = cap.worker("a", 0), cap.worker("b", 1)
    spend(first, "6")
    now(first.release_unused())
    assert not now_or_no(second, money(5))
    assert now_or_no(second, money(1))
    assert second.spent == 6


def test_workers_of_one_part_that_ask_at_once_change_the_whole_once() -> None:
    cap = CapInParts("100000", 2)
    cap.data["record-0"] = PartState(cap.whole.epoch, *(cap.whole.parts[0].granted,) * 2).to_json()
    cap.changes.clear()

    async def main() -> list[bool]:
        workers = [cap.worker(f"w{n}", 0) for n in range(20)]
        return await asyncio.gather(*(worker.reserve(money("0.01")) for worker in workers))

    assert all(now(main()))
    assert cap.changes["record"] == 1


# ---- whoever dies in between


@pytest.mark.parametrize("patience_s", [2.0, 2.1, 2.2, 2.3])
def test_who_waits_finds_what_comes_back_before_its_patience_is_over_in_whatever_part(
    patience_s: float,
) -> None:
    """All parts are searched more seldom than the worker's own is looked at."""

    async def main() -> bool:
        cap = CapInParts("10", 5)
        other = cap.worker("other", 1, VirtualClock())
        assert await other.reserve(money(9))
        waiting = asyncio.create_task(cap.worker("w", 0, VirtualClock(), patience_s).reserve(money(5)))
        await asyncio.sleep(patience_s - 0.01)
        other.settle(money(9), ZERO)
        await other.release_unused()
        return await waiting

    assert run_virtual(main())


def test_who_has_waited_in_vain_is_refused_and_so_is_who_comes_next() -> None:
    async def main() -> tuple[bool, float, bool, float]:
        cap, loop = CapInParts("10", 5), asyncio.get_running_loop()
        assert await cap.worker("other", 1, VirtualClock()).reserve(money(9))
        waiting = cap.worker("w", 0, VirtualClock(), patience_s=2.1)
        first, at = await waiting.reserve(money(5)), loop.time()
        return first, at, await waiting.reserve(money(5)), loop.time() - at

    first, at, second, later = run_virtual(main())
    assert (first, second) == (False, False)
    assert 2.1 <= at < 3.1
    assert later < 0.1


def moves(cap: CapInParts) -> None:
    """Draws that need what another worker gave back, what the whole has, and what all parts have."""
    first, second = cap.worker("a", 0), cap.worker("b", 1)
    spend(first, "0.5")
    now(first.release_unused())
    spend(second, "2.5")
    spend(second, "4")
    now(second.release_unused())


@pytest.mark.parametrize("applied", [False, True], ids=["not made", "made"])
def test_whoever_dies_at_a_change_loses_what_it_had_leased_and_nothing_else(applied: bool) -> None:
    calm = CapInParts("10", 3)
    calm.changes.clear()
    moves(calm)
    changes = sum(calm.changes.values())
    assert changes > 8
    for step in range(1, changes + 1):
        cap = CapInParts("10", 3)
        cap.dies_in, cap.applied = step, applied
        with pytest.raises(DeadError):
            moves(cap)
        cap.check()
        left = cap.leased_to_nobody
        assert left >= 0
        heir = cap.worker("heir", 2)
        if left:
            assert now_or_no(heir, left)
        assert not now_or_no(heir, money("0.000000000001"))
        cap.check()


@pytest.mark.parametrize("applied", [False, True], ids=["not made", "made"])
def test_whoever_hears_no_answer_goes_on_and_the_cap_holds(applied: bool) -> None:
    for step in range(1, 12):
        cap = CapInParts("10", 3)
        first, second = cap.worker("a", 0), cap.worker("b", 1)
        cap.dies_in, cap.applied, cap.fails = step, applied, True
        spent = ZERO
        for budget, amount in ((first, "0.5"), (second, "2.5"), (second, "4"), (first, "3"), (first, "1")):
            try:
                if now_or_no(budget, money(amount)):
                    budget.settle(money(amount), money(amount))
                    spent += money(amount)
            except StoreError:
                continue
        assert money(5) <= spent <= money(10)


@pytest.mark.parametrize("applied", [False, True], ids=["not made", "made"])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_run_whose_start_dies_at_any_change_is_counted_by_the_next(parts: int, applied: bool) -> None:
    """On object storage all that dead workers had leased counts as spent, and is counted once."""

    def used() -> CapInParts:
        cap = CapInParts("10", 3)
        for part in range(3):
            spend(cap.worker(f"w{part}", part), "0.1")
        cap.changes.clear()
        return cap

    calm = used()
    leased = sum((part.used for part in calm.parts), ZERO)
    calm.open(money("0.3"), parts)
    assert calm.whole.spent == leased > money("0.3")
    for step in range(1, sum(calm.changes.values()) + 1):
        cap = used()
        cap.dies_in, cap.applied = step, applied
        with pytest.raises(DeadError):
            cap.open(money("0.3"), parts)
        cap.open(money("0.3"), 4)
        assert (cap.whole.spent, cap.leased_to_nobody) == (leased, money(10) - leased)
        cap.check()
        heir = cap.worker("heir", 3)
        assert now_or_no(heir, cap.leased_to_nobody)
        assert cap.leased_to_nobody == 0


def test_a_run_goes_on_with_more_parts_or_fewer_or_one() -> None:
    cap, spent = CapInParts("100", 2), ZERO
    for parts in (5, 3, 1, 4, 2):
        cap.open(spent, parts)
        assert len(cap.whole.parts) == (0 if parts == 1 else parts)
        assert cap.whole.spent == spent
        if parts > 1:
            budget = cap.worker(f"w{parts}", parts - 1)
            spend(budget, "7")
            now(budget.release_unused())
            spent += 7
    assert cap.leased_to_nobody == money(100) - spent


def test_a_worker_of_an_earlier_run_draws_nothing_more_from_any_part() -> None:
    cap = CapInParts("10", 2)
    zombies = [cap.worker("z0", 0), cap.worker("z1", 1)]
    spend(zombies[0], "0.25")
    lease = zombies[0]._free
    cap.open(money("0.25"), 3)
    before = dict(cap.data)
    assert not now_or_no(zombies[0], lease + money("0.01"))
    assert not now_or_no(zombies[1], money("0.01"))
    for zombie in zombies:
        now(zombie.release_unused())
    assert cap.data == before


def meanwhile(cap: CapInParts, step: int, act: Callable[[], object]) -> None:
    """Let something happen right before the record is asked for the `step`th time."""
    change, left = cap.change, [step]

    def changed(name: str, make: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            act()
        return change(name, make)

    cap.change = changed  # type: ignore[method-assign]


def test_what_workers_of_the_run_before_draw_while_the_next_one_starts_is_counted_or_refused() -> None:
    for step in range(1, 9):
        cap = CapInParts("10", 3)
        zombies = [cap.worker(f"z{part}", part) for part in range(3)]
        drawn = []

        def draw(zombies: list[LeasedBudget] = zombies, drawn: list[Decimal] = drawn) -> None:
            drawn.extend(money(1) for zombie in zombies if now_or_no(zombie, money(1)))

        meanwhile(cap, step, draw)
        cap.open(ZERO, 3)
        assert len(drawn) == min(3, max(0, 5 - step))  # the second change closes the first part
        heir = cap.worker("heir", 0)
        assert now_or_no(heir, cap.leased_to_nobody)
        assert cap.whole.spent >= sum(drawn)
        cap.check()


def test_of_two_runs_that_begin_at_once_one_learns_of_the_other() -> None:
    for step in range(1, 9):
        cap = CapInParts("10", 3)
        meanwhile(cap, step, partial(cap.open, ZERO, 3))  # the other one, from its beginning to its end
        if step == 1:
            cap.open(ZERO, 3)  # nothing of the one was done when the other began
        else:
            with pytest.raises(StoreError, match="start this one again"):
                cap.open(ZERO, 3)
        cap.check()
        assert all(part.opened_in == cap.whole.epoch and not part.closed_by for part in cap.parts)


def test_a_damaged_part_stops_the_next_run_with_a_way_out(tmp_path: Path) -> None:
    open_budget(str(tmp_path), Decimal(5), ZERO, parts=2)
    damaged = record_path(str(tmp_path), "record-1")
    damaged.write_bytes(b"{")
    with pytest.raises(StoreError, match=r"record-1\.json is damaged.*delete it"):
        open_budget(str(tmp_path), Decimal(5), ZERO, parts=2)
    damaged.unlink()
    assert open_budget(str(tmp_path), Decimal(5), ZERO, parts=2) == 5


class PartsMachine(RuleBasedStateMachine):
    """Workers of a cap in parts reserve, settle, give back, die at any change; runs start, and die starting.

    What is billed stays below the cap, and a call is refused only when nobody has enough for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cap = CapInParts("20", 3)
        self.born = 0
        self.in_flight: list[tuple[LeasedBudget, Decimal]] = []
        self.billed = ZERO
        self.workers: list[LeasedBudget] = []
        self.zombies: list[LeasedBudget] = []
        self.started = True
        self.hire()

    def hire(self) -> None:
        parts = len(self.cap.whole.parts)
        self.workers = [self.cap.worker(f"w{self.born + n}", n % parts) for n in range(4)]
        self.born += 4

    def reserved(self, budget: LeasedBudget, worst: Decimal) -> bool:
        if now_or_no(budget, worst):
            self.in_flight.append((budget, worst))
            return True
        return False

    @precondition(lambda self: self.started)
    @rule(who=st.integers(0, 3), cents=st.integers(1, 800))
    def reserve(self, who: int, cents: int) -> None:
        budget, worst = self.workers[who], money(cents) / 100
        there = max(ZERO, self.cap.leased_to_nobody) + budget._free
        allowed = self.reserved(budget, worst)
        assert allowed == (worst <= there), f"{worst} of {there}"

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), part=st.sampled_from([0, 1, 50, 100]))
    def settle(self, data: st.DataObject, part: int) -> None:
        budget, worst = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        actual = money(worst * part / 100)
        budget.settle(worst, actual)
        self.billed += actual

    @precondition(lambda self: self.started)
    @rule(who=st.integers(0, 3))
    def give_back(self, who: int) -> None:
        now(self.workers[who].release_unused())

    @precondition(lambda self: self.started)
    @rule(who=st.integers(0, 3), cents=st.integers(1, 800), step=st.integers(1, 6), applied=st.booleans())
    def die(self, who: int, cents: int, step: int, applied: bool) -> None:
        """Its calls in flight may all have been billed at their worst."""
        budget = self.workers[who]
        self.cap.dies_in, self.cap.applied = step, applied
        with suppress(DeadError):
            self.reserved(budget, money(cents) / 100)
        self.cap.dies_in = None
        self.billed += sum((worst for other, worst in self.in_flight if other is budget), ZERO)
        self.in_flight = [entry for entry in self.in_flight if entry[0] is not budget]
        self.workers[who] = self.cap.worker(f"w{self.born}", self.born % len(self.cap.whole.parts))
        self.born += 1

    @rule(parts=st.integers(2, 4), known=st.integers(0, 100), step=st.integers(0, 9), applied=st.booleans())
    def start_again(self, parts: int, known: int, step: int, applied: bool) -> None:
        """Its ledgers know a part of what was billed. Workers of the run before may still be there."""
        self.cap.dies_in, self.cap.applied = step or None, applied
        try:
            self.cap.open(money(self.billed * known / 100), parts)
            self.started = True
        except DeadError:
            self.started = False
        self.cap.dies_in = None
        self.zombies = (self.workers + self.zombies)[:6]
        if self.started:
            self.hire()

    @precondition(lambda self: self.zombies)
    @rule(data=st.data(), cents=st.integers(1, 400))
    def a_zombie_acts(self, data: st.DataObject, cents: int) -> None:
        zombie = self.zombies[data.draw(st.integers(0, len(self.zombies) - 1))]
        self.reserved(zombie, money(cents) / 100)
        if cents % 2:
            now(zombie.release_unused())

    @invariant()
    def no_part_of_the_cap_is_there_twice(self) -> None:
        if self.started:
            self.cap.check()

    @invariant()
    def billed_and_in_flight_never_pass_the_cap(self) -> None:
        assert self.billed + sum((worst for _, worst in self.in_flight), ZERO) <= money(20)


TestPartsMachine = PartsMachine.TestCase
TestPartsMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# ---- many workers at once


@pytest.mark.parametrize(("workers", "parts", "cap"), [(6, 2, 40), (40, 5, 300), (60, 12, 100)])
def test_workers_of_many_parts_race_for_a_cap_use_it_up_and_do_not_pass_it(
    workers: int, parts: int, cap: int
) -> None:
    shared = CapInParts(str(cap), parts)

    async def main() -> list[int]:
        clock = VirtualClock()
        budgets = [shared.worker(f"w{n}", n % parts, clock, patience_s=20) for n in range(workers)]
        return await race(budgets, cap, random.Random(workers))

    calls = run_virtual(main())
    assert sum(part.own for part in shared.parts) == sum(calls) <= cap
    assert all(not part.leases for part in shared.parts)
    assert cap - sum(calls) < 7, "everything that could be spent was spent"


def test_threads_race_for_a_cap_in_parts_on_object_storage(cloud_storage: CloudStorage) -> None:
    output, calls, refused = f"{cloud_storage.bucket()}/out", [], []
    open_budget(output, Decimal(30), ZERO, parts=3)
    state = read_budget(output)
    assert state is not None
    start = threading.Barrier(6)

    def work(name: str) -> None:
        async def main() -> None:
            budget = lease_from(output, state, name, VirtualClock(), 20.0)
            while await budget.reserve(money(1)):
                calls.append(1)
                budget.settle(money(1), money(1))
            refused.append(name)
            await budget.release_unused()

        start.wait()
        asyncio.run(main())

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 6
    names = [f"record-{part}" for part in range(3)]
    parts = [record_of(output, n).update_now(lambda data: (None, PartState.from_json(data))) for n in names]
    assert sum(part.own for part in parts) == len(calls) == 30
    assert all(not part.leases for part in parts)
