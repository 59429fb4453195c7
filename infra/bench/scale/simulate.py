"""`make simulate-scale`: how far a hosted run scales, from 1 to 2,000 workers, and what stops it first.

A discrete-event simulation, not a measurement. Workers take batches, draw leases from the budget record or
from its parts (by the code that runs do it with), seal ledger segments, write and commit; the provider allows
so many calls a second in all; some workers are preempted. Service times are measured ones where they can be
(see `Costs`), the store's are those that Cloud Storage publishes. It answers in virtual time what no machine
at hand could run.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from schemas.outcomes import ZERO
from transforms.call.budget import LARGE_DRAW, SMALL_DRAW, LeaseRecord, sized_draw
from transforms.call.budget_parts import PartState, divided, grant, noted, parts_for
from transforms.call.budget_record import BudgetState

ROWS = 4096  # of a batch (limits.batch_rows)
_SEGMENT_ROWS = 256
_REFUSED_S = 20.0  # a worker at the cap waits for so long, and its documents fail
WORKERS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


@dataclass(frozen=True, slots=True)
class Costs:
    """Service times in seconds, rates per second.

    `cpu_s` is CPU for a row on the hosted path (`make bench-calls`), `latency_s` a provider's answer,
    `in_flight` calls of a worker at a time. `write_s` is one write to the store and `record_s` the least
    time between two changes of one object (https://cloud.google.com/storage/quotas: one a second).
    `claim_s` goes by between a worker's loss and the take-over of its batch. `largest_draw` are the calls
    that a worker draws leave for at most, `cap` how many calls the budget allows, in hours of all workers
    unhindered; a call costs its worst case. `parts` of the record are as many as a run has by itself, or so
    many. After each `batches_at_once` a worker gives back what it has not used.
    """

    cpu_s: float = 0.00041
    latency_s: float = 1.0
    in_flight: int = 256
    write_s: float = 0.05
    record_s: float = 1.0
    provider_rps: float = float("inf")
    preempted_per_hour: float = 0.0
    restart_s: float = 90.0
    claim_s: float = 60.0
    largest_draw: int = LARGE_DRAW
    cap: float = 2.0
    parts: int | None = None
    batches_at_once: int | None = None

    @property
    def row_s(self) -> float:
        """Time of a row on an unhindered worker: its CPU, or its part of what is in flight."""
        return max(self.cpu_s, self.latency_s / self.in_flight)


@dataclass(slots=True)
class Outcome:
    """What came of a simulated run. `waits` are worker-seconds by what was waited for."""

    workers: int
    seconds: float
    rows: int = 0
    paid_again: int = 0
    parts: int = 1
    record_changes: int = 0
    waits: dict[str, float] = field(default_factory=dict)

    @property
    def rows_per_s(self) -> float:
        """Committed rows a second."""
        return self.rows / self.seconds

    @property
    def held_back_by(self) -> str:
        """What most time was waited for, with its part of all worker time."""
        if not self.waits:
            return "nothing"
        name, waited = max(self.waits.items(), key=lambda item: item[1])
        part = waited / (self.seconds * self.workers)
        return f"{name} ({part:.0%})" if part >= 0.005 else "nothing"


@dataclass(slots=True)
class _Worker:
    rows: int = 0
    leased: int = 0
    spent: int = 0  # of it, and not yet reported
    draw: int = SMALL_DRAW
    drawn_at: float = -1e9
    lives: int = 0


class _Queue:
    """Something that serves one after the other: a record, the provider's allowance."""

    def __init__(self) -> None:
        self.free_at = 0.0

    def serve(self, now: float, takes_s: float) -> float:
        """When a request that comes now is served."""
        self.free_at = max(now, self.free_at) + takes_s
        return self.free_at


class _Records:
    """The records of a budget, each of which takes one change after the other."""

    def __init__(self, workers: int, costs: Costs, seconds: float) -> None:
        self.count = costs.parts or parts_for(workers)
        self.changes = 0
        self._costs = costs
        whole = BudgetState(Decimal(int(costs.cap * workers * seconds / costs.row_s)), ZERO, "run")
        self._whole = divided(whole, self.count) if self.count > 1 else whole
        self._parts: list[LeaseRecord] = [PartState("run", given.granted) for given in self._whole.parts] or [
            whole
        ]
        self._queues = [_Queue() for _ in range(self.count + 1)]

    def _change(self, record: int, now: float) -> float:
        self.changes += 1
        return max(self._queues[record].serve(now, self._costs.record_s), now + self._costs.write_s)

    def settle(self, number: int, worker: _Worker, now: float, kept: int) -> float:
        """Report what a worker has spent; when that is done. It keeps so many calls of its lease."""
        part = number % self.count
        state = self._parts[part].settle(f"{number}-{worker.lives}", Decimal(worker.spent), Decimal(kept))
        self._parts[part] = state
        worker.spent, worker.leased = 0, kept
        return self._change(part, now)

    def draw(self, number: int, worker: _Worker, now: float) -> float:
        """Draw for a worker; when it has its lease, or was refused."""
        part, holder = number % self.count, f"{number}-{worker.lives}"
        least, most = Decimal(_SEGMENT_ROWS), Decimal(worker.draw)
        then = self.settle(number, worker, now, worker.leased)
        self._parts[part], drawn = self._parts[part].draw(holder, least, most)
        if drawn == 0 and self.count > 1:
            then = self._change(part, self._fetch(part, least, then))
            self._parts[part], drawn = self._parts[part].draw(holder, least, most)
        worker.leased += int(drawn)
        return then

    def _fetch(self, part: int, least: Decimal, now: float) -> float:
        """Get more for a part, from the whole or from all others."""
        mine = self._part(part)
        given = grant(self._whole, part, mine.granted, least)
        if given == self._whole:
            for other in range(self.count):
                now += self._costs.write_s  # it is read
                if self._part(other).left:
                    now = self._change(other, now)
                    self._parts[other] = self._part(other).give_back()
            told = {other: self._part(other).told for other in range(self.count)}
            given = grant(noted(self._whole, told), part, mine.granted, least)
        if given == self._whole:
            return now + self._costs.write_s
        self._whole = given
        self._parts[part] = self._part(part).receive(given.parts[part].granted)
        return self._change(self.count, now)

    def _part(self, part: int) -> PartState:
        state = self._parts[part]
        assert isinstance(state, PartState)
        return state


def simulate(workers: int, costs: Costs, seconds: float, seed: int = 0) -> Outcome:
    """Run so many workers for so long, on more batches than they can finish."""
    randomly = random.Random(seed)  # noqa: S311 - a simulation, no secret
    outcome = Outcome(workers, seconds)
    records, provider = _Records(workers, costs, seconds), _Queue()
    at_work = [_Worker() for _ in range(workers)]
    events = [(randomly.uniform(0, costs.row_s * _SEGMENT_ROWS), number, False) for number in range(workers)]
    heapq.heapify(events)
    chance = costs.preempted_per_hour / 3600
    segment_s = costs.row_s * _SEGMENT_ROWS

    def wait(name: str, until: float, since: float) -> None:
        outcome.waits[name] = outcome.waits.get(name, 0.0) + max(
            0.0, min(until, seconds) - min(since, seconds)
        )

    while events[0][0] < seconds:
        now, number, has_lease = heapq.heappop(events)
        worker = at_work[number]
        if not has_lease and worker.leased < _SEGMENT_ROWS:
            then = records.draw(number, worker, now)
            refused = worker.leased < _SEGMENT_ROWS
            wait("the cap" if refused else "the budget record", then + refused * _REFUSED_S, now)
            worker.draw = sized_draw(worker.draw, then - now, now - worker.drawn_at, costs.largest_draw)
            worker.drawn_at = then
            heapq.heappush(events, (then + refused * _REFUSED_S, number, not refused))
            continue
        allowed = provider.serve(now, _SEGMENT_ROWS / costs.provider_rps)
        done = max(allowed, now + segment_s)
        wait("the provider's rate", done, now + segment_s)
        if randomly.random() < chance * (done - now):  # its open segment is lost: paid, and paid again
            back = done + costs.claim_s + costs.restart_s
            wait("preempted workers", back, done)
            outcome.paid_again += min(_SEGMENT_ROWS, costs.in_flight)
            worker.leased = worker.spent = 0
            worker.lives += 1  # what it had leased stays so until the next run
            heapq.heappush(events, (back, number, False))
            continue
        worker.leased -= _SEGMENT_ROWS
        worker.spent += _SEGMENT_ROWS
        worker.rows += _SEGMENT_ROWS
        if (
            worker.rows % ROWS == 0
        ):  # part, commit, published name, next claim; segments were sealed meanwhile
            committed = done + 4 * costs.write_s
            wait("the store's writes", committed, done)
            outcome.rows += ROWS if committed < seconds else 0
            done = committed
            if costs.batches_at_once and worker.rows % (ROWS * costs.batches_at_once) == 0:
                done = records.settle(number, worker, committed, kept=0)
                wait("the budget record", done, committed)
        heapq.heappush(events, (done, number, False))
    outcome.parts, outcome.record_changes = records.count, records.changes
    return outcome


def table(title: str, costs: Costs, counts: Sequence[int], seconds: float) -> Iterator[str]:
    """Lines of a table: rows a second, how near to so many times one worker, and what held it back."""
    yield f"\n{title}"
    yield f"{'workers':>8} {'parts':>6} {'rows/s':>10} {'of linear':>10} {'paid again':>11}  held back by"
    for count in counts:
        found = simulate(count, costs, seconds)
        linear = count / costs.row_s
        again = found.paid_again / max(1, found.rows)
        yield (
            f"{count:>8,} {found.parts:>6} {found.rows_per_s:>10,.0f} {found.rows_per_s / linear:>10.2f}"
            f" {again:>11.4%}  {found.held_back_by}"
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of virtual time")
    parser.add_argument("--cpu-ms", type=float, default=0.41, help="CPU of a row, from make bench-calls")
    arguments = parser.parse_args()
    base = replace(Costs(), cpu_s=arguments.cpu_ms / 1000)
    many = WORKERS[6:]
    cases = {
        "No limit but our own: answers in 1 s, 256 in flight a worker": (base, WORKERS),
        "The same, with one budget record for all": (replace(base, parts=1), many),
        "The same, and unused leave is given back after every 16 batches": (
            replace(base, batches_at_once=16),
            many,
        ),
        "The same, and the budget is used up after nine tenths of the hour": (replace(base, cap=0.9), many),
        "Answers in 50 ms: a worker's core is its limit": (replace(base, latency_s=0.05), WORKERS[:8]),
        "A provider that allows 10,000 calls a second": (replace(base, provider_rps=10_000), WORKERS),
        "Spot machines, each preempted once in 10 hours": (replace(base, preempted_per_hour=0.1), WORKERS),
    }
    for title, (costs, counts) in cases.items():
        for line in table(title, costs, counts, arguments.seconds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
