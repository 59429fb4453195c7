"""What calls add up to, for a ledger's proof: exact sums of single (row, route) pairs and of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from schemas.outcomes import ZERO
from transforms.call.ledger import RecordedCall


@dataclass(slots=True)
class Sums:
    """Exact sums. Amounts are of what has a known price; `unpriced` counts what has none."""

    calls: int = 0
    answered: int = 0
    shared: int = 0
    ambiguous: int = 0
    unpriced: int = 0
    amount: Decimal = ZERO
    list_amount: Decimal = ZERO
    ambiguous_amount: Decimal = ZERO

    def add(self, other: Sums) -> None:
        """Adds another's."""
        for name in Sums.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def sums_of(calls: Sequence[RecordedCall], mode: str | None) -> Sums:
    """What the calls of one (row, route) pair add up to; a part without a price makes all of it unpriced."""
    sums = Sums()
    charges = [call.charge for call in calls if call.end == "answered"]
    sums.answered = len(charges)
    shared = sum(call.end == "shared" for call in calls)
    sums.shared = min(1, shared)  # rows that share, however many of their questions
    sums.calls = len(calls) - shared
    for call in calls:
        if is_ambiguous(call):
            sums.ambiguous += 1
            sums.ambiguous_amount += ZERO if mode == "rehearsal" or call.worst is None else call.worst
    amounts = [charge.amount for charge in charges if charge.amount is not None]
    lists = [charge.list_amount for charge in charges if charge.list_amount is not None]
    if len(amounts) < len(charges) or len(lists) < len(charges):
        sums.unpriced = 1
    else:
        sums.amount, sums.list_amount = sum(amounts, ZERO), sum(lists, ZERO)
    return sums


def is_ambiguous(call: RecordedCall) -> bool:
    """Whether nobody knows if a call was billed; one that waits in a provider batch is not lost."""
    return call.end == "unknown" or (call.end is None and call.via is None)
