"""What all documents of an engine share: backends, time, budget, limits, counters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from schemas.outcomes import ZERO
from schemas.workload import Limits
from transforms.call.budget import Budget, LeasedBudget
from transforms.call.caps import FurtherCaps, NoFurtherCaps
from transforms.call.lane import Slots
from transforms.call.observe import CallObserver
from transforms.call.ports import Clock, Outbox, Transport
from transforms.call.retry import RetryPolicies
from transforms.call.share import Shares
from transforms.call.site import Site
from transforms.call.structured import SchemaBook

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
    caps: FurtherCaps = field(default_factory=NoFurtherCaps)  # besides `budget`
    soft: Decimal | None = None  # what the run should warn at
    shares: Shares | None = None  # None: every request is asked for itself
    observer: CallObserver | None = None  # None: nobody watches, and nothing is spent on it
    # Whether an attempt was committed meanwhile; None where a claim from before it was looked for forbids it.
    is_committed: Callable[[str, int], bool] | None = None
    counters: Counters = field(default_factory=Counters)
    sending: set[asyncio.Task[object]] = field(default_factory=set)
    closing: bool = False

    @property
    def soft_passed(self) -> bool:
        """Whether the run has spent what it should warn at, as far as this engine knows of others."""
        if self.soft is None:
            return False
        known = self.budget.spent if isinstance(self.budget, LeasedBudget) else self.counters.list_amount
        return known >= self.soft
