"""A worker of the simulation: draws leave, calls, seals, commits, and is preempted now and then."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from dataclasses import dataclass, field
from decimal import Decimal
from math import inf, isfinite

from infra.bench.scale.inputs import BATCH_WRITES, REFUSED_S, Costs
from infra.bench.scale.shared_store import Allowance, Bucket, Records, Waits
from transforms.call.budget import SMALL_DRAW, LeaseRecord, sized_draw
from transforms.call.budget_parts import PartState, grant, noted
from transforms.call.budget_record import BudgetState, Grant
from transforms.call.segments import SEAL_S

PROVIDER, RECORD, CAP = "the provider's limit", "the budget record", "the cap"
BUCKET, STORE = "the bucket's write rate", "the store's latency"
PREEMPTED = "preempted workers"
_NO_CAP = 1 << 62
_FETCHES = 3  # as `LeasedBudget` does
_SEARCH_S = 0.125  # as `PartSupply` does


@dataclass(slots=True)
class World:
    """What the workers of a simulated run share, and what is counted of them. `waits` are worker-seconds."""

    costs: Costs
    seconds: float
    records: Records
    bucket: Bucket
    provider: Allowance | None
    randomly: random.Random
    rows: int = 0
    paid_again: int = 0
    preempted: int = 0
    waits: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def wait(self, name: str, since: float, until: float) -> None:
        """Note that a worker waited."""
        self.waits[name] += max(0.0, min(until, self.seconds) - since)


class _Ledger:
    """A worker's open ledger: what is in flight, what has ended, and what of it is sealed. See ADR 018."""

    def __init__(self, world: World) -> None:
        self._world, self._bucket = world, world.bucket
        self._rows = world.costs.segment_rows
        self._window = 2 * self._rows
        self._latency_s = world.costs.latency_s
        self._ending: deque[float] = deque()
        self._unsealed = self._pending = self._uploading = 0
        self._uploaded_at = 0.0
        self._writes = 1
        self.waits_for = BUCKET

    @property
    def open_rows(self) -> int:
        """Rows that are in flight, or have ended unsealed."""
        return self._unsealed + self._rows * len(self._ending)

    def sent(self, now: float, took_s: float) -> float:
        """A segment's worth of calls has been sent; until when no further one is."""
        self._ending.append(now + self._latency_s)
        # what trickles in is sealed before there is a segment of it
        self._writes = 1 if took_s < SEAL_S else 1 + int(took_s / SEAL_S)
        return self._seal(now)

    def room(self, now: float, full_until: float) -> Waits[float]:
        """When calls are sent again."""
        while full_until > now:
            self._world.wait(self.waits_for, now, full_until)
            yield full_until
            now = full_until
            full_until = self._seal(now)
        return now

    def _seal(self, now: float) -> float:
        """Seal what has ended, one segment after the other; until when no call is sent."""
        ending = self._ending
        while ending and ending[0] <= now:
            ending.popleft()
            self._unsealed += self._rows
            self._pending += self._rows
        if self._uploading and self._uploaded_at <= now:
            self._unsealed -= self._uploading
            self._uploading = 0
        if self._pending and not self._uploading:
            self._uploading, self._pending = self._pending, 0
            self._uploaded_at = self._bucket.write(now, self._writes)
            is_crowded = 2 * self._bucket.queued_s > self._uploaded_at - now
            self.waits_for = BUCKET if is_crowded else STORE
        return self._uploaded_at if self._unsealed >= self._window else now


class SimulatedWorker:
    """One of them. `work` never ends; the run's clock does."""

    def __init__(self, number: int, world: World) -> None:
        self._number = number
        self._world = world
        self._leased = self._at_first = 0 if isfinite(world.costs.cap) else _NO_CAP
        self._spent = 0  # of it, and not yet reported
        self._draw = SMALL_DRAW
        self._drawn_at = -inf
        self._lives = self._batches = 0
        self._committed_at = 0.0
        self._search_at = 0.0
        self._waits_since: float | None = None  # for a record
        self._whole = world.records.whole
        self._told = Grant()

    def end(self) -> None:
        """The time is up: note what it still waits for."""
        if self._waits_since is not None:
            self._world.wait(RECORD, self._waits_since, self._world.seconds)

    def work(self, now: float) -> Waits[None]:
        """Work from now on, on more batches than there is time for, a segment's worth of calls at a time."""
        world, costs = self._world, self._world.costs
        segment, batch_rows = costs.segment_rows, costs.batch_rows
        segment_s = segment * costs.row_s
        provider, randomly = world.provider, world.randomly.random
        chance = costs.preempted_per_hour / 3600
        ledger, rows = _Ledger(world), 0
        yield now
        while True:
            if self._leased < segment:
                now = yield from self._draws(now)
            done = now + segment_s
            if provider is not None:
                allowed = provider.serve(now, segment)
                if allowed > done:
                    world.wait(PROVIDER, done, allowed)
                    done = allowed
            if chance and randomly() < chance * (done - now):
                now = yield from self._preempted(now + randomly() * (done - now), ledger.open_rows, rows)
                ledger = _Ledger(world)
                continue
            yield done
            full_until = ledger.sent(done, done - now)
            now = done
            if full_until > now:
                now = yield from ledger.room(now, full_until)
            self._leased -= segment
            self._spent += segment
            rows += segment
            if rows >= batch_rows:
                now = yield from self._commits(now, ledger.waits_for)
                rows = 0

    def _commits(self, now: float, waits_for: str) -> Waits[float]:
        """A batch's calls are sent: it is committed while the next one's are; when they are sent."""
        world, costs = self._world, self._world.costs
        if self._committed_at > now:  # the batch before is still being written: there is no third one
            world.wait(waits_for, now, self._committed_at)
            yield self._committed_at
            now = self._committed_at
        written = world.bucket.write(now, BATCH_WRITES)
        written += sum(world.bucket.takes_s() for _ in range(BATCH_WRITES - 1))
        self._committed_at = written + costs.latency_s
        self._batches += 1
        if self._committed_at < world.seconds:
            world.rows += costs.batch_rows
        if costs.batches_at_once and self._batches % costs.batches_at_once == 0:
            since = now
            now = yield from self._gives_back(now)
            world.wait(RECORD, since, now)
        return now

    def _preempted(self, now: float, open_rows: int, rows: int) -> Waits[float]:
        """Lost at an instant, with all that was in flight or not sealed; when it works again.

        What is in flight is billed and never recorded; its leases stay taken until the run has ended. Another
        machine reads the ledger, segment after segment, and goes on where that ends.
        """
        world, costs = self._world, self._world.costs
        world.paid_again += open_rows
        world.preempted += 1
        self._leased, self._spent = self._at_first, 0
        self._lives += 1
        self._draw, self._committed_at = SMALL_DRAW, 0.0
        back = now + costs.takeover_s + costs.restart_s
        back += sum(world.bucket.takes_s() for _ in range(rows // costs.segment_rows + 1))
        world.wait(PREEMPTED, now, back)
        yield back
        return back

    def _draws(self, now: float) -> Waits[float]:
        """Draw leave for at least a segment; when it has it."""
        segment = self._world.costs.segment_rows
        while self._leased < segment:
            began = self._waits_since = now
            now, drawn = yield from self._draw_once(now)
            for _ in range(_FETCHES):
                if drawn or self._world.records.count == 1:
                    break
                now, is_more = yield from self._fetch(now)
                if not is_more:
                    break
                now, drawn = yield from self._draw_once(now)
            largest = self._world.costs.largest_draw
            self._draw = sized_draw(self._draw, now - began, began - self._drawn_at, largest)
            self._drawn_at, self._waits_since = now, None
            if self._leased >= segment:
                self._world.wait(RECORD, began, now)
            else:
                self._world.wait(CAP, began, now + REFUSED_S)
                now += REFUSED_S
                yield now
        return now

    @property
    def _holder(self) -> str:
        return f"{self._number}-{self._lives}"

    @property
    def _mine(self) -> int:
        return self._number % self._world.records.count

    def _draw_once(self, now: float) -> Waits[tuple[float, int]]:
        """See `LeasedBudget`: report what is spent, and draw; when, and how much."""
        least, most = Decimal(self._world.costs.segment_rows), Decimal(self._draw)
        holder, spent, kept = self._holder, Decimal(self._spent), Decimal(self._leased)

        def change(state: LeaseRecord) -> tuple[LeaseRecord, Decimal]:
            return self._seen(state).settle(holder, spent, kept).draw(holder, least, most)

        now, drawn = yield from self._world.records.change_part(self._number, now, change)
        self._spent = 0
        self._leased += int(drawn)
        return now, int(drawn)

    def _gives_back(self, now: float) -> Waits[float]:
        """See `LeasedBudget.release_unused`."""
        spent, self._spent, self._leased = Decimal(self._spent), 0, 0

        def change(state: LeaseRecord) -> tuple[LeaseRecord, None]:
            return self._seen(state).settle(self._holder, spent, Decimal(0)), None

        now, _ = yield from self._world.records.change_part(self._number, now, change)
        return now

    def _seen(self, state: LeaseRecord) -> LeaseRecord:
        """A record as its reader takes it: a part with what it was given since."""
        if isinstance(state, PartState):
            state = state.receive(self._whole.parts[self._mine].granted)
            self._told = state.told
        return state

    def _fetch(self, now: float) -> Waits[tuple[float, bool]]:
        """See `PartSupply.fetch`: more for its part, if need be after all parts gave back what they could."""
        now, is_more = yield from self._ask(now, {self._mine: self._told})
        if is_more or now < self._search_at:
            return now, is_more
        records = self._world.records
        self._search_at = now + _SEARCH_S * records.count
        told = {}
        for part in range(records.count):
            granted = self._whole.parts[part].granted

            def give_back(state: LeaseRecord, granted: Decimal = granted) -> tuple[LeaseRecord, Grant]:
                assert isinstance(state, PartState)
                after = state.receive(granted)
                return (after.give_back(), after.give_back().told) if after.left else (state, after.told)

            now, told[part] = yield from records.change_part(part, now, give_back)
        self._told = told[self._mine]
        return (yield from self._ask(now, told))

    def _ask(self, now: float, told: dict[int, Grant]) -> Waits[tuple[float, bool]]:
        """Tell the whole what parts say, and ask for more; when, and whether there is what was not seen."""
        least = Decimal(self._world.costs.segment_rows)

        def change(before: BudgetState) -> tuple[BudgetState, BudgetState]:
            state = grant(noted(before, told), self._mine, self._told.granted, least)
            pairs = zip(before.parts, state.parts, strict=True)
            moved = any((a.granted, a.returned) != (b.granted, b.returned) for a, b in pairs)
            return state if moved else before, state

        now, self._whole = yield from self._world.records.change_whole(now, change)
        return now, self._whole.parts[self._mine].granted > self._told.granted
