"""How long the devices worked, shared fairly between steps that were in flight at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spent:
    """Device seconds of a step, or of several: at work, and without work before or beside it."""

    busy: float = 0.0
    idle: float = 0.0

    def plus(self, other: Spent) -> Spent:
        """The sum of both."""
        return Spent(self.busy + other.busy, self.idle + other.idle)


class DeviceClock:
    """Measures busy time and splits it among the steps in flight, of whatever model: one for some devices.

    While n steps are in flight each is charged 1/n of the time that passes, so that the charges of
    all steps add up to the time during which the devices had anything to do, never to more.

    Idle is what a device could have done between the first step and the last: it works on `lanes` steps at a
    time (a CPU on one for each core), and each lane without a step is idle for its part. It is told to the
    step that ends the wait, or shared by those in flight, so that it adds up too.
    """

    def __init__(
        self, devices: int = 1, lanes: int = 1, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._lock = threading.Lock()
        self._now = now
        self._devices = devices
        self._lanes = lanes
        self._in_flight = 0
        self._last: float | None = None  # of the first step there is none before
        self._share = Spent()  # what a step in flight since the beginning would have been charged
        self._busy = 0.0

    def start(self) -> Spent:
        """A step begins; returns the mark to hand to `stop`."""
        with self._lock:
            waited = self._advance()
            self._in_flight += 1
            return Spent(self._share.busy, self._share.idle - waited)

    def stop(self, mark: Spent) -> Spent:
        """The step ends; returns what it is charged (of all devices together)."""
        with self._lock:
            self._advance()
            self._in_flight -= 1
            busy, idle = self._share.busy - mark.busy, self._share.idle - mark.idle
            return Spent(busy * self._devices, idle * self._devices)

    @property
    def busy_seconds(self) -> float:
        """Device seconds so far (of all devices together)."""
        with self._lock:
            if self._in_flight:
                self._advance()
            return self._busy * self._devices

    def _advance(self) -> float:
        """Charges the time since the last look to those in flight; without any it is returned."""
        now = self._now()
        passed = 0.0 if self._last is None else now - self._last
        self._last = now
        if not self._in_flight:
            return passed
        free = 1 - min(self._in_flight, self._lanes) / self._lanes
        self._share = self._share.plus(Spent(passed / self._in_flight, passed * free / self._in_flight))
        self._busy += passed
        return 0.0


_CLOCKS: dict[tuple[int, int], DeviceClock] = {}
_OPENING = threading.Lock()


def clock_of(devices: int, lanes: int) -> DeviceClock:
    """The clock of this process's devices: one, however many models they run."""
    with _OPENING:
        return _CLOCKS.setdefault((devices, lanes), DeviceClock(devices, lanes))
