"""What workers share in the simulation: a bucket, a provider's allowance, the records of a budget.

Whoever waits is a generator that gives the instant at which it goes on; all of them are resumed in the order
of these instants, so what they share is always used in the order of time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from typing import TypeVar

from infra.bench.scale.inputs import Costs
from schemas.outcomes import ZERO
from transforms.call.budget import LeaseRecord
from transforms.call.budget_parts import PartState, divided, parts_for
from transforms.call.budget_record import BudgetState

EPOCH = "run"
T = TypeVar("T")
Waits = Generator[float, None, T]
"""Gives the instants at which it goes on, and in the end what came of it."""

_SAMPLES = 4096
_SWAP_PAUSES_S = (0.02, 1.0)  # first and longest, after a lost swap (`transforms.call.stored_record`)
_BUSY_PAUSES_S = (0.2, 16.0)  # after 429 (`transforms.gcs.client.Patience`)


class Bucket:
    """A bucket that takes so many writes a second, and more from time to time; what is above that queues up.

    In truth it answers 429, and the client tries again later (`transforms.gcs.client`): so one that queues
    fairly is the best case. Renewals of leases are taken off its rate.
    """

    def __init__(self, workers: int, costs: Costs, randomly: random.Random) -> None:
        self._renewals = workers / costs.renew_s
        self._costs = costs
        self._gap_s = 0.0
        self._gap_until = 0.0
        self._free_at = 0.0
        self.queued_s = 0.0  # by the last write
        self._took = [costs.write_s * randomly.lognormvariate(0.0, costs.spread) for _ in range(_SAMPLES)]
        self._next = 0

    def takes_s(self) -> float:
        """How long the next operation takes that has not to queue up."""
        self._next = (self._next + 1) % _SAMPLES
        return self._took[self._next]

    def write(self, now: float, writes: int = 1) -> float:
        """When so many writes that come now, and are made at the same time, are done."""
        if now >= self._gap_until:
            self._gap_s, self._gap_until = self._gap(now), now + 1.0
        free_at = self._free_at
        self._free_at = free_at = (free_at if free_at > now else now) + writes * self._gap_s
        self.queued_s = free_at - now
        self._next = following = (self._next + 1) % _SAMPLES
        return free_at + self._took[following]

    def _gap(self, now: float) -> float:
        rate = self._costs.bucket_writes * 2.0 ** (now / self._costs.bucket_doubles_s)
        return 1.0 / max(rate - self._renewals, 1.0)


class Allowance:
    """What a provider lets through: so many calls a second, first come, first served."""

    def __init__(self, rps: float) -> None:
        self._call_s = 1.0 / rps
        self._free_at = 0.0

    def serve(self, now: float, calls: int) -> float:
        """When so many calls that come now were let through."""
        self._free_at = max(now, self._free_at) + calls * self._call_s
        return self._free_at


@dataclass(slots=True)
class _Kept:
    """An object that holds a record, and when it was changed."""

    state: BudgetState | PartState
    generation: int = 0
    changed_at: float = -1e9


class Records:
    """The records of a budget: each changed by compare-and-swap, at most once in `record_s`.

    A swap that comes too soon is refused (429), one that comes after another's is lost (412), and both are
    tried again as `StoredRecord` and `Patience` do it.
    """

    def __init__(
        self, workers: int, costs: Costs, seconds: float, bucket: Bucket, randomly: random.Random
    ) -> None:
        self.count = costs.parts or parts_for(workers)
        self.changes = self.refused = self.lost = 0
        self._record_s = costs.record_s
        self._bucket = bucket
        self._randomly = randomly
        # without a cap nobody asks
        cap = Decimal(int(costs.cap * workers * seconds / costs.row_s) if isfinite(costs.cap) else 0)
        whole = BudgetState(cap, ZERO, EPOCH)
        if self.count > 1:
            whole = divided(whole, self.count)
        self._whole = _Kept(whole)
        parts = [_Kept(PartState(EPOCH, given.granted)) for given in whole.parts]
        self._parts = parts or [self._whole]

    @property
    def whole(self) -> BudgetState:
        """The record of the whole cap, as it is now."""
        state = self._whole.state
        assert isinstance(state, BudgetState)
        return state

    def part(self, number: int) -> PartState:
        """A part as it is now."""
        state = self._parts[number].state
        assert isinstance(state, PartState)
        return state

    def change_part(
        self, number: int, now: float, change: Callable[[LeaseRecord], tuple[LeaseRecord, T]]
    ) -> Waits[tuple[float, T]]:
        """Change a part, or the whole where it has none; when that was done, and what came of it."""
        return self._change(self._parts[number % self.count], now, change)

    def change_whole(
        self, now: float, change: Callable[[BudgetState], tuple[BudgetState, T]]
    ) -> Waits[tuple[float, T]]:
        """Change the whole."""
        return self._change(self._whole, now, change)

    def _change(
        self, kept: _Kept, now: float, change: Callable[..., tuple[BudgetState | PartState, T]]
    ) -> Waits[tuple[float, T]]:
        lost_pause = _SWAP_PAUSES_S[0]
        while True:
            now += self._bucket.takes_s()
            yield now  # it is read
            seen = kept.generation
            state, value = change(kept.state)
            if state == kept.state:
                return now, value  # nothing to write
            busy_pause = _BUSY_PAUSES_S[0]
            now += self._bucket.takes_s()
            yield now
            while now < kept.changed_at + self._record_s:  # refused
                self.refused += 1
                now += self._randomly.uniform(0.0, busy_pause) + self._bucket.takes_s()
                busy_pause = min(2 * busy_pause, _BUSY_PAUSES_S[1])
                yield now
            if kept.generation == seen:
                self.changes += 1
                kept.state, kept.generation, kept.changed_at = state, seen + 1, now
                return now, value
            self.lost += 1
            now += self._randomly.uniform(0.0, lost_pause)
            lost_pause = min(2 * lost_pause, _SWAP_PAUSES_S[1])
            yield now
