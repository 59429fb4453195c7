"""Device time, shared between steps in flight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.embed.clock import DeviceClock


class Now:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_step_alone_is_charged_all_its_time():
    now = Now()
    clock = DeviceClock(now=now)
    mark = clock.start()
    now.seconds += 2.0
    assert clock.stop(mark) == pytest.approx(2.0)
    assert clock.busy_seconds == pytest.approx(2.0)


def test_two_steps_share_the_time_that_they_overlap():
    now = Now()
    clock = DeviceClock(now=now)
    first = clock.start()
    now.seconds += 1.0
    second = clock.start()
    now.seconds += 2.0
    assert clock.stop(first) == pytest.approx(1.0 + 1.0)
    now.seconds += 3.0
    assert clock.stop(second) == pytest.approx(1.0 + 3.0)
    assert clock.busy_seconds == pytest.approx(6.0)


def test_idle_time_is_charged_to_nobody():
    now = Now()
    clock = DeviceClock(now=now)
    clock.stop(clock.start())
    now.seconds += 50.0
    mark = clock.start()
    now.seconds += 1.0
    assert clock.stop(mark) == pytest.approx(1.0)
    assert clock.busy_seconds == pytest.approx(1.0)


def test_time_on_a_mesh_counts_for_every_device():
    now = Now()
    clock = DeviceClock(devices=8, now=now)
    mark = clock.start()
    now.seconds += 0.5
    assert clock.stop(mark) == pytest.approx(4.0)
    assert clock.busy_seconds == pytest.approx(4.0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 10)), max_size=60))
def test_the_charges_of_all_steps_add_up_to_the_busy_time(events: list[tuple[bool, float]]):
    now = Now()
    clock = DeviceClock(devices=2, now=now)
    marks: list[float] = []
    charged = 0.0
    for begins, passed in events:
        now.seconds += passed
        if begins or not marks:
            marks.append(clock.start())
        else:
            charged += clock.stop(marks.pop(0))
    while marks:
        now.seconds += 1.0
        charged += clock.stop(marks.pop())
    assert charged == pytest.approx(clock.busy_seconds, abs=1e-9)


def test_idle_is_what_lanes_could_have_done_between_the_first_step_and_the_last():
    now = Now()
    clock = DeviceClock(lanes=2, now=now)
    now.seconds = 10.0  # before the first step nothing is idle
    first = clock.start()
    now.seconds = 13.0  # one of two lanes for 3 s: 1.5 s idle
    second = clock.start()
    now.seconds = 15.0  # both lanes
    clock.stop(first)
    clock.stop(second)
    assert clock.idle_seconds == 1.5
    now.seconds = 19.0  # idle only if another step follows
    assert clock.idle_seconds == 1.5
    third = clock.start()
    assert clock.idle_seconds == 5.5
    clock.stop(third)


def test_more_steps_than_lanes_are_no_less_than_no_idle():
    now = Now()
    clock = DeviceClock(devices=4, now=now)
    marks = [clock.start() for _ in range(3)]
    now.seconds = 2.0
    for mark in marks:
        clock.stop(mark)
    assert clock.idle_seconds == 0
