"""What the calls of ledgers add up to: the money and the tokens that count against caps."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from schemas.outcomes import ZERO
from transforms.call.ledger import RecordedCall


@dataclass(slots=True)
class LedgerTotals:
    """What ledgers add up to, for the budget.

    `amount` is what was billed, `list_amount` the same at list price (in a rehearsal the only one that
    is not zero); `ambiguous_amount` is the worst case, at list price, of calls without a known end.
    `unpriced` calls have no known price and are in none of the amounts. By route stands what counts
    against caps: money as in `spent`, and tokens, at most where nobody says how many.
    """

    calls: int = 0
    answered: int = 0
    ambiguous: int = 0
    unpriced: int = 0
    amount: Decimal = ZERO
    list_amount: Decimal = ZERO
    ambiguous_amount: Decimal = ZERO
    spent_by_route: dict[str, Decimal] = field(default_factory=dict)
    tokens_by_route: dict[str, int] = field(default_factory=dict)

    @property
    def spent(self) -> Decimal:
        """What counts against the cap."""
        return self.list_amount + self.ambiguous_amount

    def add(self, call: RecordedCall) -> None:
        """Adds one call; a shared answer is none."""
        if call.end == "shared":
            return
        self.calls += 1
        if call.end == "failed":
            return
        if call.end != "answered":
            self.ambiguous += 1
            self.unpriced += call.worst is None
            self.ambiguous_amount += call.worst or ZERO
            self._count(call.route, call.worst or ZERO, call.worst_tokens)
            return
        charge, tokens = call.charge, call.usage.input_tokens
        tokens = call.worst_tokens if tokens is None else tokens + (call.usage.output_tokens or 0)
        against = call.worst if charge.list_amount is None else charge.list_amount
        self._count(call.route, against or ZERO, tokens)
        self.answered += 1
        self.amount += charge.amount or ZERO
        if charge.list_amount is not None:
            self.list_amount += charge.list_amount
        else:  # answered without a bill that can be priced: the worst case stands
            self.unpriced += call.worst is None
            self.list_amount += call.worst or ZERO

    def _count(self, route: str, amount: Decimal, tokens: int) -> None:
        self.spent_by_route[route] = self.spent_by_route.get(route, ZERO) + amount
        self.tokens_by_route[route] = self.tokens_by_route.get(route, 0) + tokens
