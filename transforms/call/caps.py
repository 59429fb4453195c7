"""The caps besides the run's own: tokens, per route, and per cost centre and month.

Each is a record of its own with leases of its own. A call reserves from all that hold for it, always in
the same order, and from none if one says no.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol

from schemas.failures import FailureClass
from schemas.outcomes import ZERO
from schemas.workload import Workload
from transforms.call.budget import Budget, LeasedBudget
from transforms.call.wire import CallFailure

AMOUNT = "amount"  # the run's own cap in money, which `Desk.budget` holds


@dataclass(frozen=True, slots=True)
class Need:
    """What a call takes at most, or took: money and tokens, on a route."""

    route: str
    amount: Decimal
    tokens: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which cap said no, to what need, and why in a sentence."""

    cap: str
    need: Decimal
    sentence: str


@dataclass(frozen=True, slots=True)
class CapSpec:
    """One cap. `name` stands in commit records, `file` is that of its record; `route` None holds for all."""

    name: str
    file: str
    unit: Literal["amount", "tokens"]
    limit: Decimal
    route: str | None = None

    def of(self, need: Need) -> Decimal:
        """What of a need counts here."""
        return need.amount if self.unit == "amount" else Decimal(need.tokens)

    @property
    def sentence(self) -> str:
        """Why a call was refused."""
        kind = "USD" if self.unit == "amount" else "tokens"
        where = "" if self.route is None else f" on route {self.route!r}"
        return f"the cap of {self.limit.normalize():f} {kind}{where} would be passed; no call was made"


def cap_specs(workload: Workload) -> tuple[CapSpec, ...]:
    """The caps of one output besides `budget.amount`, in the order in which they are reserved."""
    specs = []
    if workload.budget.tokens is not None:
        specs.append(CapSpec("tokens", "tokens", "tokens", Decimal(workload.budget.tokens)))
    for name, route in sorted(workload.budget.routes.items()):
        for unit, limit in (("amount", route.amount), ("tokens", route.tokens)):
            if limit is not None:
                spec = CapSpec(
                    f"route:{name}:{unit}",
                    f"route-{name}-{unit}",
                    "amount" if unit == "amount" else "tokens",
                    Decimal(limit),
                    name,
                )
                specs.append(spec)
    return tuple(specs)


class FurtherCaps(Protocol):
    """Leave to spend from every cap besides the run's own."""

    @property
    def budgets(self) -> Sequence[LeasedBudget]:
        """What is leased of each."""
        ...

    async def reserve(self, need: Need) -> Refusal | None:
        """Reserves from all caps that hold for the need, or says which one does not allow it."""
        ...

    def settle(self, need: Need, spent: Need) -> None:
        """Replaces a reservation by what the call really took."""
        ...

    async def release_unused(self) -> None:
        """Gives back what is neither spent nor reserved, for other workers."""
        ...


async def reserve(budget: Budget, caps: FurtherCaps, need: Need) -> CallFailure | None:
    """Reserves a need from the run's cap and all others, or gives the failure that a refusal is."""
    if not await budget.reserve(need.amount):
        refusal = Refusal(AMOUNT, need.amount, budget.sentence)
    else:
        found: Refusal | None = None
        complete = False
        try:
            found = await caps.reserve(need)
            complete = found is None
        finally:
            if not complete:
                budget.settle(need.amount, ZERO)
        if found is None:
            return None
        refusal = found
    return CallFailure(
        FailureClass.BUDGET_EXHAUSTED,
        refusal.sentence,
        sent=False,
        final=True,
        refused_by=refusal.cap,
        refused_need=refusal.need,
    )


class NoFurtherCaps:
    """None."""

    budgets: Sequence[LeasedBudget] = ()

    async def reserve(self, need: Need) -> Refusal | None:  # noqa: ARG002
        """Always."""
        return None

    def settle(self, need: Need, spent: Need) -> None:
        """Nothing to do."""

    async def release_unused(self) -> None:
        """Nothing to do."""


class Caps:
    """This worker's part of several caps."""

    def __init__(self, members: Sequence[tuple[CapSpec, LeasedBudget]]) -> None:
        self._members = tuple(members)

    @property
    def budgets(self) -> Sequence[LeasedBudget]:
        """See `FurtherCaps`."""
        return [budget for _, budget in self._members]

    def _for(self, route: str) -> list[tuple[CapSpec, LeasedBudget]]:
        return [(spec, budget) for spec, budget in self._members if spec.route in (None, route)]

    async def reserve(self, need: Need) -> Refusal | None:
        """See `FurtherCaps`."""
        taken: list[tuple[LeasedBudget, Decimal]] = []
        complete = False
        try:
            for spec, budget in self._for(need.route):
                wanted = spec.of(need)
                if not await budget.reserve(wanted):
                    return Refusal(spec.name, wanted, budget.sentence)
                taken.append((budget, wanted))
            complete = True
        finally:
            if not complete:
                for budget, wanted in taken:
                    budget.settle(wanted, ZERO)
        return None

    def settle(self, need: Need, spent: Need) -> None:
        """See `FurtherCaps`."""
        for spec, budget in self._for(need.route):
            budget.settle(spec.of(need), spec.of(spent))

    async def release_unused(self) -> None:
        """See `FurtherCaps`."""
        for _, budget in self._members:
            await budget.release_unused()
