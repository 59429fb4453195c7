"""Device time, shared between steps in flight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.embed.clock import DeviceClock, Spent, clock_of


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
    assert clock.stop(mark).busy == pytest.approx(2.0)
    assert clock.busy_seconds == pytest.approx(2.0)


def test_two_steps_share_the_time_that_they_overlap():
    now = Now()
    clock = DeviceClock(now=now)
    first = clock.start()
    now.seconds += 1.0
    second = clock.start()
    now.seconds += 2.0
    assert clock.stop(first).busy == pytest.approx(1.0 + 1.0)
    now.seconds += 3.0
    assert clock.stop(second).busy == pytest.approx(1.0 + 3.0)
    assert clock.busy_seconds == pytest.approx(6.0)


def test_idle_time_is_charged_to_nobody():
    now = Now()
    clock = DeviceClock(now=now)
    clock.stop(clock.start())
    now.seconds += 50.0
    mark = clock.start()
    now.seconds += 1.0
    assert clock.stop(mark).busy == pytest.approx(1.0)
    assert clock.busy_seconds == pytest.approx(1.0)


def test_time_on_a_mesh_counts_for_every_device():
    now = Now()
    clock = DeviceClock(devices=8, now=now)
    mark = clock.start()
    now.seconds += 0.5
    assert clock.stop(mark).busy == pytest.approx(4.0)
    assert clock.busy_seconds == pytest.approx(4.0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 10)), max_size=60), st.integers(1, 4))
def test_the_charges_of_all_steps_add_up_to_the_busy_time_and_to_what_lanes_had_none(
    events: list[tuple[bool, float]], lanes: int
):
    now = Now()
    clock = DeviceClock(devices=2, lanes=lanes, now=now)
    marks: list[Spent] = []
    charged, busy, idle, waited = Spent(), 0.0, 0.0, 0.0
    begun = False
    for begins, passed in [*events, *[(False, 1.0)] * len(events)]:
        now.seconds += passed
        if marks:
            busy += passed
            idle += passed * (1 - min(len(marks), lanes) / lanes)
        elif begun:
            waited += passed
        if begins:
            marks.append(clock.start())
            idle, waited, begun = idle + waited, 0.0, True
        elif marks:
            charged = charged.plus(clock.stop(marks.pop(0)))
    assert not marks
    assert charged.busy == pytest.approx(2 * busy, abs=1e-9)
    assert charged.idle == pytest.approx(2 * idle, abs=1e-9)
    assert charged.busy == pytest.approx(clock.busy_seconds, abs=1e-9)


def test_idle_is_what_lanes_could_have_done_between_the_first_step_and_the_last():
    now = Now()
    clock = DeviceClock(lanes=2, now=now)
    now.seconds = 10.0  # before the first step nothing is idle
    first = clock.start()
    now.seconds = 13.0  # one of two lanes for 3 s: 1.5 s idle
    second = clock.start()
    now.seconds = 15.0  # both lanes
    assert clock.stop(first).idle == 1.5
    assert clock.stop(second).idle == 0
    now.seconds = 19.0  # idle only if another step follows: it is told, and looking changes nothing
    assert clock.busy_seconds == 5.0
    assert clock.stop(clock.start()) == Spent(0.0, 4.0)


def test_more_steps_than_lanes_are_no_less_than_no_idle():
    now = Now()
    clock = DeviceClock(devices=4, now=now)
    marks = [clock.start() for _ in range(3)]
    now.seconds = 2.0
    assert [clock.stop(mark).idle for mark in marks] == [0, 0, 0]


def test_all_models_of_a_process_are_on_one_clock_for_its_devices():
    assert clock_of(3, 2) is clock_of(3, 2)
    assert clock_of(3, 2) is not clock_of(3, 1)
