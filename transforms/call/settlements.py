"""When a call counts at what it cost: once its end is durable.

A call that is sent counts at its worst case until its end is known to whoever may take the batch over. Where
a ledger gathers its records before they are durable, a process that stands still may be taken over, and what
it had not sealed yet is lost: to everybody else those calls have no known end, and count at their worst. So
their reservations are kept until then; were they given back before, others could spend the difference, and
what the ledgers come to would pass the cap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from schemas.errors import LedgerError
from transforms.call.ports import BoundedLog, LedgerLog

Settle = Callable[[bool], None]
"""Settles a reservation: at what the call cost if it is True, else at its worst case."""


class Settlements:
    """Reservations of calls that have ended, by the ledger that has yet to be durable. On one event loop."""

    def __init__(self) -> None:
        self._due: dict[LedgerLog, list[Settle]] = {}
        self._waiting: dict[LedgerLog, asyncio.Task[None]] = {}

    def when_durable(self, log: BoundedLog, settle: Settle) -> None:
        """Settle once all that `log` has by now is durable; at the worst case when it can't become so."""
        self._due.setdefault(log, []).append(settle)
        if log not in self._waiting:
            self._waiting[log] = asyncio.get_running_loop().create_task(self._wait(log))

    async def _wait(self, log: BoundedLog) -> None:
        """In the ledger's own time, one wait for all that came meanwhile."""
        try:
            while log in self._due:
                due = self._due.pop(log)
                is_durable = await _is_durable(log)
                for settle in due:
                    settle(is_durable)
        finally:
            del self._waiting[log]

    async def leave(self, log: LedgerLog) -> None:
        """Returns when nothing of a ledger is due any more; before it is closed."""
        task = self._waiting.get(log)
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)


async def _is_durable(log: BoundedLog) -> bool:
    try:
        await log.sealed()
    except LedgerError:
        return False
    return True
