"""The budget: a cap that holds whatever the number of workers.

One record holds cap, spent and the leases of all workers; a worker draws a lease before it spends, and
reserves each call's worst case from it. At every instant, in the record: `spent + leases <= cap`; and in
each worker: `settled + reserved <= lease`. So what was billed, plus the worst case of what is in flight,
never passes the cap.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Protocol

from schemas.outcomes import ZERO
from transforms.call.budget_record import BudgetState
from transforms.call.cancelling import to_its_end
from transforms.call.ports import BudgetRecordStore, Clock

SMALL_DRAW = 256  # a draw takes no more than so many worst cases, so that little is held back unused,
LARGE_DRAW = 1 << 20  # or, where the record is slow, up to so many,
_BIGGEST_STEP = 64
_DRAWING_PART = 1 / 20  # so that this part of a worker's time goes into drawing at most
_QUEUED_S = 1.0  # a draw that takes longer had to wait for those of others
_ASK_AGAIN_S = 0.25  # after a refusal the record is left alone for so long
_FETCHES = 3  # for a draw: of what was fetched for it others may have drawn first


def sized_draw(calls: int, took_s: float, between_s: float, largest: int = LARGE_DRAW) -> int:
    """How many worst cases to draw next, given the last draw's size, what it took, and the time before it.

    More at a time from a record that takes long, and less again from one that does not. An object in a
    bucket takes about one change a second (https://cloud.google.com/storage/quotas), and with many
    workers a change waits for those of the others: what a draw takes tells both. How long a draw lasts is not
    known of a worker's first, before which there was endless time: if that had to wait for others, who all
    begin now, the next one is as much larger as it may be.
    """
    if between_s == math.inf and took_s > _QUEUED_S:
        return min(calls * _BIGGEST_STEP, largest)
    wanted = took_s / _DRAWING_PART
    if between_s < wanted:
        steps = min(_BIGGEST_STEP, math.ceil(wanted / max(between_s, 1e-3)))
        return min(calls * steps, largest)
    if between_s > 4 * wanted:
        return max(calls // 2, SMALL_DRAW)
    return calls


class LeaseRecord(Protocol):
    """What a worker does with a shared record: see `BudgetState`, whose meaning it has."""

    @property
    def epoch(self) -> str: ...
    @property
    def spent(self) -> Decimal: ...
    @property
    def unspent(self) -> Decimal: ...
    def to_json(self) -> bytes: ...
    def settle(self, holder: str, settled: Decimal, keep: Decimal) -> LeaseRecord: ...
    def draw(self, holder: str, least: Decimal, most: Decimal) -> tuple[LeaseRecord, Decimal]: ...


class Supply(Protocol):
    """Where a record that is a part of a cap gets more of it."""

    async def fetch(self, least: Decimal) -> bool:
        """Whether there may be `least` in the record now.

        Raises:
            StoreError: a record can't be read or written.
        """
        ...

    @property
    def searched_at(self) -> float:
        """When all that others can give was last looked for; monotonic seconds."""
        ...


class Budget(Protocol):
    """Leave to spend."""

    async def reserve(self, worst: Decimal) -> bool:
        """Reserves a call's worst case; False when the cap does not allow it, now and until others end."""
        ...

    def settle(self, worst: Decimal, actual: Decimal) -> None:
        """Replaces a reservation by what the call really cost."""
        ...

    async def release_unused(self) -> None:
        """Gives back what is neither spent nor reserved, for other workers."""
        ...

    @property
    def sentence(self) -> str:
        """Why `reserve` said no."""
        ...


class NoCap:
    """A budget without a cap."""

    sentence = ""

    async def reserve(self, worst: Decimal) -> bool:  # noqa: ARG002
        """Always."""
        return True

    def settle(self, worst: Decimal, actual: Decimal) -> None:
        """Nothing to do."""

    async def release_unused(self) -> None:
        """Nothing to do."""


class LeasedBudget:
    """This worker's part of a shared cap. Used on one event loop.

    `reserve` waits while calls of this worker are in flight that may settle for less than their worst
    case; when none is, it gives back what it does not use, and waits up to `patience_s` for others to
    do the same: see `lease_together`. Then it says no, until something is there again.

    Who is cancelled while the record is changed waits for it: the change is made all the same, and what it
    reports as spent would be reported again.

    `read` makes the record's state of its bytes, `epoch` is that in which it may be leased from (by
    default the one that is found there), and `sentence` says what `reserve` refuses for. Where the record is
    a part of a cap, `supply` is asked for more before it counts as too little.
    """

    def __init__(
        self,
        store: BudgetRecordStore,
        holder: str,
        clock: Clock,
        cap: Decimal,
        *,
        read: Callable[[bytes | None], LeaseRecord] = BudgetState.from_json,
        epoch: str | None = None,
        sentence: str = "",
        patience_s: float = 0.0,
        supply: Supply | None = None,
    ) -> None:
        self._store = store
        self._holder = holder
        self._clock = clock
        self._cap = cap
        self._read = read
        self._sentence = sentence
        self._patience_s = patience_s
        self._supply = supply
        self._patient_until: float | None = None
        self._together: Sequence[LeasedBudget] = (self,)
        self._unspent = ZERO
        self._known_spent = ZERO
        self._epoch = epoch
        self._lease = ZERO  # of the record's lease: not yet reported as settled
        self._settled = ZERO
        self._reserved = ZERO
        self._in_flight = 0
        self._refused_until = -1.0
        self._refused = ZERO  # what the record had too little for
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._drawing = asyncio.Lock()
        self._calls = SMALL_DRAW  # a draw's size, in worst cases
        self._drawn_at = -math.inf

    @property
    def sentence(self) -> str:
        """Why `reserve` said no."""
        cap = f"{self._cap.normalize():f} USD"
        return self._sentence or f"the budget of {cap} would be passed; no call was made"

    @property
    def spent(self) -> Decimal:
        """What is spent of the cap, as far as this worker knows."""
        return self._known_spent + self._settled

    @property
    def _free(self) -> Decimal:
        return self._lease - self._settled - self._reserved

    async def reserve(self, worst: Decimal) -> bool:
        """Reserves `worst`, drawing from the record if need be. See the class for when it waits."""
        while not self._take(worst):
            async with self._drawing:
                if self._take(worst):
                    return True
                if worst - self._free < self._refused or self._clock.monotonic() >= self._refused_until:
                    await self._draw(worst)
                if self._take(worst):
                    return True
            if self._in_flight:
                await self._a_settlement()
            elif not await self._others_may_give_back(worst):
                return False
        return True

    async def _others_may_give_back(self, worst: Decimal) -> bool:
        """Waits a little for the leases of others; False when that is of no use, or was tried long enough."""
        if self._free > 0:
            await self.release_unused()  # they may be waiting for the same
        now = self._clock.monotonic()
        if self._refused_until == math.inf or worst > self._unspent or not self._patience_s:
            return False
        if self._patient_until is None:
            self._patient_until = now + self._patience_s
        looked_at = now if self._supply is None else self._supply.searched_at
        if looked_at >= self._patient_until:
            return False
        for budget in self._together:
            if budget._free > 0:
                await budget.release_unused()
        await self._clock.sleep(_ASK_AGAIN_S)
        return True

    def _take(self, worst: Decimal) -> bool:
        if worst > self._free:
            return False
        self._reserved += worst
        self._in_flight += 1
        return True

    async def _a_settlement(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def settle(self, worst: Decimal, actual: Decimal) -> None:
        """Replaces the reservation `worst` by `actual`, and lets those who wait look again."""
        self._reserved -= worst
        self._settled += actual
        self._in_flight -= 1
        # One settlement frees room for few: waking all of thousands would make each ask the record.
        for _ in range(min(len(self._waiting), 8 if self._in_flight else len(self._waiting))):
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)

    async def _draw(self, worst: Decimal) -> None:
        began = self._clock.monotonic()
        drawn, missing = await to_its_end(self._draw_once(worst))
        for _ in range(_FETCHES):
            if drawn != 0 or self._supply is None or not await self._supply.fetch(missing):
                break
            drawn, missing = await to_its_end(self._draw_once(worst))
        self._size_draws(began)
        if drawn is None:  # another run has begun on this output: this worker's lease is void
            self._refused, self._refused_until = ZERO, math.inf
        elif drawn == 0:
            self._refused, self._refused_until = missing, self._clock.monotonic() + _ASK_AGAIN_S
        else:
            self._patient_until = None

    async def _draw_once(self, worst: Decimal) -> tuple[Decimal | None, Decimal]:
        """What was drawn from the record (None: it is another epoch's), and what was missing."""
        settled, keep = self._settled, self._lease - self._settled
        missing = worst - self._free

        def change(data: bytes | None) -> tuple[bytes | None, Decimal | None]:
            before = self._read(data)
            if self._epoch not in (None, before.epoch):
                return None, None
            self._epoch = before.epoch
            state, drawn = before.settle(self._holder, settled, keep).draw(
                self._holder, missing, worst * self._calls
            )
            self._unspent, self._known_spent = state.unspent, state.spent
            # who is refused, and has nothing to report, writes nothing: many may be
            return (None if state == before else state.to_json()), drawn

        drawn = await self._store.update(change)
        if drawn is not None:
            self._settled -= settled
            self._lease += drawn - settled
        return drawn, missing

    def _size_draws(self, began: float) -> None:
        """Draw more at a time, or less: see `sized_draw`."""
        now = self._clock.monotonic()
        self._calls = sized_draw(self._calls, took_s=now - began, between_s=began - self._drawn_at)
        self._drawn_at = now

    async def release_unused(self) -> None:
        """Reports what was settled and gives back all but what is reserved."""
        async with self._drawing:
            if self._epoch is None:
                return
            await to_its_end(self._give_back())

    async def _give_back(self) -> None:
        settled, keep = self._settled, self._reserved
        self._lease = settled + keep  # from here on nobody reserves what is being given back

        def change(data: bytes | None) -> tuple[bytes | None, bool]:
            state = self._read(data)
            if state.epoch != self._epoch:
                return None, False
            self._known_spent = state.spent + settled
            return state.settle(self._holder, settled, keep).to_json(), True

        if await self._store.update(change):
            self._lease -= settled
            self._settled -= settled


def lease_together(budgets: Sequence[LeasedBudget]) -> None:
    """Make them one worker's: where it waits at one for what others may give back, it gives back of all.

    Else two workers would wait for each other, each at one cap for what the other has leased of it and does
    not use, because it waits at another cap.
    """
    for budget in budgets:
        budget._together = budgets
