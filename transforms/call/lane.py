"""Lanes: who may call now. One lane per (provider, model, key); what one document learns, all heed."""

from __future__ import annotations

import asyncio
import heapq
import math
from dataclasses import dataclass
from itertools import count

from schemas.failures import FailureClass
from transforms.call.ports import Clock
from transforms.call.wire import CallFailure

LONGEST_PARK_S = 120.0
"""A longer Retry-After is not waited for: the lane closes until then, and documents fail retryably."""

CLOSES_LANE = frozenset(
    {
        FailureClass.AUTHENTICATION,
        FailureClass.PERMISSION,
        FailureClass.NOT_FOUND,
        FailureClass.QUOTA_EXHAUSTED,
    }
)
"""Failures that every further call would share: the lane closes instead of making thousands of them."""


class Slots:
    """So many at a time; who waits is served by priority (lowest first), then by arrival.

    `limit` may be changed while in use. Cancelling a waiter never loses a slot.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_use = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrival = count()

    async def acquire(self, priority: int) -> None:
        """Takes a slot, waiting for one if need be."""
        if self.in_use < self.limit and not self._waiting:
            self.in_use += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._arrival), turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()  # served and cancelled in the same moment
            raise

    def release(self) -> None:
        """Gives a slot back."""
        self.in_use -= 1
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self.in_use < self.limit:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                self.in_use += 1
                turn.set_result(None)


@dataclass(frozen=True, slots=True)
class LaneKey:
    """What provider limits are counted by."""

    provider: str
    address: str
    model: str
    key_variable: str


class Lane:
    """Slots of one (provider, model, key), and until when it is parked or closed."""

    def __init__(self, key: LaneKey, limit: int, clock: Clock) -> None:
        self.key = key
        self.slots = Slots(limit)
        self._clock = clock
        self._parked_until = -math.inf
        self._closed_until = -math.inf
        self._closed_by: CallFailure | None = None

    def park_wait(self) -> float:
        """Seconds until the lane goes on; 0 when it does not wait, or is closed."""
        now = self._clock.monotonic()
        return 0.0 if now < self._closed_until else max(0.0, self._parked_until - now)

    def refusal(self) -> CallFailure | None:
        """Why nothing is sent on this lane now; None when it is open."""
        if self._closed_by is None or self._clock.monotonic() >= self._closed_until:
            return None
        return self._closed_by

    def heed(self, failure: CallFailure) -> None:
        """Takes note of a failure on this lane.

        A Retry-After parks the whole lane; a longer one than LONGEST_PARK_S closes it until then. A
        refused key, model or quota closes it for good. Without a Retry-After the document waits alone.
        """
        now = self._clock.monotonic()
        if failure.failure in CLOSES_LANE:
            self._close(failure, math.inf, "no further calls were made to this backend")
        elif failure.retry_after_s and failure.retry_after_s > LONGEST_PARK_S:
            asked = f"it asked to wait {failure.retry_after_s:.0f} s, more than {LONGEST_PARK_S:.0f} s"
            self._close(failure, now + failure.retry_after_s, asked)
        elif failure.retry_after_s:
            self._parked_until = max(self._parked_until, now + failure.retry_after_s)

    def _close(self, failure: CallFailure, until: float, why: str) -> None:
        self._closed_until = max(self._closed_until, until)
        self._closed_by = CallFailure(failure.failure, f"{failure.message} ({why})", sent=False, final=True)
