"""Waits that a provider asks for: kept by all, and a short one put to the test now and then."""

from __future__ import annotations

import math

import pytest

from transforms.call.waits import BRIEF_S, KEPT_FIRST, OVERSTATED_FOR_S, SHORT_S, Waits


def after_the_first() -> tuple[Waits, float]:
    """Waits of which KEPT_FIRST were kept in full, and the instant after them."""
    waits, now = Waits(), 0.0
    for _ in range(KEPT_FIRST):
        waits.told(1.0, now, flows=True)
        assert (waits.hold(now), waits.left(now)) == (1.0, 1.0)
        assert waits.hold(now + 0.99) == pytest.approx(0.01)
        now += 1.0
        assert waits.hold(now) == 0
    return waits, now


def put_to_the_test(*, passes: bool) -> tuple[Waits, float]:
    """The wait after those, and how its test ended."""
    waits, now = after_the_first()
    waits.told(1.0, now, flows=True)
    assert waits.hold(now) == 0.5
    assert waits.stops(7, now + 0.5)
    waits.sent(7, now + 0.5)
    assert not waits.stops(7, now + 0.5)
    assert waits.hold(now + 0.5) == 0.5, "it is one call, and no other"
    (waits.passed if passes else waits.limited)(7, now + 0.6)
    return waits, now + 0.6


def test_a_test_that_is_refused_changes_nothing_and_the_next_one_is_not_soon() -> None:
    waits, now = put_to_the_test(passes=False)
    assert waits.hold(now) == pytest.approx(0.4)
    first, tests = now, []
    for second in range(1, 200):
        now = first + second
        waits.told(1.0, now, flows=True)
        if waits.hold(now) < 0.9:
            tests.append(second)
            waits.sent(8, now + 0.5)
            waits.limited(8, now + 0.5)
    assert tests == [4, 13, 30, 63, 124, 185]  # 4, 8, 16, 32 and then 60 s after the one before


def test_a_test_that_passes_ends_the_wait_and_short_ones_stop_nobody_else_for_a_minute() -> None:
    waits, now = put_to_the_test(passes=True)
    assert waits.hold(now) == 0
    waits.told(SHORT_S, now + 1, flows=True)
    assert waits.left(now + 1) == 0
    waits.told(1.0, now + OVERSTATED_FOR_S, flows=True)
    assert waits.left(now + OVERSTATED_FOR_S) == pytest.approx(1.0)
    assert waits.hold(now + OVERSTATED_FOR_S) == pytest.approx(0.5)


def test_a_lane_through_which_nothing_gets_keeps_short_waits_too() -> None:
    waits, now = put_to_the_test(passes=True)
    waits.told(1.0, now, flows=False)
    assert waits.left(now) == pytest.approx(1.0)


@pytest.mark.parametrize("before", [Waits(), after_the_first()[0], put_to_the_test(passes=True)[0]])
def test_a_longer_wait_is_kept_in_full_always(before: Waits) -> None:
    before.told(2.5, 10.0, flows=True)
    assert (before.left(10.0), before.hold(10.0)) == (2.5, 2.5)


def test_a_longer_wait_that_comes_during_a_short_one_ends_its_test() -> None:
    waits, now = after_the_first()
    waits.told(1.0, now, flows=True)
    waits.told(30.0, now + 0.1, flows=True)
    assert waits.hold(now + 0.1) == pytest.approx(30.0)
    assert waits.left(math.inf) == 0


def test_the_clock_of_the_pace_stands_still_in_waits_but_for_brief_ones() -> None:
    waits = Waits()
    assert waits.moving(9.0) == 9.0
    waits.told(1.0, 10.0, flows=False)
    assert [waits.moving(at) for at in (9.5, 10.0, 10.7, 11.0, 12.0)] == [9.5, 10.0, 10.0, 10.0, 11.0]
    waits.told(BRIEF_S / 2, 12.0, flows=True)
    assert [waits.moving(at) for at in (11.5, 12.0, 12.1, 13.0)] == [10.5, 11.0, 11.1, 12.0]
    waits.told(5.0, 14.0, flows=True)
    assert [waits.moving(at) for at in (13.5, 16.0, 19.0, 20.0)] == [12.5, 13.0, 13.0, 14.0]
