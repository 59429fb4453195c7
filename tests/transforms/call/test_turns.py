"""Whose turn it is among routes and batches that wait for one lane."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.transforms.call.fakes import run_virtual
from transforms.call.permit import Permit
from transforms.call.turns import Turns


def served(weights: dict[str, int], queue: list[tuple[str, int]], many: int) -> list[tuple[str, int]]:
    """The first `many` of those who queued up as (route, priority), in the order of their turns."""

    async def main() -> list[tuple[str, int]]:
        turns, names = Turns(weights), {}
        for route, priority in queue:
            granted: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
            names[id(turns.join(route, priority, False, granted))] = (route, priority)
        order = []
        for _ in range(many):
            turn = turns.next()
            assert turn is not None
            order.append(names[id(turn)])
        return order

    return run_virtual(main())


def test_routes_that_wait_take_turns_even_if_one_came_with_everything_first() -> None:
    order = served({}, [("a", 1)] * 50 + [("b", 2)] * 50, 20)
    assert Counter(route for route, _ in order) == {"a": 10, "b": 10}


def test_weights_are_kept_from_the_first_turns_on() -> None:
    order = served({"a": 3, "b": 1}, [("b", 1)] * 50 + [("a", 1)] * 50, 40)
    assert Counter(route for route, _ in order) == {"a": 30, "b": 10}
    assert Counter(route for route, _ in order[:8]) == {"a": 6, "b": 2}


def test_within_a_route_the_earlier_batch_goes_first_then_the_earlier_arrival() -> None:
    assert served({}, [("a", 3), ("a", 1), ("a", 2)], 3) == [("a", 1), ("a", 2), ("a", 3)]


def test_a_route_that_asked_for_nothing_for_a_while_makes_up_for_nothing() -> None:
    async def main() -> list[str]:
        turns, order = Turns({}), []
        names: dict[int, str] = {}

        def join(route: str) -> None:
            granted: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
            names[id(turns.join(route, 1, False, granted))] = route

        for _ in range(200):
            join("busy")
        kept = []
        for _ in range(100):
            kept.append(turns.next())
        for _ in range(100):
            join("late")
        for _ in range(20):
            turn = turns.next()
            kept.append(turn)
            order.append(names[id(turn)])
        return order

    assert Counter(run_virtual(main())) == {"busy": 10, "late": 10}


def test_who_went_away_is_passed_over_and_nobody_waits_any_more() -> None:
    async def main() -> None:
        turns = Turns({})
        gone, here = (asyncio.get_running_loop().create_future() for _ in range(2))
        turns.join("a", 1, False, gone)
        staying = turns.join("a", 2, True, here)
        gone.cancel()
        assert list(turns.waiting()) == [staying]
        assert turns.next() is staying
        assert turns.next() is None
        assert not turns

    run_virtual(main())
