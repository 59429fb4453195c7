"""The budget record: cap, spent, and the leases of all workers or what parts of it were given."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import orjson

from schemas.errors import StoreError
from schemas.outcomes import ZERO, money

RECORD_VERSION = "budget/1"
PARTED_VERSION = "budget/2"  # of a record whose cap is in parts: a reader that knows none must not open it
Leases = dict[str, Decimal]
_SHARE = 8  # a draw takes at most this part of what is left, so that late workers find something


@dataclass(frozen=True, slots=True)
class Grant:
    """What a part of a cap was given, as the record of the whole cap has it; see `budget_parts`.

    All of them only grow: `granted` is what the part may take in, `returned` what of it is known to have been
    given back, `spent` what is known to have been spent.
    """

    granted: Decimal = ZERO
    returned: Decimal = ZERO
    spent: Decimal = ZERO

    @property
    def held(self) -> Decimal:
        """What the part can have at most, of what it was given."""
        return self.granted - self.returned


@dataclass(frozen=True, slots=True)
class BudgetState:
    """The shared record. `epoch` changes when a run starts: leases of earlier workers are void.

    `boot_id` is that of the machine when the run started. `unaccounted` is part of `spent`: what a
    power cut may have taken from the ledgers. With `parts`, which are records of their own, workers hold
    leases there, and `leases` is empty.
    """

    cap: Decimal
    spent: Decimal
    epoch: str
    leases: dict[str, Decimal] = field(default_factory=dict)
    boot_id: str = ""
    unaccounted: Decimal = ZERO
    parts: tuple[Grant, ...] = ()

    @classmethod
    def opened(
        cls,
        before: BudgetState | None,
        cap: Decimal,
        spent: Decimal,
        epoch: str,
        boot_id: str,
        in_parts: Decimal = ZERO,
    ) -> BudgetState:
        """The record of a run that starts. `spent` is what commits and ledgers have.

        A killed process loses nothing that it wrote, so they have everything, and leases of dead
        workers are simply void. But if the machine went down since the record `before` was written,
        the ledgers may have lost their last moments: all that was leased then counts as spent for good.
        `in_parts` is what was spent and leased in the parts of `before`.
        """
        unaccounted = ZERO if before is None else before.unaccounted
        if before is not None and (not boot_id or before.boot_id != boot_id):
            at_most = before.spent + sum(before.leases.values(), ZERO) + in_parts
            unaccounted = max(unaccounted, at_most - money(spent))
        return cls(money(cap), money(spent) + unaccounted, epoch, {}, boot_id, unaccounted)

    @property
    def unspent(self) -> Decimal:
        """What could be leased if every lease were given back."""
        return self.cap - self.spent

    @property
    def left(self) -> Decimal:
        """What may still be leased, or given to parts; not negative."""
        given = sum((part.held for part in self.parts), ZERO)
        return max(ZERO, self.unspent - sum(self.leases.values(), ZERO) - given)

    def to_json(self) -> bytes:
        """The record's bytes."""
        leases = {holder: str(amount) for holder, amount in self.leases.items()}
        values: dict[str, Any] = {
            "version": PARTED_VERSION if self.parts else RECORD_VERSION,
            "cap": str(self.cap),
            "spent": str(self.spent),
            "epoch": self.epoch,
            "leases": leases,
            "boot_id": self.boot_id,
            "unaccounted": str(self.unaccounted),
        }
        if self.parts:
            values["parts"] = [[str(p.granted), str(p.returned), str(p.spent)] for p in self.parts]
        return orjson.dumps(values)

    @classmethod
    def from_json(cls, data: bytes | None) -> BudgetState:
        """The record behind bytes; StoreError when there is none, or another version's."""
        try:
            values = orjson.loads(data or b"null")
            if values["version"] not in (RECORD_VERSION, PARTED_VERSION):
                raise ValueError(values["version"])
            leases = {holder: money(amount) for holder, amount in values["leases"].items()}
            parts = values["parts"] if values["version"] == PARTED_VERSION else ()
            return cls(
                cap=money(values["cap"]),
                spent=money(values["spent"]),
                epoch=values["epoch"],
                leases=leases,
                boot_id=values["boot_id"],
                unaccounted=money(values["unaccounted"]),
                parts=tuple(Grant(*map(money, part)) for part in parts),
            )
        except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError):
            raise StoreError(
                "the budget record is missing or can't be read: it is written when a run starts; "
                "start the run again"
            ) from None

    def settle(self, holder: str, settled: Decimal, keep: Decimal) -> BudgetState:
        """The holder has spent `settled` of its lease and keeps `keep` of it; the rest goes back."""
        return replace(self, spent=self.spent + settled, leases=kept(self.leases, holder, keep))

    def draw(self, holder: str, least: Decimal, most: Decimal) -> tuple[BudgetState, Decimal]:
        """A lease for the holder on top of what it has, `least` to `most`; zero when too little is left."""
        leases, amount = drawn(self.leases, self.left, holder, least, most)
        return replace(self, leases=leases), amount


def lease_of(left: Decimal, least: Decimal, most: Decimal) -> Decimal:
    """How much of what is left a worker gets that needs `least`, which is not more than that."""
    return min(money(max(least, min(left / _SHARE, most))), left)


def kept(leases: Leases, holder: str, keep: Decimal) -> Leases:
    """The leases of a record once a holder keeps just so much of its own."""
    others = {name: amount for name, amount in leases.items() if name != holder}
    return {**others, holder: keep} if keep > 0 else others


def drawn(
    leases: Leases, left: Decimal, holder: str, least: Decimal, most: Decimal
) -> tuple[Leases, Decimal]:
    """The leases once a holder has drawn, and how much: nothing when less than `least` is left."""
    if least > left:
        return leases, ZERO
    amount = lease_of(left, least, most)
    return {**leases, holder: leases.get(holder, ZERO) + amount}, amount
