"""Calls at a time of a whole run, whatever lane they are in."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count


class Slots:
    """So many at a time; who waits is served by priority (lowest first), then by arrival.

    `limit` may be changed while in use. Cancelling a waiter never loses a slot.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_use = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrival = count()

    async def acquire(self, priority: int) -> None:
        """Takes a slot, waiting for one if need be."""
        if self.in_use < self.limit and not self._waiting:
            self.in_use += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._arrival), turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()  # served and cancelled in the same moment
            raise

    def release(self) -> None:
        """Gives a slot back."""
        self.in_use -= 1
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self.in_use < self.limit:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                self.in_use += 1
                turn.set_result(None)
