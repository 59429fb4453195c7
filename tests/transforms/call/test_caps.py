"""Caps besides the run's own: tokens, routes, a cost centre's month; many workers; raced."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.budget import Budget as BudgetSection
from schemas.budget import RouteBudget
from schemas.errors import OutputError, StoreError
from schemas.failures import FailureClass
from schemas.outcomes import ZERO, Outcome, money
from schemas.run import RunContext
from tests.support.budgets import FrozenClock, MemoryRecord, now, now_or_no, race, settled
from tests.transforms.call.fakes import (
    FakeTransport,
    Sent,
    VirtualClock,
    answer_for,
    make_batch,
    make_core,
    make_workload,
    run_virtual,
)
from tests.transforms.call.test_budget import CapMachine
from transforms.call.budget import LeasedBudget
from transforms.call.budget_file import LocalBudgetRecord, open_budget, read_budget
from transforms.call.budget_record import BudgetState
from transforms.call.caps import Caps, CapSpec, Need, NoFurtherCaps, cap_specs
from transforms.call.caps_file import engine_caps, start_cap_records, start_centre
from transforms.call.centre import CentreState, OutputShare, Recovery, month_of, read_centre, reader
from transforms.call.ports import LostError

NOVEMBER = datetime(2026, 11, 22, 9, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, 0, 0, 1, tzinfo=UTC)


EXAMPLES = 2000 if os.environ.get("SWITCHGEAR_LONG") == "1" else 500  # the former in .ci/run


class Deep(CapMachine):
    """The run's own cap, at length."""


TestDeep = pytest.mark.slow(Deep.TestCase)
TestDeep.settings = settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None)


def need(amount: Any = 0, tokens: int = 0, route: str = "ask") -> Need:
    return Need(route, money(amount), tokens)


def capped(name: str, unit: Any, limit: Any, route: str | None = None) -> tuple[CapSpec, MemoryRecord]:
    return CapSpec(name, name, unit, Decimal(limit), route), MemoryRecord(str(limit))


def caps_over(*members: tuple[CapSpec, MemoryRecord]) -> Caps:
    return Caps(
        [
            (spec, LeasedBudget(r, "w", FrozenClock(), spec.limit, sentence=spec.sentence))
            for spec, r in members
        ]
    )


def test_the_caps_of_a_workload_are_found_in_a_fixed_order() -> None:
    routes = {"b": RouteBudget(amount=Decimal(2)), "a": RouteBudget(amount=Decimal(1), tokens=5)}
    found = cap_specs(make_workload(budget=BudgetSection(tokens=100, routes=routes)))
    assert [(spec.name, spec.limit, spec.route) for spec in found] == [
        ("tokens", Decimal(100), None),
        ("route:a:amount", Decimal(1), "a"),
        ("route:a:tokens", Decimal(5), "a"),
        ("route:b:amount", Decimal(2), "b"),
    ]


def test_a_call_reserves_from_every_cap_that_holds_for_its_route() -> None:
    tokens, mine, other = (
        capped("tokens", "tokens", 1000),
        capped("route:ask:amount", "amount", 10, "ask"),
        capped("route:tell:amount", "amount", 10, "tell"),
    )
    caps = caps_over(tokens, mine, other)
    assert now(caps.reserve(need(3, 400))) is None
    caps.settle(need(3, 400), need(1, 250))
    now(caps.release_unused())
    assert [record.state.spent for _, record in (tokens, mine, other)] == [money(250), money(1), ZERO]
    assert all(record.state.leases == {} for _, record in (tokens, mine, other))


def test_a_refusal_names_the_cap_and_leaves_nothing_reserved() -> None:
    tokens, route = capped("tokens", "tokens", 1000), capped("route:ask:amount", "amount", 2, "ask")
    caps = caps_over(tokens, route)
    refusal = now(caps.reserve(need(3, 400)))
    assert (refusal.cap, refusal.need) == ("route:ask:amount", money(3))
    assert refusal.sentence == "the cap of 2 USD on route 'ask' would be passed; no call was made"
    now(caps.release_unused())
    assert tokens[1].state.leases == {}
    assert now(caps.reserve(need(2, 1000))) is None
    caps.settle(need(2, 1000), need(2, 1000))
    refusal = now(caps.reserve(need(0, 1)))
    assert refusal.sentence == "the cap of 1000 tokens would be passed; no call was made"


def test_who_is_cancelled_while_it_waits_for_a_cap_gives_the_others_back() -> None:
    first, second = capped("tokens", "tokens", 1000), capped("route:ask:amount", "amount", 2, "ask")
    caps = caps_over(first, second)

    async def main() -> None:
        assert await caps.reserve(need(2, 100)) is None
        waiting = asyncio.create_task(caps.reserve(need(1, 100)))
        await settled()
        assert not waiting.done(), "the second cap is used up by a call that may cost less"
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        caps.settle(need(2, 100), need(2, 100))
        await caps.release_unused()

    now(main())
    assert (first[1].state.spent, first[1].state.leases) == (money(100), {})


def run_with_caps(
    rows: int, *members: tuple[CapSpec, MemoryRecord], **batch: Any
) -> tuple[list[Outcome], FakeTransport]:
    transport = FakeTransport(lambda sent, seen: answer_for(sent))

    async def main() -> list[Outcome]:
        core = make_core(transport)
        core.desk.caps = Caps(
            [(s, LeasedBudget(r, "w", VirtualClock(), s.limit, sentence=s.sentence)) for s, r in members]
        )
        return (await core.run(make_batch(rows, **batch))).outcomes

    return run_virtual(main()), transport


def test_documents_beyond_a_cap_on_tokens_end_as_budget_exhausted_and_say_what_refused_them() -> None:
    spec, record = capped("tokens", "tokens", 20_000)
    outcomes, transport = run_with_caps(300, (spec, record))
    done = [o for o in outcomes if o.is_result]
    refused = [o for o in outcomes if not o.is_result]
    assert {(o.failure, o.refused_by) for o in refused} == {(FailureClass.BUDGET_EXHAUSTED, "tokens")}
    assert all(o.refused_need > 1024 for o in refused), "the worst case: bytes of the request and all output"
    assert len(transport.sent) == len(done)
    assert record.state.spent == 120 * len(done) <= 20_000
    assert len(done) > 140, "what calls did not use was given back"


def test_a_call_of_unknown_end_counts_with_all_the_tokens_it_may_have_taken() -> None:
    spec, record = capped("tokens", "tokens", 20_000)

    async def main() -> Any:
        core = make_core(FakeTransport(lambda sent, seen: LostError("timeout", "late")))
        core.desk.caps = Caps([(spec, LeasedBudget(record, "w", VirtualClock(), spec.limit))])
        return await core.run(make_batch(1))

    result = run_virtual(main())
    assert record.state.spent == sum(call.worst_tokens for call in result.ambiguous) > 2 * 1024


def test_a_cap_on_one_route_leaves_other_routes_alone() -> None:
    outcomes, transport = run_with_caps(5, capped("route:other:amount", "amount", 0, "other"))
    assert all(o.is_result for o in outcomes)
    outcomes, transport = run_with_caps(5, capped("route:r:amount", "amount", 0, "r"))
    assert {o.refused_by for o in outcomes} == {"route:r:amount"}
    assert transport.sent == []


def test_records_of_caps_are_written_when_a_run_starts_and_checked_when_a_worker_does(tmp_path: Path) -> None:
    workload = make_workload(budget=BudgetSection(tokens=100, routes={"r": RouteBudget(amount=Decimal(2))}))
    run = RunContext("run", str(tmp_path), "w" * 64, False, 8)
    with pytest.raises(OutputError, match="start the run again"):
        engine_caps(workload, run, str(tmp_path), VirtualClock(), "w")
    spent = {"tokens": Decimal(40), "route:r:amount": Decimal("2.5")}
    left = start_cap_records(str(tmp_path), workload, spent)
    assert left == {"tokens": money(60), "route:r:amount": ZERO}
    caps = engine_caps(workload, run, str(tmp_path), VirtualClock(), "w")
    assert isinstance(caps, Caps)
    assert isinstance(engine_caps(make_workload(), run, str(tmp_path), VirtualClock(), "w"), NoFurtherCaps)


# a worker at the cap waits for what others may give back


def two_workers(cap: str, patience_s: float) -> tuple[MemoryRecord, LeasedBudget, LeasedBudget]:
    record = MemoryRecord(cap)
    a, b = (
        LeasedBudget(record, name, VirtualClock(), money(cap), patience_s=patience_s) for name in ("a", "b")
    )
    return record, a, b


def test_a_worker_at_the_cap_waits_for_a_lease_that_comes_back() -> None:
    async def main() -> bool:
        _, a, b = two_workers("10", 20)
        assert await a.reserve(money(9))
        waiting = asyncio.create_task(b.reserve(money(5)))
        await asyncio.sleep(3)
        assert not waiting.done()
        a.settle(money(9), money(1))
        await a.release_unused()
        return await waiting

    assert run_virtual(main())


def test_it_waits_a_bounded_time_once_and_not_for_each_document() -> None:
    async def main() -> float:
        _, a, b = two_workers("10", 20)
        assert await a.reserve(money(9))
        started = asyncio.get_running_loop().time()
        assert [await b.reserve(money(5)) for _ in range(1000)] == [False] * 1000
        return asyncio.get_running_loop().time() - started

    assert 20 <= run_virtual(main()) < 22


def test_it_does_not_wait_when_all_leases_together_would_not_be_enough() -> None:
    async def main() -> float:
        record, _, b = two_workers("10", 20)
        record.data = BudgetState(money(10), money(6), "epoch", {"a": money(4)}).to_json()
        assert not await b.reserve(money(5))
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) < 1


def test_two_workers_that_wait_for_each_other_both_give_back_and_one_goes_on() -> None:
    async def main() -> list[bool]:
        record, a, b = two_workers("10", 20)
        for worker in (a, b):
            assert await worker.reserve(money(1))
            worker.settle(money(1), ZERO)
        record.data = BudgetState(money(10), ZERO, "epoch", {"a": money(5), "b": money(5)}).to_json()
        a._lease = b._lease = money(5)

        async def spend(worker: LeasedBudget) -> bool:
            if not await worker.reserve(money(8)):
                return False
            await asyncio.sleep(1)
            worker.settle(money(8), money(8))
            await worker.release_unused()
            return True

        return await asyncio.gather(spend(a), spend(b))

    assert sorted(run_virtual(main())) == [False, True]


def test_a_worker_that_waits_at_one_cap_gives_back_what_it_does_not_use_of_the_others() -> None:
    """Two workers would wait for each other: one at the first cap, the other at the second."""
    first, second = capped("tokens", "tokens", 1000), capped("route:ask:amount", "amount", 10, "ask")

    def worker(name: str) -> Caps:
        leased = [
            (s, LeasedBudget(r, name, VirtualClock(), s.limit, patience_s=20)) for s, r in (first, second)
        ]
        desk = replace(make_core(FakeTransport(lambda sent, seen: answer_for(sent))).desk, caps=Caps(leased))
        assert isinstance(desk.caps, Caps)
        return desk.caps

    async def main() -> tuple[Any, Any, float]:
        a, b = worker("a"), worker("b")
        assert await a.reserve(need(9, 1)) is None
        a.settle(need(9, 1), need(0, 1))  # it keeps what it has leased of the second cap, for its next calls
        b_waits = asyncio.create_task(b.reserve(need(9, 800)))  # it has what it needs of the first
        await asyncio.sleep(1)
        a_waits = asyncio.create_task(a.reserve(need(1, 500)))
        refused_b = await b_waits
        took = asyncio.get_running_loop().time()
        b.settle(need(9, 800), need(9, 200))
        await b.release_unused()
        return refused_b, await a_waits, took

    refused_b, refused_a, took = run_virtual(main())
    assert (refused_b, refused_a) == (None, None)
    assert took < 2


def test_a_worker_of_an_earlier_run_does_not_wait_at_all() -> None:
    async def main() -> float:
        record, a, _ = two_workers("10", 20)
        assert await a.reserve(money(1))
        a.settle(money(1), money(1))
        record.data = BudgetState(money(10), ZERO, "next run").to_json()
        assert not await a.reserve(money(9))
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) < 1


# races


@pytest.mark.parametrize("workers", [1, 8, 64, 200])
def test_any_number_of_workers_race_for_a_cap_and_none_passes_it(workers: int) -> None:
    cap, source = 3000, random.Random(workers)
    record = SlowRecord(str(cap), source)

    async def main() -> list[int]:
        clock = VirtualClock()
        budgets = [LeasedBudget(record, f"w{n}", clock, money(cap), patience_s=20) for n in range(workers)]
        return await race(budgets, cap, source)

    calls = run_virtual(main())
    state = record.state
    assert state.spent == sum(calls) <= cap
    assert state.leases == {}
    assert cap - state.spent < 7, "everything that could be spent was spent"


class SlowRecord(MemoryRecord):
    """A record whose updates take a while, one after the other, as a lock on a file makes them."""

    def __init__(self, cap: str, source: random.Random) -> None:
        super().__init__(cap)
        self._source = source
        self._lock = asyncio.Lock()

    async def update(self, change: Any) -> Any:
        async with self._lock:
            await asyncio.sleep(self._source.random() / 1000)
            result = await super().update(change)
            state = self.state
            assert state.spent + sum(state.leases.values(), ZERO) <= state.cap
            return result


@pytest.mark.parametrize("workers", [8, 64, 200])
def test_workers_in_threads_race_for_one_record_on_the_disk(workers: int, tmp_path: Path) -> None:
    open_budget(str(tmp_path), Decimal(60), ZERO)
    calls: list[int] = []
    start = threading.Barrier(workers)

    def work(name: str) -> None:
        async def main() -> None:
            budget = LeasedBudget(LocalBudgetRecord(str(tmp_path)), name, VirtualClock(), money(60))
            while await budget.reserve(money(1)):
                calls.append(1)
                budget.settle(money(1), money(1))
            await budget.release_unused()

        start.wait()
        asyncio.run(main())

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = read_budget(str(tmp_path))
    assert state is not None
    assert state.spent == len(calls) <= 60
    assert state.leases == {}
    assert len(calls) > 60 - workers


# a cost centre's month


def centre(folder: Path, cap: str = "100", name: str = "search") -> BudgetSection:
    return BudgetSection(cost_centre=name, cost_centre_amount=Decimal(cap), cost_centre_folder=str(folder))


class Around:
    """Outputs that share a cost centre; each run of one starts, draws, spends, ends or dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.budget = centre(folder / "budgets")
        self.runs = 0

    def start(self, output: str, spent: Any, at: datetime = NOVEMBER) -> Decimal:
        self.runs += 1
        self.run = RunContext(f"run-{self.runs:04d}", str(self.folder / output), "w" * 64, False, 8)
        return start_centre(self.run.output, self.budget, self.run.run_id, Decimal(spent), at)

    def worker(self, at: datetime = NOVEMBER) -> LeasedBudget:
        clock = StoppedClock(at)
        caps = engine_caps(make_workload(budget=self.budget), self.run, self.run.output, clock, "w")
        assert isinstance(caps, Caps)
        ((_, budget),) = caps._members
        budget._patience_s = 0
        return budget

    def state(self, month: str = "2026-11") -> CentreState:
        path = self.folder / "budgets" / "search" / f"{month}.json"
        return read_centre(path.read_bytes(), "nobody", money(100))


class StoppedClock(FrozenClock):
    def __init__(self, at: datetime) -> None:
        super().__init__()
        self.at = at

    def now(self) -> datetime:
        return self.at


@pytest.fixture
def around(tmp_path: Path) -> Around:
    return Around(tmp_path)


def spend(budget: LeasedBudget, worst: Any, actual: Any) -> bool:
    async def main() -> bool:
        if not await budget.reserve(money(worst)):
            return False
        budget.settle(money(worst), money(actual))
        await budget.release_unused()
        return True

    return asyncio.run(main())


def test_runs_of_several_outputs_share_the_months_cap(around: Around) -> None:
    assert around.start("a", 0) == 100
    assert spend(around.worker(), 60, 55)
    assert around.start("b", 0) == 45
    budget = around.worker()
    assert not spend(budget, 46, 0)
    assert "cost centre 'search' in 2026-11" in budget.sentence
    assert spend(budget, 45, 45)
    assert around.state().spent == 100
    assert not spend(around.worker(), "0.01", 0)


def test_a_new_month_begins_with_a_full_cap(around: Around) -> None:
    around.start("a", 0)
    spend(around.worker(), 90, 90)
    assert around.start("a", 90, DECEMBER) == 100
    assert spend(around.worker(DECEMBER), 70, 70)
    assert (around.state().spent, around.state("2026-12").spent) == (90, 70)
    assert (month_of(NOVEMBER), month_of(DECEMBER)) == ("2026-11", "2026-12")


def test_what_an_output_had_spent_before_it_joined_is_nobodys(around: Around) -> None:
    assert around.start("a", 500) == 100
    spend(around.worker(), 10, 10)
    assert around.start("a", 510) == 90


def die_holding(around: Around, worst: Any) -> None:
    budget = around.worker()
    assert asyncio.run(budget.reserve(money(worst)))


def test_the_next_run_of_an_output_recovers_what_a_crashed_one_had_leased(around: Around) -> None:
    around.start("a", 0)
    die_holding(around, 60)
    assert around.state().leases != {}
    assert around.start("b", 0) == 40, "another output's run leaves the leases alone"
    assert around.start("a", 25) == 75, "by the ledger 25 of the 60 were spent"
    assert (around.state().spent, around.state().leases) == (25, {})


def test_a_crash_in_november_is_booked_to_november(around: Around) -> None:
    around.start("a", 0)
    die_holding(around, 60)
    assert around.start("a", 30, DECEMBER) == 100
    assert (around.state().spent, around.state("2026-12").spent) == (30, 0)


def test_after_a_power_cut_all_that_was_leased_counts_as_spent(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    around.start("a", 0)
    die_holding(around, 60)
    monkeypatch.setattr("transforms.call.budget_file._boot_of_machine", lambda: "another boot")
    leased = sum(around.state().leases.values(), ZERO)
    assert around.start("a", 5) == 100 - leased
    assert around.state().spent == leased >= 60


def test_a_worker_of_an_earlier_run_can_spend_nothing_more(around: Around) -> None:
    around.start("a", 0)
    zombie = around.worker()
    around.start("a", 0)
    assert not spend(zombie, 1, 1)
    assert spend(around.worker(), 1, 1)


def test_a_run_of_another_figure_holds_itself_to_its_own(around: Around) -> None:
    around.start("a", 0)
    spend(around.worker(), 50, 50)
    around.budget = centre(around.folder / "budgets", "60")
    assert around.start("b", 0) == 10


def test_an_output_keeps_its_name_when_it_is_moved(around: Around) -> None:
    around.start("a", 0)
    die_holding(around, 60)
    (around.folder / "a").rename(around.folder / "moved")
    assert around.start("moved", 10) == 90
    assert len(around.state().outputs) == 1


def test_a_damaged_record_stops_spending_with_a_way_out(around: Around) -> None:
    around.start("a", 0)
    for data in (b"{", b"[]", b'{"version": "cost-centre/9"}'):
        (around.folder / "budgets" / "search" / "2026-11.json").write_bytes(data)
        with pytest.raises(StoreError, match="cost centre"):
            around.start("a", 0)


def test_a_centres_record_survives_its_own_bytes() -> None:
    state = CentreState("a", money(5), {"a": OutputShare("e", "b", money(1), money(2))}, {"a/w": money(3)})
    assert read_centre(state.to_json(), "a", money(5)) == state
    assert read_centre(None, "a", money(5)) == CentreState("a", money(5))


def test_recovery_never_books_more_than_was_spent_unless_power_was_cut() -> None:
    share = OutputShare("e", "boot")
    state = CentreState("a", money(9), {"a": share}, {"a/1": money(2), "a/2": money(3), "b/1": money(4)})
    recovery = Recovery(money("3.5"))
    assert recovery.of(state, "boot") == money("3.5")
    assert recovery.of(state, "boot") == ZERO
    assert Recovery(ZERO).of(state, "other") == money(5)


class CentreMachine(RuleBasedStateMachine):
    """Outputs whose runs start, spend, give back and die, over two months; the months' caps hold."""

    CAP = money(40)

    def __init__(self) -> None:
        super().__init__()
        self.record = MemoryRecord("0")
        self.record.data = None
        self.billed = {"a": ZERO, "b": ZERO}
        self.in_flight: list[tuple[str, LeasedBudget, Decimal]] = []
        self.workers: dict[str, list[LeasedBudget]] = {"a": [], "b": []}
        self.runs = 0
        for output in ("a", "b"):
            self.start(output, False)

    @property
    def state(self) -> CentreState:
        return read_centre(self.record.data, "a", self.CAP)

    @rule(output=st.sampled_from("ab"), power=st.booleans())
    def start(self, output: str, power: bool) -> None:
        """A run of an output begins; whatever an earlier one had in flight may have been billed."""
        self.runs += 1
        for owner, _, worst in self.in_flight:
            self.billed[owner] += worst if owner == output else ZERO
        self.in_flight = [entry for entry in self.in_flight if entry[0] != output]
        state = read_centre(self.record.data, output, self.CAP)
        share = state.outputs.get(output)
        accounted = ZERO if share is None else share.spent
        recovery = Recovery(max(ZERO, self.billed[output] - accounted))
        boot = f"boot {self.runs}" if power else ("boot" if share is None else share.boot_id)
        found = recovery.of(state, boot) + recovery.unreported
        epoch = f"run {self.runs:06d}"
        self.record.data = state.begun(epoch, boot, found, ZERO).to_json()
        self.workers[output] = [
            LeasedBudget(
                self.record,
                f"{output}/{n}",
                FrozenClock(),
                self.CAP,
                read=reader(output, self.CAP, epoch, boot),
                epoch=epoch,
            )
            for n in range(2)
        ]

    @rule(output=st.sampled_from("ab"), n=st.integers(0, 1), cents=st.integers(1, 900))
    def reserve(self, output: str, n: int, cents: int) -> None:
        worker, worst = self.workers[output][n], money(cents) / 100
        if now_or_no(worker, worst):
            self.in_flight.append((output, worker, worst))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), part=st.sampled_from([0, 1, 50, 100]))
    def settle(self, data: st.DataObject, part: int) -> None:
        place = data.draw(st.integers(0, len(self.in_flight) - 1))
        output, worker, worst = self.in_flight.pop(place)
        actual = money(worst * part / 100)
        worker.settle(worst, actual)
        self.billed[output] += actual

    @rule(output=st.sampled_from("ab"), n=st.integers(0, 1))
    def give_back(self, output: str, n: int) -> None:
        now(self.workers[output][n].release_unused())

    @invariant()
    def the_record_never_promises_more_than_the_cap(self) -> None:
        assert self.state.spent + sum(self.state.leases.values(), ZERO) <= self.CAP

    @invariant()
    def billed_and_in_flight_never_pass_the_cap(self) -> None:
        in_flight = sum((worst for _, _, worst in self.in_flight), ZERO)
        assert sum(self.billed.values(), ZERO) + in_flight <= self.CAP

    @invariant()
    def nothing_that_was_billed_is_forgotten(self) -> None:
        state = self.state
        known = state.spent + sum(state.leases.values(), ZERO)
        assert sum(self.billed.values(), ZERO) <= known


TestCentreMachine = CentreMachine.TestCase
TestCentreMachine.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)


def test_sent_requests_are_counted_by_nobody_else() -> None:
    """A core without further caps asks none."""
    transport = FakeTransport(lambda sent, seen: answer_for(sent))

    async def main() -> Any:
        return await make_core(transport).run(make_batch(2))

    result = run_virtual(main())
    assert [o.refused_by for o in result.outcomes] == ["", ""]
    assert all(isinstance(sent, Sent) for sent in transport.sent)
