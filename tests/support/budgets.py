"""A budget record in memory, and coroutines that need no waiting run from plain code."""

from __future__ import annotations

import asyncio
import atexit
import random
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from schemas.outcomes import money
from transforms.call.budget import LeasedBudget
from transforms.call.budget_record import BudgetState

_LOOP = asyncio.new_event_loop()
"""One for the whole process: hypothesis runs a hundred thousand coroutines."""
atexit.register(_LOOP.close)
_ROUNDS = 30  # of the loop: more than all changes of records in memory take that one reservation makes


class MemoryRecord:
    """The shared record in memory."""

    def __init__(self, cap: str, spent: str = "0") -> None:
        self.data: bytes | None = BudgetState(money(cap), money(spent), "epoch").to_json()
        self.updates = 0

    async def update(self, change: Callable[[bytes | None], tuple[bytes | None, Any]]) -> Any:
        self.updates += 1
        data, value = change(self.data)
        self.data = self.data if data is None else data
        return value

    @property
    def state(self) -> BudgetState:
        return BudgetState.from_json(self.data)


class FrozenClock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.time = 0.0

    def monotonic(self) -> float:
        self.time += 1.0  # every look is later than the pause after a refusal
        return self.time

    def now(self) -> Any:
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError


def now(awaitable: Any) -> Any:
    """Runs what needs no waiting."""
    return _LOOP.run_until_complete(awaitable)


async def settled() -> None:
    """Returns when every task has come to where it waits for others."""
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)


async def race(budgets: Sequence[LeasedBudget], cap: int, source: random.Random) -> list[int]:
    """What workers were billed whose four callers each call until they are refused; never above the cap."""
    calls: list[int] = []

    async def caller(budget: LeasedBudget) -> None:
        while await budget.reserve(money(7)):
            await asyncio.sleep(source.random() / 10)
            actual = source.randint(0, 7)
            calls.append(actual)
            budget.settle(money(7), money(actual))
            assert sum(calls) <= cap

    async def work(budget: LeasedBudget) -> None:
        await asyncio.gather(*(caller(budget) for _ in range(4)))
        await budget.release_unused()

    await asyncio.gather(*map(work, budgets))
    return calls


def now_or_no(budget: LeasedBudget, amount: Decimal) -> bool:
    """Whether it is granted without waiting for others."""

    async def main() -> bool:
        task = asyncio.create_task(budget.reserve(amount))
        for _ in range(_ROUNDS):
            if task.done():
                return task.result()
            await asyncio.sleep(0)
        task.cancel()
        return False

    return bool(now(main()))
