"""The breaker: opens after many failures in a row, lets one probe through at a time, closes on success."""

from __future__ import annotations

import math

from transforms.call.breaker import CALLS_TO_OPEN, FIRST_PAUSE_S, LONGEST_PAUSE_S, PATIENCE_S, Breaker


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker()
    for serial in range(1, CALLS_TO_OPEN + 1):
        breaker.failed(serial, at)
    return breaker


def test_it_opens_after_so_many_failures_in_a_row_and_not_one_earlier() -> None:
    breaker = Breaker()
    opens = [breaker.failed(serial, 0.0) for serial in range(1, CALLS_TO_OPEN + 1)]
    assert opens == [False] * (CALLS_TO_OPEN - 1) + [True]
    assert breaker.is_open
    assert breaker.wait(0.0) == FIRST_PAUSE_S


def test_one_success_in_between_starts_the_count_anew() -> None:
    breaker = Breaker()
    for serial in range(1, 10 * CALLS_TO_OPEN):
        if serial % CALLS_TO_OPEN == 0:
            breaker.passed()
        else:
            assert not breaker.failed(serial, 0.0)
    assert not breaker.is_open


def test_half_open_lets_one_probe_through_and_nobody_else() -> None:
    breaker = opened()
    assert breaker.wait(FIRST_PAUSE_S) == 0
    assert breaker.sent(40)
    assert breaker.wait(FIRST_PAUSE_S) == math.inf


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = opened()
    breaker.sent(40)
    breaker.passed()
    assert not breaker.is_open
    assert breaker.wait(1.0) == 0
    assert not breaker.sent(41)  # an ordinary call


def test_probes_that_fail_come_ever_more_rarely() -> None:
    breaker, now, serial = opened(), 0.0, 40
    waits = []
    for _ in range(9):
        waits.append(breaker.wait(now))
        now += breaker.wait(now)
        breaker.sent(serial)
        breaker.failed(serial, now)
        serial += 1
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert waits[-1] == LONGEST_PAUSE_S


def test_calls_that_were_under_way_when_it_opened_do_not_count_as_probes() -> None:
    breaker = opened()
    breaker.sent(40)
    assert not breaker.failed(20, 0.5)
    assert breaker.wait(0.5) == math.inf  # the probe is still under way
    breaker.failed(40, 1.0)
    assert breaker.wait(1.0) == 2 * FIRST_PAUSE_S


def test_a_probe_that_was_never_sent_makes_room_for_another_one() -> None:
    breaker = opened()
    breaker.sent(40)
    breaker.dropped(39, 1.0)
    assert breaker.wait(1.0) == math.inf
    breaker.dropped(40, 1.0)
    assert breaker.wait(1.0) == FIRST_PAUSE_S


def test_patience_ends_once_it_has_been_open_for_so_long() -> None:
    breaker = opened(at=100.0)
    assert not breaker.has_lost_patience(100.0 + PATIENCE_S - 1)
    assert breaker.has_lost_patience(100.0 + PATIENCE_S)
    breaker.passed()
    assert not breaker.has_lost_patience(1e9)


def test_late_failures_of_calls_from_before_do_not_open_it_again_after_it_closed() -> None:
    breaker = opened()
    breaker.sent(300)
    breaker.passed()
    for serial in range(20, 20 + CALLS_TO_OPEN):
        breaker.failed(serial, 2.0)
    assert not breaker.is_open
    for serial in range(301, 301 + CALLS_TO_OPEN):
        breaker.failed(serial, 3.0)
    assert breaker.is_open
