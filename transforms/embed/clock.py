"""How long a device worked, shared fairly between steps that were in flight at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class DeviceClock:
    """Measures busy time and splits it among the steps in flight.

    While n steps are in flight each is charged 1/n of the time that passes, so that the charges of
    all steps add up to the time during which the device had anything to do, never to more.

    Idle is what a device could have done between the first step and the last: it works on `lanes` steps at a
    time (a CPU on one for each core), and each lane without a step is idle for its part.
    """

    def __init__(
        self, devices: int = 1, lanes: int = 1, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._lock = threading.Lock()
        self._now = now
        self._devices = devices
        self._in_flight = 0
        self._last = 0.0
        self._share = 0.0  # what a step in flight since the beginning would have been charged
        self._busy = 0.0
        self._lanes = lanes
        self._idle = 0.0
        self._waited = 0.0  # since the last step; idle only if another one follows

    def start(self) -> float:
        """A step begins; returns the mark to hand to `stop`."""
        with self._lock:
            self._advance()
            self._in_flight += 1
            self._idle += self._waited
            self._waited = 0.0
            return self._share

    def stop(self, mark: float) -> float:
        """The step ends; returns its device seconds (of all devices together)."""
        with self._lock:
            self._advance()
            self._in_flight -= 1
            return (self._share - mark) * self._devices

    @property
    def busy_seconds(self) -> float:
        """Device seconds so far (of all devices together)."""
        with self._lock:
            self._advance()
            return self._busy * self._devices

    @property
    def idle_seconds(self) -> float:
        """Device seconds without work between the first step and the last."""
        with self._lock:
            self._advance()
            return self._idle * self._devices

    def _advance(self) -> None:
        now = self._now()
        if self._in_flight:
            self._share += (now - self._last) / self._in_flight
            self._busy += now - self._last
            self._idle += (now - self._last) * (1 - min(self._in_flight, self._lanes) / self._lanes)
        elif self._busy:
            self._waited += now - self._last
        self._last = now
