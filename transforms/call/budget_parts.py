"""A cap in several parts, each a record of its own: for more workers than one record can serve.

An object in a bucket takes about one change a second, so hundreds of workers can't share one. The record of
the whole cap then gives amounts to parts, and each worker leases from one of those, as it would from the
whole. Money moves between the two by counters that only grow: the whole says what it has `granted` to a
part, the part what it has `returned`, and each takes the other's number in when it sees it. So

- what a part has taken in and not given back is never more than what the whole has given it and not got
  back: no part of the cap is there twice, whoever stops wherever;
- what was on its way when somebody stopped is taken in by whoever looks next: none is lost;
- taking in the same number again changes nothing: a write may be repeated.

Half of what is left stays with the whole. A worker that finds too little in its part has more given to that;
when the whole has too little too, it has every part give back what is leased to nobody. So a call is refused
only when all parts together have too little for it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial

import orjson

from schemas.errors import StoreError
from schemas.outcomes import ZERO, money
from transforms.call.budget import LeasedBudget
from transforms.call.budget_record import BudgetState, Grant, drawn, kept, lease_of
from transforms.call.ports import BudgetRecordStore, Clock

PART_VERSION = "budget-part/1"
WORKERS_OF_A_PART = 50  # that one record serves without holding them up (`make simulate-scale`),
WORKERS_OF_ONE_RECORD = 100  # and as many as are not worth a second one
_SEARCH_S = 0.125  # a part: so many seconds at least between two searches of all of them


def parts_for(workers: int) -> int:
    """In how many parts a cap is that so many workers share."""
    return 1 if workers <= WORKERS_OF_ONE_RECORD else -(-workers // WORKERS_OF_A_PART)


def part_of(holder: str, parts: int) -> int:
    """The part that a worker leases from."""
    return zlib.crc32(holder.encode()) % parts


@dataclass(frozen=True, slots=True)
class PartState:
    """The record of a part, in the run whose epoch is `opened_in`: `own + leases + returned <= granted`.

    `own` is what its workers have spent. Once `closed_by` a later run, nothing more is leased from it.
    `cap` and `elsewhere` are not in the record: the whole cap, and what its reader knows to have been spent
    outside of this part.
    """

    opened_in: str
    granted: Decimal = ZERO
    returned: Decimal = ZERO
    own: Decimal = ZERO
    leases: dict[str, Decimal] = field(default_factory=dict)
    closed_by: str = ""
    cap: Decimal = ZERO
    elsewhere: Decimal = ZERO

    @property
    def epoch(self) -> str:
        """The run that may lease from it; none once it is closed."""
        return "" if self.closed_by else self.opened_in

    @property
    def spent(self) -> Decimal:
        """By all workers of the cap, as far as the reader knows."""
        return self.elsewhere + self.own

    @property
    def unspent(self) -> Decimal:
        """What could at most be leased if every lease of every part were given back."""
        return self.cap - self.spent

    @property
    def used(self) -> Decimal:
        """What its workers have spent, or may have spent without saying so."""
        return self.own + sum(self.leases.values(), ZERO)

    @property
    def left(self) -> Decimal:
        """What may still be leased; not negative."""
        return max(ZERO, self.granted - self.returned - self.used)

    @property
    def told(self) -> Grant:
        """What the part says to the whole."""
        return Grant(self.granted, self.returned, self.own)

    def settle(self, holder: str, settled: Decimal, keep: Decimal) -> PartState:
        """See `BudgetState.settle`."""
        return replace(self, own=self.own + settled, leases=kept(self.leases, holder, keep))

    def draw(self, holder: str, least: Decimal, most: Decimal) -> tuple[PartState, Decimal]:
        """See `BudgetState.draw`."""
        leases, amount = drawn(self.leases, self.left, holder, least, most)
        return replace(self, leases=leases), amount

    def receive(self, granted: Decimal) -> PartState:
        """Take in what the whole has given so far."""
        return replace(self, granted=max(self.granted, granted))

    def give_back(self) -> PartState:
        """Give back all that is leased to nobody."""
        return replace(self, returned=self.returned + self.left)

    def to_json(self) -> bytes:
        """The record's bytes."""
        return orjson.dumps(
            {
                "version": PART_VERSION,
                "epoch": self.opened_in,
                "granted": str(self.granted),
                "returned": str(self.returned),
                "spent": str(self.own),
                "leases": {holder: str(amount) for holder, amount in self.leases.items()},
                "closed_by": self.closed_by,
            }
        )

    @classmethod
    def from_json(cls, data: bytes | None) -> PartState:
        """The record behind bytes; StoreError when there is none, or another version's."""
        try:
            values = orjson.loads(data or b"null")
            if values["version"] != PART_VERSION:
                raise ValueError(values["version"])
            return cls(
                opened_in=values["epoch"],
                granted=money(values["granted"]),
                returned=money(values["returned"]),
                own=money(values["spent"]),
                leases={holder: money(amount) for holder, amount in values["leases"].items()},
                closed_by=values["closed_by"],
            )
        except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError):
            raise StoreError(
                "a part of the budget record is missing or can't be read: it is written when a run starts; "
                "start the run again"
            ) from None


def closed(found: PartState | None, epoch: str, by: str) -> PartState:
    """A part of the run `epoch` as it stood, from which nothing more is leased: the run `by` begins.

    Empty where what was `found` is of a run before: what that one had spent was counted when `epoch` began.
    """
    state = PartState(epoch) if found is None or found.opened_in != epoch else found
    return replace(state, closed_by=by)


def divided(state: BudgetState, parts: int) -> BudgetState:
    """The record of a cap in so many new parts, each of which is given its even share."""
    return replace(state, parts=(Grant(_share(state.left, parts, ZERO)),) * parts)


def _share(left: Decimal, parts: int, least: Decimal) -> Decimal:
    """What one of so many parts gets that needs `least`: its even share of half of what is left."""
    return lease_of(left, least, left / (2 * parts))


def grant(state: BudgetState, part: int, seen: Decimal, least: Decimal) -> BudgetState:
    """More for a part: `least`, or its even share of half of what is left.

    Nothing when less than `least` is left, or when the part has been given what whoever asks has not `seen`
    in it yet: others of its workers were faster.
    """
    given = state.parts[part]
    if given.granted > seen or least > state.left:
        return state
    share = _share(state.left, len(state.parts), least)
    return _with(state, part, replace(given, granted=given.granted + share))


def noted(state: BudgetState, told: Mapping[int, Grant]) -> BudgetState:
    """Take in what parts say that they have given back, and spent."""
    for part, says in told.items():
        known = state.parts[part]
        returned, spent = max(known.returned, says.returned), max(known.spent, says.spent)
        state = _with(state, part, replace(known, returned=returned, spent=spent))
    return state


def _with(state: BudgetState, part: int, given: Grant) -> BudgetState:
    return replace(state, parts=(*state.parts[:part], given, *state.parts[part + 1 :]))


class PartSupply:
    """What a worker knows of a cap in parts, and how its own part gets more. Used on one event loop.

    `state` is the record of the whole as the worker found it.
    """

    def __init__(
        self,
        whole: BudgetRecordStore,
        parts: Sequence[BudgetRecordStore],
        mine: int,
        state: BudgetState,
        clock: Clock,
    ) -> None:
        self._whole = whole
        self._parts = parts
        self._mine = mine
        self._state = state
        self._clock = clock
        self._told = Grant()  # by the worker's part, when it was last read
        self._searched_at = -math.inf

    def read(self, data: bytes | None) -> PartState:
        """The worker's part, with what it has been given since."""
        part = PartState.from_json(data)
        if part.epoch != self._state.epoch:  # another run's, whose numbers mean nothing here
            return part
        others = (given.spent for number, given in enumerate(self._state.parts) if number != self._mine)
        elsewhere = self._state.spent + sum(others, ZERO)
        part = replace(part, cap=self._state.cap, elsewhere=elsewhere).receive(self._granted(self._mine))
        self._told = part.told
        return part

    async def fetch(self, least: Decimal) -> bool:
        """See `Supply`: more from the whole, if need be after all parts gave back what they could."""
        if await self._ask({self._mine: self._told}, least):
            return True
        now = self._clock.monotonic()
        if now < self._searched_at + _SEARCH_S * len(self._parts):
            return False
        self._searched_at = now
        told = {}
        for part, record in enumerate(self._parts):
            says = await record.update(partial(self._give_back, part=part))
            if says is None:
                return False
            told[part] = says
        self._told = told[self._mine]
        return await self._ask(told, least)

    @property
    def searched_at(self) -> float:
        """See `Supply`."""
        return self._searched_at

    def _granted(self, part: int) -> Decimal:
        return self._state.parts[part].granted

    async def _ask(self, told: Mapping[int, Grant], least: Decimal) -> bool:
        """Tell the whole what parts say, and ask for more; whether there is what was not seen yet."""

        def change(data: bytes | None) -> tuple[bytes | None, BudgetState | None]:
            before = BudgetState.from_json(data)
            if before.epoch != self._state.epoch:
                return None, None
            state = grant(noted(before, told), self._mine, self._told.granted, least)
            moved = any((a.granted, a.returned) != (b.granted, b.returned) for a, b in _pairs(before, state))
            return state.to_json() if moved else None, state

        state = await self._whole.update(change)
        if state is None:
            return False
        self._state = state
        return self._granted(self._mine) > self._told.granted

    def _give_back(self, data: bytes | None, part: int) -> tuple[bytes | None, Grant | None]:
        state = PartState.from_json(data)
        if state.epoch != self._state.epoch:
            return None, None
        state = state.receive(self._granted(part))
        if state.left == 0:
            return None, state.told
        state = state.give_back()
        return state.to_json(), state.told


def _pairs(before: BudgetState, after: BudgetState) -> Iterable[tuple[Grant, Grant]]:
    return zip(before.parts, after.parts, strict=True)


def lease_from_part(
    whole: BudgetRecordStore,
    parts: Sequence[BudgetRecordStore],
    mine: int,
    state: BudgetState,
    holder: str,
    clock: Clock,
    *,
    patience_s: float,
    sentence: str = "",
) -> LeasedBudget:
    """A worker's leases on one of the parts of a cap, whose record `whole` was found as `state`."""
    supply = PartSupply(whole, parts, mine, state, clock)
    return LeasedBudget(
        parts[mine],
        holder,
        clock,
        state.cap,
        read=supply.read,
        epoch=state.epoch,
        sentence=sentence,
        patience_s=patience_s,
        supply=supply,
    )
