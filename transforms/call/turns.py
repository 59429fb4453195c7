"""Whose turn it is: routes that wait for one lane share it by weight; in a route batches go in order."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count

from transforms.call.permit import Permit


@dataclass(slots=True, eq=False)
class Turn:
    """Someone who waits. `falls_back`: has somewhere else to go when the provider is down."""

    falls_back: bool
    granted: asyncio.Future[Permit]


class Turns:
    """Those who wait for one lane, by route.

    Weighted fair queueing by stride: every turn moves its route on by 1/weight, and the route that is
    least far on is next. A route that begins to wait starts where the others are: it gets its share
    from now on, and nothing for the time when it asked for nothing.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._weights = weights
        self._waiting: dict[str, list[tuple[int, int, Turn]]] = {}
        self._progress: dict[str, float] = {}
        self._reached = 0.0
        self._arrival = count()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def would_be_next(self, route: str, priority: int) -> bool:
        """Whether who comes now goes before all who wait, without more ado."""
        if not self._waiting:
            return True
        queue = self._waiting.get(route)
        return queue is not None and len(self._waiting) == 1 and priority < queue[0][0]

    def join(self, route: str, priority: int, falls_back: bool, granted: asyncio.Future[Permit]) -> Turn:
        """Queues up."""
        turn = Turn(falls_back, granted)
        queue = self._waiting.get(route)
        if queue is None:
            queue = self._waiting[route] = []
            self._progress[route] = max(self._progress.get(route, 0.0), self._reached)
        heapq.heappush(queue, (priority, next(self._arrival), turn))
        return turn

    def next(self) -> Turn | None:
        """Takes whose turn it is; who has gone away meanwhile is passed over."""
        while self._waiting:
            route = self._least_far() if len(self._waiting) > 1 else next(iter(self._waiting))
            queue = self._waiting[route]
            turn = heapq.heappop(queue)[2]
            if not queue:
                del self._waiting[route]
            if turn.granted.done():
                continue
            self._reached = self._progress[route]
            self._progress[route] += 1.0 / self._weights.get(route, 1)
            return turn
        return None

    def _least_far(self) -> str:
        return min(self._waiting, key=self._progress.__getitem__)

    def waiting(self) -> Iterator[Turn]:
        """All who wait; they stay in the queue, and whoever is granted something is passed over later."""
        for queue in self._waiting.values():
            yield from (turn for _, _, turn in queue if not turn.granted.done())
