"""The circuit breaker of a lane: when a provider is down, one probe at a time instead of every call. Pure."""

from __future__ import annotations

import math

from schemas.failures import FailureClass

CALLS_TO_OPEN = 16
"""Failed calls in a row, without one that got through, after which a provider counts as down."""

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
PATIENCE_S = 8.0
"""How long documents without another backend wait for a provider that is down, about as long as they
would try again alone; from then on they fail, retryably, and REFUSALS_PER_S of them at most."""

REFUSALS_PER_S = 50.0
"""An outage of a minute must not fail the whole rest of a run within seconds."""

IS_DOWN = frozenset(
    {
        FailureClass.PROVIDER_ERROR,
        FailureClass.OVERLOADED,
        FailureClass.TIMEOUT,
        FailureClass.CONNECTION,
        FailureClass.MALFORMED_RESPONSE,
    }
)
"""Failures of the provider, and not of one request."""


class Breaker:
    """Closed, open (nothing is sent), or half open (one probe is under way).

    Instants are seconds on a clock that never goes back; calls are told apart by their serial numbers,
    so that what was under way when it opened neither opens it further nor holds it open.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._opened_at: float | None = None
        self._last = 0  # serial of the last call that was sent
        self._old = 0  # failures of calls up to this one are those of before it closed
        self._pause_s = FIRST_PAUSE_S
        self._next_probe_at = 0.0
        self._probe: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the provider counts as down."""
        return self._opened_at is not None

    def wait(self, now: float) -> float:
        """Seconds until a call may be sent; infinity while a probe is under way."""
        if self._opened_at is None:
            return 0.0
        return math.inf if self._probe is not None else max(0.0, self._next_probe_at - now)

    def has_lost_patience(self, now: float) -> bool:
        """Whether it has been open for longer than documents wait."""
        return self._opened_at is not None and now - self._opened_at >= PATIENCE_S

    def sent(self, serial: int) -> bool:
        """A call goes out; whether it is the probe."""
        self._last = serial
        if self._opened_at is None:
            return False
        self._probe = serial
        return True

    def passed(self) -> None:
        """A call reached the provider and it did its work: closed."""
        self._in_a_row = 0
        if self._opened_at is not None:
            self._opened_at, self._probe, self._pause_s = None, None, FIRST_PAUSE_S
            self._old = self._last

    def failed(self, serial: int, now: float) -> bool:
        """A call failed the way calls to a provider that is down do; whether that opened it."""
        if self._opened_at is not None:
            if serial == self._probe:
                self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
                self.dropped(serial, now)
            return False
        if serial <= self._old:
            return False
        self._in_a_row += 1
        if self._in_a_row < CALLS_TO_OPEN:
            return False
        self._opened_at, self._next_probe_at = now, now + self._pause_s
        self._in_a_row = 0
        return True

    def dropped(self, serial: int, now: float) -> None:
        """A call was given up before its end could say anything."""
        if serial == self._probe:
            self._probe, self._next_probe_at = None, now + self._pause_s
