"""A cap in several parts in memory, and workers that die between any two changes of its records."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from schemas.errors import StoreError
from schemas.outcomes import ZERO, money
from tests.support.budgets import FrozenClock
from transforms.call.budget import LeasedBudget
from transforms.call.budget_file import open_budget, part_name
from transforms.call.budget_parts import PartState, lease_from_part
from transforms.call.budget_record import BudgetState

OUTPUT = "gs://memory/out"


class DeadError(BaseException):
    """The process that was about to change a record, or just had, is no more."""


class CapInParts:
    """The records of one cap; `dies_in` changes from now whoever makes the change dies.

    With `applied` the change is made all the same. `changes` counts what was written, by record.
    """

    def __init__(self, cap: str, parts: int) -> None:
        self.cap = money(cap)
        self.data: dict[str, bytes] = {}
        self.dies_in: int | None = None
        self.applied = False
        self.fails = False  # with StoreError, and lives on
        self.changes: dict[str, int] = {}
        self.open(ZERO, parts)

    def open(self, spent: Decimal, parts: int) -> None:
        """A run starts."""
        open_budget(OUTPUT, self.cap, spent, parts=parts, records=lambda _, name: MemoryPart(self, name))  # type: ignore[arg-type,return-value]

    @property
    def whole(self) -> BudgetState:
        return BudgetState.from_json(self.data["record"])

    @property
    def parts(self) -> list[PartState]:
        """Those of the run that goes on."""
        names = [part_name("record", part) for part in range(len(self.whole.parts))]
        return [PartState.from_json(self.data[name]) for name in names]

    @property
    def leased_to_nobody(self) -> Decimal:
        """What could be spent if nobody gave anything back."""
        whole = self.whole
        used = sum((part.used for part in self.parts), ZERO)
        return whole.unspent - sum(whole.leases.values(), ZERO) - used

    def worker(self, holder: str, mine: int, clock: Any = None, patience_s: float = 0.0) -> LeasedBudget:
        """A worker that leases from a part."""
        clock, whole = clock or FrozenClock(), self.whole
        names = [part_name("record", part) for part in range(len(whole.parts))]
        pieces = [MemoryPart(self, name) for name in names]
        whole_record = MemoryPart(self, "record")
        return lease_from_part(whole_record, pieces, mine, whole, holder, clock, patience_s=patience_s)

    def check(self) -> None:
        """No part of the cap is there twice, and leases stay below it."""
        whole = self.whole
        held = sum((given.held for given in whole.parts), ZERO)
        # what a run can't account for stays spent, even if ledgers turn out to have it: that may pass the cap
        assert whole.spent + sum(whole.leases.values(), ZERO) + held <= max(whole.cap, whole.spent)
        for part, given in zip(self.parts, whole.parts, strict=True):
            if part.opened_in == whole.epoch:
                assert part.granted <= given.granted
                assert given.returned <= part.returned
                assert part.used <= part.granted - part.returned

    def change(self, name: str, change: Callable[[bytes | None], tuple[bytes | None, Any]]) -> Any:
        data, value = change(self.data.get(name))
        if data is None:
            return value
        if self.dies_in is not None:
            self.dies_in -= 1
        dies = self.dies_in == 0
        if not dies or self.applied:
            self.data[name] = data
            self.changes[name] = self.changes.get(name, 0) + 1
        if dies:
            self.dies_in = None
            raise StoreError("no answer") if self.fails else DeadError
        return value


class MemoryPart:
    """One of the records, as a worker or the driver uses it."""

    def __init__(self, of: CapInParts, name: str) -> None:
        self._of, self._name = of, name

    def update_now(self, change: Callable[[bytes | None], tuple[bytes | None, Any]]) -> Any:
        return self._of.change(self._name, change)

    async def update(self, change: Callable[[bytes | None], tuple[bytes | None, Any]]) -> Any:
        return self._of.change(self._name, change)
