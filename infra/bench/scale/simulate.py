"""`make simulate-scale`: how far a hosted run scales, from 1 to 2,000 workers, and what stops it first.

A discrete-event simulation, not a measurement. Workers take batches, draw leases from one budget record,
seal ledger segments, write and commit; the provider allows so many calls a second in all; some workers are
preempted. Service times are measured ones where they can be (see `Costs`), the store's are those that
Cloud Storage publishes. It answers in virtual time what no machine at hand could run.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from transforms.call.budget import LARGE_DRAW, SMALL_DRAW, sized_draw

ROWS = 4096  # of a batch (limits.batch_rows)
_SEGMENT_ROWS = 256
WORKERS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


@dataclass(frozen=True, slots=True)
class Costs:
    """Service times in seconds, rates per second.

    `cpu_s` is CPU for a row on the hosted path (`make bench-calls`), `latency_s` a provider's answer,
    `in_flight` calls of a worker at a time. `write_s` is one write to the store and `record_s` the least
    time between two changes of one object (https://cloud.google.com/storage/quotas: one a second).
    `claim_s` goes by between a worker's loss and the take-over of its batch. `largest_draw` are the calls
    that a worker draws leave for at most.
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
    draw: int = SMALL_DRAW
    drawn_at: float = -1e9


class _Queue:
    """Something that serves one after the other: the budget record, the provider's allowance."""

    def __init__(self) -> None:
        self.free_at = 0.0

    def serve(self, now: float, takes_s: float) -> float:
        """When a request that comes now is served."""
        self.free_at = max(now, self.free_at) + takes_s
        return self.free_at


def simulate(workers: int, costs: Costs, seconds: float, seed: int = 0) -> Outcome:
    """Run so many workers for so long, on more batches than they can finish."""
    randomly = random.Random(seed)  # noqa: S311 - a simulation, no secret
    outcome = Outcome(workers, seconds)
    record, provider = _Queue(), _Queue()
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
            then = max(record.serve(now, costs.record_s), now + costs.write_s)
            wait("the budget record", then, now)
            worker.draw = sized_draw(worker.draw, then - now, now - worker.drawn_at, costs.largest_draw)
            worker.drawn_at = then
            worker.leased += worker.draw
            outcome.record_changes += 1
            heapq.heappush(events, (then, number, True))
            continue
        allowed = provider.serve(now, _SEGMENT_ROWS / costs.provider_rps)
        done = max(allowed, now + segment_s)
        wait("the provider's rate", done, now + segment_s)
        if randomly.random() < chance * (done - now):  # its open segment is lost: paid, and paid again
            back = done + costs.claim_s + costs.restart_s
            wait("preempted workers", back, done)
            outcome.paid_again += min(_SEGMENT_ROWS, costs.in_flight)
            worker.leased = 0
            heapq.heappush(events, (back, number, False))
            continue
        worker.leased -= _SEGMENT_ROWS
        worker.rows += _SEGMENT_ROWS
        if (
            worker.rows % ROWS == 0
        ):  # part, commit, published name, next claim; segments were sealed meanwhile
            committed = done + 4 * costs.write_s
            wait("the store's writes", committed, done)
            outcome.rows += ROWS if committed < seconds else 0
            done = committed
        heapq.heappush(events, (done, number, False))
    return outcome


def table(title: str, costs: Costs, counts: Sequence[int], seconds: float) -> Iterator[str]:
    """Lines of a table: rows a second, how near to so many times one worker, and what held it back."""
    yield f"\n{title}"
    yield f"{'workers':>8} {'rows/s':>10} {'of linear':>10} {'paid again':>11}  held back by"
    for count in counts:
        found = simulate(count, costs, seconds)
        linear = count / costs.row_s
        again = found.paid_again / max(1, found.rows)
        yield (
            f"{count:>8,} {found.rows_per_s:>10,.0f} {found.rows_per_s / linear:>10.2f} {again:>11.4%}"
            f"  {found.held_back_by}"
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of virtual time")
    parser.add_argument("--cpu-ms", type=float, default=0.41, help="CPU of a row, from make bench-calls")
    arguments = parser.parse_args()
    base = replace(Costs(), cpu_s=arguments.cpu_ms / 1000)
    cases = {
        "No limit but our own: answers in 1 s, 256 in flight a worker": base,
        "The same, answers in 50 ms: a worker's core is its limit": replace(base, latency_s=0.05),
        "A provider that allows 10,000 calls a second": replace(base, provider_rps=10_000),
        "Spot machines, each preempted once in 10 hours": replace(base, preempted_per_hour=0.1),
    }
    for title, costs in cases.items():
        for line in table(title, costs, WORKERS, arguments.seconds):
            print(line)


if __name__ == "__main__":
    main()
