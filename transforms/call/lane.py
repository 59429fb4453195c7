"""Lanes: who may call now. One lane per (provider, model, key); what one document learns, all heed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.failures import FailureClass
from schemas.outcomes import Usage
from transforms.call.breaker import IS_DOWN, PATIENCE_S, REFUSALS_PER_S, Breaker
from transforms.call.pace import Pacer
from transforms.call.permit import Permit
from transforms.call.ports import Clock
from transforms.call.quota import Quota, read_limits
from transforms.call.turns import Turns
from transforms.call.waits import Waits
from transforms.call.wire import CallFailure, unsent

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

_SHORTEST_WAIT_S = 0.001
_READ_EVERY_S = 0.02  # a lane of thousands of calls a second need not read the limits of each answer


@dataclass(frozen=True, slots=True)
class LaneKey:
    """What provider limits are counted by."""

    provider: str
    address: str
    model: str
    key_variable: str


class Lane:
    """One (provider, model, key): how many calls at a time, how fast, and until when none at all.

    Used on one event loop. `acquire` gives a permit when slots, pace, the provider's stated limits, a
    Retry-After and the breaker all allow a call; every permit is given back with `release`. What comes
    of a call is told with `passed` or `heed`. Routes that wait share the lane by `shares`.
    """

    def __init__(
        self, key: LaneKey, limit: int, clock: Clock, shares: Mapping[str, int] | None = None
    ) -> None:
        self.key = key
        self.limit = limit
        self.in_use = 0
        self._clock = clock
        self._turns = Turns(shares or {})
        self._pacer = Pacer()
        self._quota = Quota()
        self._breaker = Breaker()
        self._down: CallFailure | None = None  # what opened the breaker
        self._read_at = -math.inf
        self._waits = Waits()
        self._closed_until = -math.inf
        self._closed_by: CallFailure | None = None
        self._next_refusal_at = -math.inf
        self._is_serving_soon = False
        self._wake: asyncio.TimerHandle | None = None
        self._wake_at = math.inf  # uvloop's handles don't always know it

    def state_limit(self, kind: str, per_minute: float) -> None:
        """Hold calls to a limit that the workload states; `kind` is one of `quota.KINDS`."""
        self._quota.state(kind, per_minute, self._clock.monotonic())

    async def acquire(
        self, route: str, priority: int, *, falls_back: bool = False, within_s: float = math.inf
    ) -> Permit:
        """Leave to make one call, waiting for it if need be.

        Who `falls_back` does not wait for a provider that is down, nobody waits for a closed lane or
        longer than `within_s`: they get a permit too, and `refusal` (or their deadline) says why
        nothing is sent.
        """
        now = self._clock.monotonic()
        if self._turns.would_be_next(route, priority) and self._may_go(now):
            return self._grant(now)
        if falls_back and self._breaker.wait(now) > 0:
            return self._leave_to_go(now)
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[Permit] = loop.create_future()
        self._turns.join(route, priority, falls_back, granted)
        expiry = None if within_s == math.inf else loop.call_later(max(0.0, within_s), self._expire, granted)
        self._serve()
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.release(granted.result())  # served and cancelled in the same moment
            raise
        finally:
            if expiry is not None:
                expiry.cancel()

    def release(self, permit: Permit) -> None:
        """Gives a permit back."""
        self.in_use -= 1
        if permit.probe and not permit.told:
            self._breaker.dropped(permit.serial, self._clock.monotonic())
        if self._turns and not self._is_serving_soon:
            # Not at once: who has just ended a call of an earlier batch is back in the same moment, and
            # goes first. To wake someone of a later batch for it is a detour for both.
            self._is_serving_soon = True
            asyncio.get_running_loop().call_soon(self._serve_those_left)

    def _serve_those_left(self) -> None:
        self._is_serving_soon = False
        self._serve()

    def is_stopped(self, permit: Permit) -> bool:
        """Whether the permit is no longer good, or never was: give it back, and queue up again."""
        if not permit.serial:
            return True
        now = self._clock.monotonic()
        is_parked = self._waits.stops(permit.serial, now) and now >= self._closed_until
        return is_parked or (self._breaker.is_open and not permit.probe)

    def park_wait(self) -> float:
        """Seconds until the lane goes on; 0 when it does not wait, or is closed."""
        now = self._clock.monotonic()
        return 0.0 if now < self._closed_until else self._waits.left(now)

    def refusal(self, *, falls_back: bool = False, permit: Permit | None = None) -> CallFailure | None:
        """Why nothing is sent on this lane now; None when something is, or it is worth waiting.

        A provider that is down refuses those who have another backend at once, the others after
        PATIENCE_S; the holder of the probe's permit finds out whether it still is.
        """
        if self._closed_by is None and not self._breaker.is_open:
            return None
        now = self._clock.monotonic()
        if self._closed_by is not None and now < self._closed_until:
            return self._closed_by
        if permit is not None and permit.probe:
            return None
        is_down = self._breaker.wait(now) > 0 and (falls_back or self._breaker.has_lost_patience(now))
        return self._down if is_down else None

    def passed(self, permit: Permit, usage: Usage | None = None) -> None:
        """The call got through, whatever came of it; `usage` is what an answer used."""
        permit.told = True
        now = self._clock.monotonic()
        self._pacer.succeeded(permit.serial, self._waits.moving(now))
        self._waits.passed(permit.serial, now)
        self._breaker.passed()
        if usage is not None:
            self._quota.used(usage)

    def read(self, permit: Permit, headers: Mapping[str, str]) -> None:
        """Takes note of the limits that a response states."""
        now = self._clock.monotonic()
        if now - self._read_at < _READ_EVERY_S:
            return
        self._read_at = now
        readings = read_limits(headers, self._clock.now())
        if readings:
            self._quota.read(readings, permit.serial, permit.tokens, permit.at, now)

    def heed(self, failure: CallFailure, permit: Permit | None = None) -> None:
        """Takes note of a failure on this lane.

        A refused key, model or quota closes it for good; a Retry-After of more than LONGEST_PARK_S until
        then. A shorter one parks it: no call of any document is sent until then, but for the test of
        `Waits`. Failures of the provider, many in a row, open the breaker.
        """
        now = self._clock.monotonic()
        if permit is not None:
            self._learn(failure, permit, now)
        if failure.failure in CLOSES_LANE:
            self._close(failure, math.inf, "no further calls were made to this backend")
        elif failure.retry_after_s and failure.retry_after_s > LONGEST_PARK_S:
            asked = f"it asked to wait {failure.retry_after_s:.0f} s, more than {LONGEST_PARK_S:.0f} s"
            self._close(failure, now + failure.retry_after_s, asked)
        elif failure.retry_after_s:
            self._waits.told(failure.retry_after_s, now, flows=self._pacer.flows(self._waits.moving(now)))

    def _learn(self, failure: CallFailure, permit: Permit, now: float) -> None:
        if failure.failure is FailureClass.RATE_LIMITED:
            permit.told = True
            self._pacer.limited(permit.serial, self._waits.moving(permit.at), self._waits.moving(now))
            self._waits.limited(permit.serial, now)
            self._breaker.passed()  # it is up, and says so
        elif failure.failure in IS_DOWN:
            permit.told = True
            if self._breaker.failed(permit.serial, now):
                why = f"the backend counts as down; documents wait {PATIENCE_S:.0f} s for it at most"
                self._down = unsent(failure.failure, f"{failure.message} ({why})")
                self._send_away(now)
        else:
            self.passed(permit)

    def _close(self, failure: CallFailure, until: float, why: str) -> None:
        self._closed_until = max(self._closed_until, until)
        self._closed_by = unsent(failure.failure, f"{failure.message} ({why})")

    def _hold(self, now: float) -> float:
        """Seconds until the next permit; infinity when only the end of a call can change that."""
        if now < self._closed_until:
            return 0.0
        if self._waits.left(now) > 0:  # the pace stands still, and a test has none
            return max(self._waits.hold(now), self._breaker.wait(now))
        pace = self._pacer.wait(self._waits.moving(now), self.in_use)
        return max(self._breaker.wait(now), pace, self._quota.wait(now))

    def _may_go(self, now: float) -> bool:
        return self.in_use < self.limit and self._hold(now) <= 0

    def _grant(self, now: float) -> Permit:
        if now < self._closed_until:
            return self._leave_to_go(now)
        self.in_use += 1
        serial = self._pacer.sent(self._waits.moving(now))
        self._waits.sent(serial, now)
        return Permit(serial, now, self._quota.sent(now), self._breaker.sent(serial))

    def _leave_to_go(self, now: float) -> Permit:
        """A permit for no call."""
        self.in_use += 1
        return Permit(0, now)

    def _serve(self) -> None:
        while self._turns and self.in_use < self.limit:
            now = self._clock.monotonic()
            hold = self._hold(now)
            is_refused = hold > 0 and self._breaker.has_lost_patience(now)
            if is_refused:
                hold = self._next_refusal_at - now
            if hold > 0:
                self._wake_after(hold)
                return
            turn = self._turns.next()
            if turn is None:
                return
            if is_refused:
                self._next_refusal_at = now + 1.0 / REFUSALS_PER_S
            turn.granted.set_result(self._leave_to_go(now) if is_refused else self._grant(now))

    def _wake_after(self, seconds: float) -> None:
        if seconds == math.inf:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + max(seconds, _SHORTEST_WAIT_S)
        if self._wake is not None:
            if self._wake_at <= due:
                return
            self._wake.cancel()
        self._wake, self._wake_at = loop.call_at(due, self._woken), due

    def _woken(self) -> None:
        self._wake = None
        self._serve()

    def _send_away(self, now: float) -> None:
        """Those who have another backend need not wait."""
        for turn in self._turns.waiting():
            if turn.falls_back:
                turn.granted.set_result(self._leave_to_go(now))

    def _expire(self, granted: asyncio.Future[Permit]) -> None:
        if not granted.done():
            granted.set_result(self._leave_to_go(self._clock.monotonic()))
