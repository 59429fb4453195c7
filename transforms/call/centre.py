"""A cost centre's month: one record that the runs of many outputs share.

`<folder>/<cost centre>/<YYYY-MM>.json` says what each output has spent in the month, and what its workers
hold as leases. A run that starts puts its own output's entry right: what a crashed run had leased is
replaced by what commits and ledgers know it has spent. Leases of other outputs it leaves alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

import orjson

from schemas.errors import StoreError
from schemas.outcomes import ZERO, money
from transforms.call.budget_record import lease_of

CENTRE_VERSION = "cost-centre/1"
MONTH = re.compile(r"\d{4}-\d{2}")


def month_of(instant: datetime) -> str:
    """The UTC month of an instant, `2026-11`."""
    return f"{instant:%Y-%m}"


@dataclass(frozen=True, slots=True)
class OutputShare:
    """What one output has spent in the month. `epoch` is its newest run: leases of earlier ones are void.

    `base` is what it had spent before it joined the cost centre, in the first month that knows it.
    """

    epoch: str
    boot_id: str
    spent: Decimal = ZERO
    base: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class CentreState:
    """The record, as one output sees it; the cap is that output's own. Leases are by `output/worker`."""

    me: str
    cap: Decimal
    outputs: Mapping[str, OutputShare] = field(default_factory=dict)
    leases: Mapping[str, Decimal] = field(default_factory=dict)

    @property
    def epoch(self) -> str:
        """The newest run of this output."""
        return self.outputs[self.me].epoch

    @property
    def spent(self) -> Decimal:
        """By all outputs."""
        return sum((share.spent for share in self.outputs.values()), ZERO)

    @property
    def unspent(self) -> Decimal:
        """What could be leased if every lease were given back."""
        return self.cap - self.spent

    @property
    def left(self) -> Decimal:
        """What may still be leased; not negative."""
        return max(ZERO, self.unspent - sum(self.leases.values(), ZERO))

    def leased(self) -> Decimal:
        """What workers of this output hold."""
        return sum((a for holder, a in self.leases.items() if holder.startswith(f"{self.me}/")), ZERO)

    def joined(self, epoch: str, boot_id: str) -> CentreState:
        """With an entry for this output; one that is there stays as it is."""
        if self.me in self.outputs:
            return self
        return replace(self, outputs={**self.outputs, self.me: OutputShare(epoch, boot_id)})

    def settle(self, holder: str, settled: Decimal, keep: Decimal) -> CentreState:
        """The holder has spent `settled` of its lease and keeps `keep` of it; the rest goes back."""
        leases = {name: amount for name, amount in self.leases.items() if name != holder}
        if keep > 0:
            leases[holder] = keep
        mine = self.outputs[self.me]
        outputs = {**self.outputs, self.me: replace(mine, spent=mine.spent + settled)}
        return replace(self, outputs=outputs, leases=leases)

    def draw(self, holder: str, least: Decimal, most: Decimal) -> tuple[CentreState, Decimal]:
        """A lease on top of what the holder has, `least` to `most`; zero when too little is left."""
        if least > self.left:
            return self, ZERO
        amount = lease_of(self.left, least, most)
        leases = {**self.leases, holder: self.leases.get(holder, ZERO) + amount}
        return replace(self, leases=leases), amount

    def begun(self, epoch: str, boot_id: str, recovered: Decimal, base: Decimal) -> CentreState:
        """A run of this output starts: its leases are void, `recovered` of them turned out to be spent."""
        mine = self.outputs.get(self.me)
        if mine is None:
            mine = OutputShare(epoch, boot_id, ZERO, base)
        mine = replace(mine, epoch=epoch, boot_id=boot_id, spent=mine.spent + recovered)
        leases = {name: amount for name, amount in self.leases.items() if not name.startswith(f"{self.me}/")}
        return replace(self, outputs={**self.outputs, self.me: mine}, leases=leases)

    def to_json(self) -> bytes:
        """The record's bytes."""
        outputs = {
            name: {
                "epoch": share.epoch,
                "boot_id": share.boot_id,
                "spent": str(share.spent),
                "base": str(share.base),
            }
            for name, share in self.outputs.items()
        }
        leases = {holder: str(amount) for holder, amount in self.leases.items()}
        return orjson.dumps({"version": CENTRE_VERSION, "outputs": outputs, "leases": leases})


def read_centre(data: bytes | None, me: str, cap: Decimal) -> CentreState:
    """The record behind bytes, as an output sees it; an empty one when there is none.

    Raises:
        StoreError: it is damaged, or another version's.
    """
    if data is None:
        return CentreState(me, cap)
    try:
        values = orjson.loads(data)
        if values["version"] != CENTRE_VERSION:
            raise ValueError(values["version"])
        outputs = {
            name: OutputShare(v["epoch"], v["boot_id"], money(v["spent"]), money(v["base"]))
            for name, v in values["outputs"].items()
        }
        leases = {holder: money(amount) for holder, amount in values["leases"].items()}
    except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError):
        raise StoreError(
            "a cost centre's record can't be read: it is damaged or another version's. Put it right, or "
            "take it away, and the month counts anew"
        ) from None
    return CentreState(me, cap, outputs, leases)


def reader(me: str, cap: Decimal, epoch: str, boot_id: str) -> Callable[[bytes | None], CentreState]:
    """How a worker of a run reads the record: with an entry for its output in any case."""
    return lambda data: read_centre(data, me, cap).joined(epoch, boot_id)


@dataclass(slots=True)
class Recovery:
    """What is still to be found, month after month, of what an output has spent unreported."""

    unreported: Decimal

    def of(self, state: CentreState, boot_id: str) -> Decimal:
        """How much of an output's leases in a month were spent.

        After a power cut the ledgers may have lost their last moments: all of it.
        """
        leased = state.leased()
        share = state.outputs.get(state.me)
        survived = share is None or (bool(boot_id) and share.boot_id == boot_id)
        found = min(leased, self.unreported) if survived else leased
        self.unreported = max(ZERO, self.unreported - found)
        return found
