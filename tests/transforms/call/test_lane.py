"""Slots, parking and closing."""

from __future__ import annotations

import asyncio
import random

import pytest

from schemas.failures import FailureClass
from tests.transforms.call.fakes import run_virtual
from transforms.call.lane import LONGEST_PARK_S, Lane, LaneKey
from transforms.call.slots import Slots
from transforms.call.wire import CallFailure


class HandClock:
    """Time that is set by hand."""

    time = 0.0

    def monotonic(self) -> float:
        return self.time


def lane() -> tuple[Lane, HandClock]:
    clock = HandClock()
    return Lane(LaneKey("p", "a", "m", "K"), 4, clock), clock  # type: ignore[arg-type]


def failure(kind: FailureClass, retry_after_s: float | None = None) -> CallFailure:
    return CallFailure(kind, "it said no", retry_after_s)


def test_a_retry_after_parks_until_then_and_a_shorter_one_does_not_shorten_it() -> None:
    one, clock = lane()
    one.heed(failure(FailureClass.RATE_LIMITED, 30))
    one.heed(failure(FailureClass.OVERLOADED, 5))
    assert one.park_wait() == 30
    clock.time = 29.0
    assert one.park_wait() == 1
    clock.time = 31.0
    assert one.park_wait() == 0
    assert one.refusal() is None


@pytest.mark.parametrize(
    "kind", [FailureClass.RATE_LIMITED, FailureClass.PROVIDER_ERROR, FailureClass.BAD_REQUEST]
)
def test_a_failure_without_a_retry_after_is_its_documents_own_affair(kind: FailureClass) -> None:
    one, _ = lane()
    one.heed(failure(kind))
    assert (one.park_wait(), one.refusal()) == (0, None)


def test_two_minutes_are_waited_for_and_more_closes_the_lane_until_it_is_over() -> None:
    one, clock = lane()
    one.heed(failure(FailureClass.RATE_LIMITED, LONGEST_PARK_S))
    assert (one.park_wait(), one.refusal()) == (LONGEST_PARK_S, None)
    one.heed(failure(FailureClass.RATE_LIMITED, 3600))
    refusal = one.refusal()
    assert refusal is not None
    assert (refusal.failure, refusal.sent, refusal.final) == (FailureClass.RATE_LIMITED, False, True)
    assert one.park_wait() == 0  # nobody waits in front of a closed lane
    clock.time = 3601.0
    assert one.refusal() is None


def test_calls_that_get_through_shorten_no_wait() -> None:
    one, clock = lane()
    permit = one._grant(0.0)
    for _ in range(100):
        one.passed(permit)
    one.heed(failure(FailureClass.RATE_LIMITED, 30))
    one.passed(permit)
    clock.time = 29.0
    assert (one.park_wait(), one.is_stopped(permit)) == (1, True)


def test_a_refused_key_closes_the_lane_for_good() -> None:
    one, clock = lane()
    one.heed(failure(FailureClass.AUTHENTICATION))
    clock.time = 1e9
    refusal = one.refusal()
    assert refusal is not None
    assert "it said no" in refusal.message


def test_slots_are_served_by_priority_then_by_arrival() -> None:
    served: list[str] = []

    async def main() -> None:
        slots = Slots(1)
        await slots.acquire(0)

        async def wait(name: str, priority: int) -> None:
            await slots.acquire(priority)
            served.append(name)
            slots.release()

        tasks = [
            asyncio.create_task(wait(name, p)) for name, p in (("late", 9), ("a", 2), ("b", 2), ("first", 1))
        ]
        await asyncio.sleep(1)
        slots.release()
        await asyncio.gather(*tasks)
        assert slots.in_use == 0

    run_virtual(main())
    assert served == ["first", "a", "b", "late"]


def test_no_slot_is_lost_or_given_twice_when_waiters_are_cancelled_at_any_moment() -> None:
    source = random.Random(7)
    most = 0

    async def main() -> None:
        nonlocal most
        slots = Slots(3)

        async def use() -> None:
            nonlocal most
            await slots.acquire(source.randrange(3))
            most = max(most, slots.in_use)
            try:
                await asyncio.sleep(source.random())
            finally:
                slots.release()

        tasks = [asyncio.create_task(use()) for _ in range(300)]
        while not all(task.done() for task in tasks):
            source.choice(tasks).cancel()
            await asyncio.sleep(source.choice([0, 0, 0.1]))
        assert slots.in_use == 0
        await asyncio.gather(*(use() for _ in range(9)))  # all three still work

    run_virtual(main())
    assert most == 3
