"""How long a run takes: by hand, bound by bound."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from schemas.limits import Limits
from transforms.quote.values import Seconds
from transforms.quote.wall_time import (
    DOCUMENTS_PER_S,
    RUN,
    START,
    Floor,
    Lane,
    Load,
    RouteWork,
    Three,
    route_seconds,
    run_seconds,
    share_that_is_sent,
    until_answered,
)

LANE = Lane(("openai", "api", "mini", "KEY"), 10)


def same(value: float) -> Three:
    return Three(*(Fraction(value),) * 3)


def load(calls: int, each_s: float = 2, lane: Lane = LANE, tokens: int = 0) -> Load:
    return Load(lane, same(calls), same(tokens), same(calls * each_s), same(each_s))


def work(*loads: Load, documents: int = 0, **changes: Any) -> RouteWork:
    return RouteWork(same(documents), loads, **changes)


def floor(groups: int = 1, **limits: Any) -> Floor:
    return Floor(Limits(**{"max_in_flight": 100, **limits}), groups)


def expected(works: list[RouteWork], on: Floor, each_s: float = 2) -> float:
    """Expected seconds of a run, without what its start takes and its last calls."""
    found = run_seconds(works, on)
    assert found is not None
    return found.expected - RUN.expected - on.rounds() * (START.expected + each_s)


def test_calls_keep_the_places_busy_that_the_lane_has() -> None:
    assert expected([work(load(1000))], floor()) == 200  # 1,000 calls of 2 s, 10 at a time


def test_the_run_s_own_places_bind_when_there_are_fewer() -> None:
    assert expected([work(load(1000))], floor(max_in_flight=4)) == 500


def test_routes_run_side_by_side_so_the_longest_counts_and_not_their_sum() -> None:
    other = Lane(("anthropic", "api", "haiku", "KEY"), 10)
    both = [work(load(1000)), work(load(400, lane=other))]
    assert expected(both, floor()) == 200
    assert expected(both, floor(max_in_flight=10)) == 280, "together they fill the run's own places"


def test_routes_of_one_lane_share_it() -> None:
    assert expected([work(load(1000)), work(load(500))], floor()) == 300


def test_stated_requests_and_tokens_a_minute_bind() -> None:
    slow = replace(LANE, requests_per_minute=60)
    assert expected([work(load(1000, lane=slow))], floor()) == 1000
    small = replace(LANE, tokens_per_minute=6000)
    assert expected([work(load(1000, lane=small, tokens=500_000))], floor()) == 5000


def test_processes_carry_so_many_documents_a_second_and_start_one_after_the_other() -> None:
    alone = expected([work(documents=100_000)], floor(), 0)
    assert alone == pytest.approx(100_000 / DOCUMENTS_PER_S.expected)
    four = floor(groups=4, parallel_groups=4)
    assert expected([work(documents=100_000)], four, 0) == pytest.approx(alone / 4)
    assert (floor(groups=7, parallel_groups=2).rounds(), four.rounds()) == (4, 1)


def test_a_process_that_is_not_there_uses_no_part_of_the_limit() -> None:
    few = floor(groups=1, parallel_groups=4, max_in_flight=8)
    assert (few.processes, few.at_a_time, few.in_lane(LANE)) == (1, 2, 2)


def test_an_embedder_s_device_time_is_a_bound_and_unknown_where_it_is_unknown() -> None:
    hosted, known = work(load(10)), work(documents=5, is_embedder=True, device_s=same(900))
    found = run_seconds([hosted, known], floor())
    assert found is not None
    assert 900 < found.expected < 1000
    unknown = work(documents=5, is_embedder=True)
    assert run_seconds([hosted, unknown], floor()) is None
    assert route_seconds(unknown, floor()) is None
    assert run_seconds([hosted, work(is_embedder=True)], floor()) is not None, "it has no documents"


def test_provider_batches_are_waited_for_by_their_route_and_not_by_the_run() -> None:
    window = Three(Fraction(300), Fraction(3600), Fraction(86400))
    works = [work(window_s=window), work(load(10))]
    run, every = run_seconds(works, floor()), until_answered(works, floor())
    assert run is not None
    assert run.high < 300
    assert every == Seconds(300.0, 3600.0, 86400.0)
    assert route_seconds(works[0], floor()) == every


def test_the_three_figures_stay_in_order_whatever_comes_in() -> None:
    odd = Load(LANE, same(1), same(0), Three(Fraction(50), Fraction(20), Fraction(10)), same(1))
    found = run_seconds([work(odd)], floor())
    assert found is not None
    assert found.low <= found.expected <= found.high


def test_without_anything_due_it_takes_no_time() -> None:
    assert run_seconds([work()], floor(groups=0)) == Seconds(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("requests", "documents", "share"),
    [
        (["a", "b", "c"], 3, 1),  # all are different
        (["a", "a", "b"], 3, Fraction(2, 3)),  # the sample is all there is
        (["a", "a", "b"], 300, Fraction(101, 300)),  # b stands for 100 of its kind, a for itself
        ([], 10, 1),
        (["a"], 0, 1),
    ],
)
def test_what_is_repeated_in_the_sample_is_sent_once(
    requests: list[str], documents: int, share: Fraction
) -> None:
    assert share_that_is_sent(requests, Fraction(documents)) == share
