"""What all documents of an engine share: backends, time, budget, limits, counters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from schemas.failures import FailureClass
from schemas.limits import Limits
from schemas.outcomes import ZERO
from transforms.call.budget import Budget, LeasedBudget, lease_together
from transforms.call.caps import FurtherCaps, Need, NoFurtherCaps
from transforms.call.observe import CallObserver
from transforms.call.ports import BoundedLog, Clock, Outbox, Transport
from transforms.call.retry import RetryPolicies
from transforms.call.settlements import Settlements
from transforms.call.share import Shares
from transforms.call.site import Site
from transforms.call.slots import Slots
from transforms.call.structured import SchemaBook
from transforms.call.wire import CallFailure, unsent

CANCELLED = "the run was cancelled; nothing of this batch is committed, run again"


@dataclass(slots=True)
class Counters:
    """What the engine has done; changed on its event loop, read from anywhere."""

    calls: int = 0
    in_flight: int = 0
    answered: int = 0
    replayed: int = 0
    shared: int = 0
    repairs: int = 0
    amount: Decimal = ZERO
    list_amount: Decimal = ZERO


@dataclass(slots=True)
class Desk:
    """What all documents of an engine share."""

    sites: Mapping[str, Site]
    clock: Clock
    transport: Transport
    budget: Budget
    limits: Limits
    policies: RetryPolicies
    slots: Slots
    schemas: SchemaBook
    refuse_unknown_price: bool
    outbox: Outbox | None = None
    allowed_providers: Mapping[str, Collection[str]] = field(default_factory=dict)  # by route; none: all
    caps: FurtherCaps = field(default_factory=NoFurtherCaps)  # besides `budget`
    soft: Decimal | None = None  # what the run should warn at
    shares: Shares | None = None  # None: every request is asked for itself
    observer: CallObserver | None = None  # None: nobody watches, and nothing is spent on it
    # Whether an attempt was committed meanwhile; None where a claim from before it was looked for forbids it.
    is_committed: Callable[[str, int], bool] | None = None
    settlements: Settlements = field(default_factory=Settlements)
    counters: Counters = field(default_factory=Counters)
    sending: set[asyncio.Task[object]] = field(default_factory=set)
    closing: bool = False

    def __post_init__(self) -> None:
        """All caps are one worker's."""
        own = [self.budget] if isinstance(self.budget, LeasedBudget) else []
        lease_together([*own, *self.caps.budgets])

    def forbids(self, route: str, site: Site) -> CallFailure | None:
        """Why nothing of a route may go to a backend; None if it may.

        A workload with such a chain is refused when it is loaded: this holds whatever has come since.
        """
        provider, allowed = site.backend.provider, self.allowed_providers.get(route)
        if allowed is None or provider in allowed:
            return None
        message = (
            f"policy.allowed_providers.{route} does not have its provider {provider!r}; nothing was sent"
        )
        return unsent(FailureClass.POLICY_REJECTED, message)

    def forbids_unpriced(self, site: Site, worst: Decimal | None, so: str) -> CallFailure | None:
        """Why nothing goes out whose worst case is unknown; None if it may. `so` says what that came to."""
        if worst is not None or not self.refuse_unknown_price:
            return None
        return unsent(
            FailureClass.UNKNOWN_PRICE,
            f"the price book has no price for {site.backend.model!r} of {site.backend.provider}, so that "
            f"the budget can't be kept; {so}",
        )

    def settle(self, log: BoundedLog | None, need: Need, spent: Need) -> None:
        """Replace a reservation by what the call really took, once its end is durable in `log`.

        At once without one: no call was recorded, or a killed process loses no record.
        """

        def settle(is_durable: bool) -> None:
            took = spent if is_durable else need
            self.budget.settle(need.amount, took.amount)
            self.caps.settle(need, took)

        if log is None:
            settle(True)
        else:
            self.settlements.when_durable(log, settle)

    @property
    def soft_passed(self) -> bool:
        """Whether the run has spent what it should warn at, as far as this engine knows of others."""
        if self.soft is None:
            return False
        known = self.budget.spent if isinstance(self.budget, LeasedBudget) else self.counters.list_amount
        return known >= self.soft
