"""Defects of caps in several parts: money that is moved, and what a new run makes of the old parts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal
from typing import Any

from tests.simulator.planting import defect, swap
from transforms.call import budget_parts
from transforms.call.budget_parts import PartState, PartSupply
from transforms.call.budget_record import BudgetState, Grant

CAP = "spend never passes the cap"
LEASES = "leases never pass the cap"
TWICE = "no part of a cap is there twice"
REFUSED = "the budget is refused only when it is used up"
FINISHES = "the same command finishes the job"


@defect("parts", CAP, LEASES, TWICE)
def what_a_part_gave_back_is_taken_in_again(replaced: ExitStack) -> None:
    def noted(state: BudgetState, told: Mapping[int, Grant]) -> BudgetState:
        parts = list(state.parts)
        for part, says in told.items():
            parts[part] = replace(parts[part], returned=parts[part].returned + says.returned)
        return replace(state, parts=tuple(parts))

    swap(replaced, budget_parts, "noted", noted)


@defect("parts", CAP, LEASES, TWICE)
def what_a_part_was_given_is_taken_in_again(replaced: ExitStack) -> None:
    def receive(self: PartState, granted: Decimal) -> PartState:
        return replace(self, granted=self.granted + granted)

    swap(replaced, PartState, "receive", receive)


@defect("parts", CAP, LEASES, TWICE)
def a_part_gives_back_what_its_workers_have_leased(replaced: ExitStack) -> None:
    def give_back(self: PartState) -> PartState:
        return replace(self, returned=max(self.returned, self.granted - self.own))

    swap(replaced, PartState, "give_back", give_back)


@defect("parts", CAP, LEASES, TWICE)
def more_is_given_than_is_left(replaced: ExitStack) -> None:
    def grant(state: BudgetState, part: int, seen: Decimal, least: Decimal) -> BudgetState:
        given = before(state, part, seen, least)
        if given != state or least <= state.left:
            return given
        parts = list(state.parts)
        parts[part] = replace(parts[part], granted=parts[part].granted + least)
        return replace(state, parts=tuple(parts))

    before = swap(replaced, budget_parts, "grant", grant)


@defect("parts", REFUSED, FINISHES)
def what_other_parts_have_is_not_looked_for(replaced: ExitStack) -> None:
    async def fetch(self: PartSupply, least: Decimal) -> bool:
        self._searched_at = self._clock.monotonic()
        return await self._ask({self._mine: self._told}, least)

    swap(replaced, PartSupply, "fetch", fetch)


@defect("parts", CAP)
def a_new_run_forgets_what_was_leased_in_parts(replaced: ExitStack) -> None:
    def opened(*given: Any) -> BudgetState:
        state: BudgetState = before(*given[:5])
        return state

    before = swap(replaced, BudgetState, "opened", opened)
