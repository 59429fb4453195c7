"""The waits that a provider asks for (Retry-After): kept by the whole lane, unless overstated. Pure."""

from __future__ import annotations

import math

SHORT_S = 2.0
"""Waits up to here may be a moment rounded up to whole seconds; longer ones are kept in full, always."""

BRIEF_S = 0.25
"""Waits below are what a rate limit is made of: for the pace of the lane, time goes on in them."""

KEPT_FIRST = 3
"""Short waits that are kept in full before one is put to the test."""

OVERSTATED_FOR_S = 60.0
"""How long a test that a provider failed counts; then its waits are kept, and tested, again."""

_FIRST_PAUSE_S = 4.0  # between tests of a provider that means what it says ...
_LONGEST_PAUSE_S = 60.0  # ... doubling to this


class Waits:
    """Until when a lane waits because it was told to.

    A test is one call in the middle of a short wait. If it is refused, the provider means what it says. If
    it gets through, the wait was not about the lane: for OVERSTATED_FOR_S a short wait then stops only
    the document that was told it, as long as most calls get through. Instants are seconds on a clock
    that never goes back; calls are told apart by their serial numbers.
    """

    def __init__(self) -> None:
        self._began = self._until = -math.inf  # of the last wait
        self._is_brief = True
        self._stood_s = 0.0  # in all waits before it
        self._test_at = math.inf  # of the wait that is going on
        self._test: int | None = None  # serial of the call that is the test
        self._kept = 0
        self._next_test_at = self._overstated_until = -math.inf
        self._pause_s = _FIRST_PAUSE_S

    def left(self, now: float) -> float:
        """Seconds until the wait is over; 0: there is none."""
        return max(0.0, self._until - now)

    def hold(self, now: float) -> float:
        """Seconds until a call may be sent, be it the test."""
        return max(0.0, min(self._until, self._test_at) - now)

    def moving(self, at: float) -> float:
        """The instant on a clock that stands still in waits: what was not allowed says nothing of a rate."""
        if self._is_brief or at < self._began:
            return at - self._stood_s
        return at - self._stood_s - (min(at, self._until) - self._began)

    def stops(self, serial: int, now: float) -> bool:
        """Whether a call that was given leave has to wait after all."""
        return now < self._until and serial != self._test

    def sent(self, serial: int, now: float) -> None:
        """A call was given leave; during a wait it is the test."""
        if now < self._until:
            self._test, self._test_at = serial, math.inf

    def told(self, wait_s: float, now: float, *, flows: bool) -> None:
        """The provider asked for a wait; `flows`: most calls are getting through all the same."""
        if wait_s > SHORT_S:
            self._test_at = math.inf
        elif flows and now < self._overstated_until:
            return
        elif now >= self._until:
            self._kept += 1
            is_due = self._kept > KEPT_FIRST and now >= self._next_test_at
            self._test_at = now + wait_s / 2 if is_due else math.inf
        if now >= self._until:
            self._stood_s += 0.0 if self._is_brief else self._until - self._began
            self._began = self._until = now
            self._is_brief = wait_s < BRIEF_S
        self._until = max(self._until, now + wait_s)

    def passed(self, serial: int, now: float) -> None:
        """A call got through."""
        if serial == self._test:
            self._until = min(self._until, now)
            self._test, self._pause_s = None, _FIRST_PAUSE_S
            self._overstated_until = now + OVERSTATED_FOR_S

    def limited(self, serial: int, now: float) -> None:
        """A call was refused with 429."""
        if serial == self._test:
            self._test = None
            self._next_test_at = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
