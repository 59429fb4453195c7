"""The pace of a lane against providers whose limit moves, in a discrete simulation without an event loop."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from transforms.call.pace import START_WINDOW, Pacer

LimitAt = Callable[[float], float]


@dataclass
class Seen:
    """What the provider saw."""

    allowed: float = 0.0
    passed: int = 0
    refused: int = 0
    most_in_flight: int = 0
    last_second: int = 0

    @property
    def share(self) -> float:
        return self.passed / self.allowed

    @property
    def refused_per_success(self) -> float:
        return self.refused / self.passed


@dataclass
class Provider:
    """A token bucket of a quarter of a second at the rate of the moment; noise refuses calls at random."""

    limit: LimitAt
    noise: float = 0.0
    burst_s: float = 0.25
    tokens: float = math.inf
    seen_at: float = 0.0

    def lets_through(self, now: float, source: random.Random, seen: Seen) -> bool:
        rate = self.limit(now)
        earned = (now - self.seen_at) * rate
        seen.allowed += earned
        self.tokens = min(rate * self.burst_s + 1, self.tokens + earned)
        self.seen_at = now
        if source.random() < self.noise or self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def drive(provider: Provider, seconds: float, seed: int, latency_s: float = 0.05, slots: int = 256) -> Seen:
    """Always has more to send; refused calls come back at once, as providers do it."""
    source, pacer, seen = random.Random(seed), Pacer(), Seen()
    ends: list[tuple[float, int, float, bool]] = []
    now = 0.0
    while now < seconds:
        while len(ends) < slots and pacer.wait(now, len(ends)) <= 0:
            serial = pacer.sent(now)
            good = provider.lets_through(now, source, seen)
            took = latency_s * (1 + 0.2 * source.random()) if good else 0.002
            heapq.heappush(ends, (now + took, serial, now, good))
        seen.most_in_flight = max(seen.most_in_flight, len(ends))
        wait = pacer.wait(now, len(ends)) if len(ends) < slots else math.inf
        next_send = now + max(wait, 1e-4)
        if not ends or next_send < ends[0][0]:
            now = next_send
            continue
        now, serial, sent_at, good = heapq.heappop(ends)
        if good:
            seen.passed += 1
            seen.last_second += now > seconds - 1
            pacer.succeeded(serial, now)
        else:
            seen.refused += 1
            pacer.limited(serial, sent_at, now)
    return seen


def steps(at: float) -> float:
    return 200.0 if at < 30 else 400.0 if at < 60 else 100.0


def rising_saw(at: float) -> float:
    return 100 + 300 * (at % 30) / 30


def falling_saw(at: float) -> float:
    return 400 - 300 * (at % 30) / 30


def brown_out(at: float) -> float:
    return 30.0 if 20 <= at % 45 < 30 else 300.0


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("limit", [steps, rising_saw, falling_saw, brown_out])
def test_at_least_95_percent_of_a_moving_limit_is_used_and_it_is_not_stormed(
    limit: LimitAt, seed: int
) -> None:
    seen = drive(Provider(limit), 90, seed)
    assert seen.share >= 0.95
    assert seen.refused_per_success <= 0.05


@pytest.mark.parametrize("rate", [2.0, 20.0])
def test_a_slow_provider_is_called_as_often_as_it_allows_and_hardly_more(rate: float) -> None:
    seen = drive(Provider(lambda at: rate), 900, 1, latency_s=1.0)
    assert seen.share >= 0.95
    assert seen.refused <= 0.05 * seen.passed + 2 * START_WINDOW  # what the first burst costs, once


def test_a_provider_that_lets_nothing_through_for_a_while_is_probed_and_not_stormed() -> None:
    seen = drive(Provider(lambda at: 0.001 if 20 <= at < 60 else 200.0), 100, 1)
    assert seen.share >= 0.8
    assert seen.refused <= 0.05 * seen.passed


def test_an_unlimited_provider_is_called_with_every_slot() -> None:
    seen = drive(Provider(lambda at: 1e9), 2, 1, slots=256)
    assert seen.most_in_flight == 256
    assert seen.refused == 0
    assert seen.last_second >= 0.95 * 256 / (0.05 * 1.1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_429s_that_have_nothing_to_do_with_the_rate_cost_no_more_than_themselves(seed: int) -> None:
    seen = drive(Provider(lambda at: 1e9, noise=0.05), 6, seed)
    assert seen.passed >= 0.85 * 6 * 256 / (0.05 * 1.1)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("limit", "within_s"), [(100.0, 20), (500.0, 10)])
def test_a_lane_wins_its_rate_back_under_noise_once_a_limit_is_gone(
    limit: float, within_s: float, seed: int
) -> None:
    seen = drive(Provider(lambda at: limit if at < 20 else 1e9, noise=0.05), 20 + within_s, seed)
    assert seen.last_second >= 0.95 * 256 / (0.05 * 1.1)
    assert seen.refused_per_success <= 0.05 / 0.95 + 0.01  # the noise, and little more


def test_a_limit_behind_noise_is_found_all_the_same() -> None:
    seen = drive(Provider(lambda at: 1e9 if at < 10 else 300.0, noise=0.05), 30, 1)
    assert seen.refused <= 0.25 * seen.passed
    assert 0.8 * 300 <= seen.last_second <= 1.2 * 300


def test_a_lane_opens_gradually_and_doubles_with_every_round_trip() -> None:
    pacer = Pacer()
    sent = 0
    while pacer.wait(0.0, sent) <= 0:
        pacer.sent(0.0)
        sent += 1
    assert sent == START_WINDOW
    for serial in range(1, sent + 1):
        pacer.succeeded(serial, 1.0)
    assert pacer.wait(1.0, 2 * START_WINDOW - 1) == 0
    assert pacer.wait(1.0, 2 * START_WINDOW) == math.inf


def paced_at_100() -> Pacer:
    """A pacer that has settled at about 100 calls a second."""
    pacer, now = Pacer(), 0.0
    for _ in range(300):
        serial = pacer.sent(now)
        now += 0.01
        pacer.succeeded(serial, now)
    for _ in range(9):
        pacer.limited(pacer.sent(now), now, now)
    return pacer


def test_calls_that_were_sent_before_a_cut_cause_no_second_one() -> None:
    pacer = paced_at_100()
    before = [pacer.sent(3.0) for _ in range(20)]
    pacer.limited(pacer.sent(3.0), 3.0, 3.0)
    rate = pacer.rate
    for serial in before:
        pacer.limited(serial, 3.0, 3.01)
    assert pacer.rate == rate


def test_calls_that_were_due_during_a_pause_are_not_made_up_for_in_a_burst() -> None:
    pacer = paced_at_100()
    pacer.sent(3.0)
    at_once = 0
    while pacer.wait(3.3, 0) <= 0:
        pacer.sent(3.3)
        at_once += 1
    assert at_once <= 2


def test_calls_count_as_getting_through_only_while_most_of_them_do() -> None:
    pacer = Pacer()
    assert not pacer.flows(0.0)
    serials = [pacer.sent(1.0) for _ in range(40)]
    for serial in serials[:25]:
        pacer.succeeded(serial, 1.1)
    for serial in serials[25:30]:
        pacer.limited(serial, 1.0, 1.1)
    assert pacer.flows(1.2)
    for serial in serials[5:30]:
        pacer.limited(serial, 1.0, 1.2)
    assert not pacer.flows(1.2)
    assert not pacer.flows(60.0)


def test_a_lane_that_was_slowed_down_is_not_stopped_by_a_single_429() -> None:
    pacer, now = paced_at_100(), 3.0
    pacer.rate = 4.0
    for n in range(20):
        now += 0.25
        serial = pacer.sent(now)
        if n == 12:
            pacer.limited(serial, now, now)
        else:
            pacer.succeeded(serial, now + 0.05)
    assert pacer.flows(now + 0.1)
    assert not pacer.flows(now + 20.0), "nothing has come through for long"
