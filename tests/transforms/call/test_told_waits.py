"""A lane against providers that say how long to wait: honest ones are used in full, and heeded."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from schemas.failures import FailureClass
from tests.transforms.call.fakes import VirtualClock, run_virtual
from tests.transforms.call.test_pace import LimitAt, brown_out, falling_saw, rising_saw, steps
from transforms.call.lane import Lane, LaneKey
from transforms.call.wire import CallFailure


@dataclass
class Bucket:
    """A token bucket; whoever it refuses is told to wait for `told(tokens, rate)` seconds."""

    limit: LimitAt
    burst_s: float
    told: Callable[[float, float], float]
    tokens: float = math.inf
    seen_at: float = 0.0
    allowed: float = 0.0
    passed: int = 0
    refused: int = 0

    def wait(self, now: float) -> float | None:
        """None: it lets the call through."""
        rate = self.limit(now)
        earned = (now - self.seen_at) * rate
        self.allowed += earned
        self.seen_at = now
        self.tokens = min(rate * self.burst_s + 1, self.tokens + earned)
        if self.tokens >= 1:
            self.tokens -= 1
            self.passed += 1
            return None
        self.refused += 1
        return self.told(self.tokens, rate)


def whole_second(tokens: float, rate: float) -> float:
    return math.ceil((1 - tokens) / rate)


def to_the_millisecond(tokens: float, rate: float) -> float:
    return max(0.001, (1 - tokens) / rate)


def drive(bucket: Bucket, seconds: float, seed: int, callers: int = 256) -> None:
    """So many who always have another call to make, in virtual time; refusals come back at once."""
    source = random.Random(seed)

    async def main() -> None:
        clock = VirtualClock()
        lane = Lane(LaneKey("p", "a", "m", "K"), callers, clock)

        async def call() -> None:
            permit = await lane.acquire("r", 1)
            try:
                if lane.is_stopped(permit):
                    return
                wait = bucket.wait(clock.monotonic())
                await asyncio.sleep(0.05 * (1 + 0.2 * source.random()) if wait is None else 0.002)
                if wait is None:
                    lane.passed(permit)
                else:
                    lane.heed(CallFailure(FailureClass.RATE_LIMITED, "too fast", wait), permit)
            finally:
                lane.release(permit)

        async def caller() -> None:
            while clock.monotonic() < seconds:
                await call()

        await asyncio.gather(*(caller() for _ in range(callers)))

    run_virtual(main())


@pytest.mark.parametrize(
    ("burst_s", "told"), [(1.0, whole_second), (0.25, to_the_millisecond)], ids=["seconds", "milliseconds"]
)
@pytest.mark.parametrize("limit", [steps, rising_saw, falling_saw, brown_out])
def test_waits_that_are_meant_cost_nothing_of_a_moving_limit(
    limit: LimitAt, burst_s: float, told: Callable[[float, float], float]
) -> None:
    bucket = Bucket(limit, burst_s, told)
    drive(bucket, 90, seed=1)
    assert bucket.passed >= 0.95 * bucket.allowed
    assert bucket.refused <= 0.05 * bucket.passed
