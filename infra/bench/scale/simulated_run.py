"""A run of many workers in virtual time."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

from infra.bench.scale.inputs import Costs
from infra.bench.scale.shared_store import Allowance, Bucket, Records
from infra.bench.scale.simulated_worker import SimulatedWorker, World


@dataclass(slots=True)
class Outcome:
    """What came of a simulated run. `waits` are worker-seconds by what was waited for."""

    workers: int
    seconds: float
    row_s: float
    rows: int = 0
    paid_again: int = 0
    preempted: int = 0
    parts: int = 1
    record_changes: int = 0
    changes_tried_again: int = 0
    waits: dict[str, float] = field(default_factory=dict)

    @property
    def rows_per_s(self) -> float:
        """Committed rows a second."""
        return self.rows / self.seconds

    @property
    def of_linear(self) -> float:
        """Committed rows, as a part of what as many unhindered workers would have done."""
        return self.rows_per_s * self.row_s / self.workers

    @property
    def held_back_by(self) -> str:
        """The two things that most worker time went into, and how much; nothing below half a percent."""
        return self._longest(self.waits)

    def more_than(self, other: Outcome) -> str:
        """The same of what it has waited for more than the other."""
        theirs = {name: other._part(waited) for name, waited in other.waits.items()}
        mine = {name: self._part(waited) for name, waited in self.waits.items()}
        grown = {n: (part - theirs.get(n, 0.0)) * self.seconds * self.workers for n, part in mine.items()}
        return self._longest(grown, most=1)

    def _part(self, waited: float) -> float:
        return waited / (self.seconds * self.workers)

    def _longest(self, waits: dict[str, float], most: int = 2) -> str:
        parts = sorted(((self._part(waited), name) for name, waited in waits.items()), reverse=True)
        found = [f"{name} {part:.0%}" for part, name in parts[:most] if part >= 0.005]
        return ", ".join(found) or "nothing"


def simulate(workers: int, costs: Costs, seconds: float, seed: int = 0) -> Outcome:
    """Run so many workers for so long, on more batches than they can finish.

    All begin within a segment's time, which is the hardest that there is for what they share. The same
    arguments give the same outcome.
    """
    randomly = random.Random(f"{seed} {workers}")  # noqa: S311 - a simulation, no secret
    bucket = Bucket(workers, costs, randomly)
    records = Records(workers, costs, seconds, bucket, randomly)
    provider = None if costs.provider_rps == float("inf") else Allowance(costs.provider_rps)
    world = World(costs, seconds, records, bucket, provider, randomly)
    at_work = [SimulatedWorker(number, world) for number in range(workers)]
    queue = []
    for number, worker in enumerate(at_work):
        work = worker.work(randomly.uniform(0, costs.row_s * costs.segment_rows))
        queue.append((next(work), number, work))
    heapq.heapify(queue)
    while queue[0][0] < seconds:
        _, number, work = queue[0]
        heapq.heapreplace(queue, (next(work), number, work))
    for worker in at_work:
        worker.end()
    return Outcome(
        workers=workers,
        seconds=seconds,
        row_s=costs.row_s,
        rows=world.rows,
        paid_again=world.paid_again,
        preempted=world.preempted,
        parts=records.count,
        record_changes=records.changes,
        changes_tried_again=records.refused + records.lost,
        waits=dict(world.waits),
    )
