"""Defects of the budget: reservations, leases, and what a new run believes was spent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import pyarrow as pa

from schemas.outcomes import ZERO, money
from tests.simulator.planting import defect, swap
from transforms import spend
from transforms.batch_ids import ids_in
from transforms.call import budget_file
from transforms.call.budget import LeasedBudget
from transforms.call.budget_record import BudgetState
from transforms.call.ledger_totals import LedgerTotals
from transforms.commit_index import CommitIndex

CAP = "spend never passes the cap"
LEASES = "leases never pass the cap"
REFUSED = "the budget is refused only when it is used up"
FINISHES = "the same command finishes the job"
WORST = "the worst case is the worst case"


@defect("budget", CAP)
def a_call_without_a_known_end_gives_its_reservation_back(replaced: ExitStack) -> None:
    def settle(self: LeasedBudget, worst: Decimal, actual: Decimal) -> None:
        before(self, worst, ZERO if actual == worst else actual)

    before = swap(replaced, LeasedBudget, "settle", settle)


@defect("budget", CAP)
def the_budget_is_checked_first_and_taken_later(replaced: ExitStack) -> None:
    """Check, then act: everybody sees the same money."""

    def take(self: LeasedBudget, worst: Decimal) -> bool:
        if worst > self._lease - self._settled:
            return False
        self._in_flight += 1
        self._reserved += ZERO
        return True

    def settle(self: LeasedBudget, worst: Decimal, actual: Decimal) -> None:
        before(self, ZERO, actual)

    swap(replaced, LeasedBudget, "_take", take)
    before = swap(replaced, LeasedBudget, "settle", settle)


@defect("budget", CAP, LEASES)
def a_lease_is_drawn_beyond_what_is_left(replaced: ExitStack) -> None:
    def draw(self: BudgetState, holder: str, least: Decimal, most: Decimal) -> Any:
        if self.left <= 0:
            return self, ZERO
        roomy = BudgetState(self.cap * 2, self.spent, self.epoch, self.leases, self.boot_id, self.unaccounted)
        state, amount = before(roomy, holder, least, most)
        return BudgetState(
            self.cap, state.spent, state.epoch, state.leases, state.boot_id, state.unaccounted
        ), amount

    before = swap(replaced, BudgetState, "draw", draw)


@defect("budget", REFUSED, FINISHES)
def leases_are_not_given_back(replaced: ExitStack) -> None:
    async def keep(self: LeasedBudget) -> None:
        pass

    swap(replaced, LeasedBudget, "release_unused", keep)


@defect("budget", CAP, LEASES)
def a_lease_that_is_given_back_is_still_used(replaced: ExitStack) -> None:
    async def release(self: LeasedBudget) -> None:
        lease = self._lease
        await before(self)
        self._lease = lease

    before = swap(replaced, LeasedBudget, "release_unused", release)


@defect("budget", CAP)
def what_was_settled_is_never_reported(replaced: ExitStack) -> None:
    def settle(self: BudgetState, holder: str, settled: Decimal, keep: Decimal) -> BudgetState:
        return before(self, holder, ZERO, keep)

    before = swap(replaced, BudgetState, "settle", settle)


@defect("budget", CAP)
def a_new_run_believes_that_nothing_was_spent(replaced: ExitStack) -> None:
    def opened(output: str, cap: Decimal, spent: Decimal, *more: Any, **named: Any) -> Decimal:
        left: Decimal = before(output, cap, money(0), *more, **named)
        return left

    before = swap(replaced, spend, "open_budget", opened)


@defect("budget", CAP)
def a_new_run_forgets_calls_without_a_known_end(replaced: ExitStack) -> None:
    swap(replaced, LedgerTotals, "spent", property(lambda self: self.list_amount))


@defect("budget", CAP)
def a_new_run_counts_the_newest_attempts_only(replaced: ExitStack) -> None:
    def tables(self: CommitIndex, columns: Sequence[str]) -> Iterator[pa.Table]:
        for table in before(self, tuple({*columns, "batch_id", "attempt"})):
            newest = self.committed.attempts_of(ids_in(table.column("batch_id")))
            is_newest = newest == table.column("attempt").to_numpy()
            yield table.filter(pa.array(is_newest)).select(columns)

    def count(*arguments: Any) -> Any:
        with ExitStack() as meanwhile:
            swap(meanwhile, CommitIndex, "tables", tables)
            return counted(*arguments)

    before = CommitIndex.tables
    counted = swap(replaced, spend, "count_spending", count)


@defect("budget", CAP)
def a_power_cut_makes_leases_void(replaced: ExitStack) -> None:
    swap(replaced, budget_file, "_boot_of_machine", lambda: "the boot before")


@defect("budget", CAP, WORST)
def the_worst_case_leaves_out_what_the_provider_adds(replaced: ExitStack) -> None:
    from transforms.call import site

    swap(replaced, site, "OVERHEAD_TOKENS", 0)
