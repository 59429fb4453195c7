"""Reading the chosen batches, and measuring a sample of each route's documents in them.

What is measured of a document are sizes and a digest, never its text: so memory is bounded by one batch
and a few numbers for each document of the sample.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from decimal import Decimal

import pyarrow as pa

from schemas.batches import BatchRef
from schemas.errors import BatchError
from transforms.batchmode.tickets import waiting_pairs
from transforms.call.ledger import fold, scan
from transforms.call.ledgers import read_ledger
from transforms.decide import decide
from transforms.plan import DueWork
from transforms.previous import load_previous
from transforms.quote.population import Frame, Population
from transforms.read import BatchReader
from transforms.route import Rules
from transforms.store import Store

_LEAST_VALUES = 2  # of a batch: with one value its spread is not known


@dataclass(frozen=True, slots=True)
class Measured:
    """The sizes of one document on its route.

    Hosted: `text_bytes` of system text, prompt and JSON Schema; for each backend of its chain `body_bytes`
    as it is sent and `worst`, what the budget reserves (None without a price), and `request`, the digest
    by which identical requests to the first backend are known. Embedded: `tokens` after the cut at the
    model's maximum.
    """

    chain: tuple[str, ...]
    text_bytes: int = 0
    body_bytes: tuple[int, ...] = ()
    worst: tuple[Decimal | None, ...] = ()
    tokens: int = 0
    request: str = ""


Measure = Callable[[Sequence[tuple[str, ...]], pa.Table, Sequence[int]], list[Measured | None]]
"""Chains of some rows of a table, and their positions, to their sizes; None for one that is not sent."""


@dataclass(frozen=True, slots=True)
class Observed:
    """A batch that was read for a route: its size in the frame, its documents, those that were measured."""

    size: int
    members: int
    measured: tuple[Measured | None, ...]


@dataclass(slots=True)
class Sample:
    """All that was read. `observed` is by route; `not_sent` counts documents by failure class."""

    observed: dict[str, list[Observed]] = field(default_factory=lambda: defaultdict(list))
    not_sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    recorded: int = 0
    batches_read: int = 0
    rows_read: int = 0
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws the sample; the same one for the same input, workload, seed and size.

    `per_route` documents are measured for a route, a few more where batches are many; `store` is the
    output, or None for an empty one.
    """

    work: DueWork
    rules: Rules
    store: Store | None
    population: Population
    measures: Mapping[str, Measure]
    per_route: int
    seed: int

    def draw(self) -> Sample:
        """Read the chosen batches one after the other."""
        sample = Sample()
        reader = BatchReader(self.work.found.schema)
        try:
            for ref, wanted in self._wanted():
                self._read(sample, reader, ref, wanted)
        finally:
            reader.close()
        return sample

    def _wanted(self) -> list[tuple[BatchRef, dict[str, int]]]:
        """The batches to read in input order, each with the routes that it is read for, and their sizes."""
        wanted: dict[int, dict[str, int]] = defaultdict(dict)
        for name, frame in self.population.frames.items():
            for index in frame.chosen:
                wanted[int(frame.numbers[index])][name] = int(frame.sizes[index])
        return [(self.work.refs[number], wanted[number]) for number in sorted(wanted)]

    def _read(self, sample: Sample, reader: BatchReader, ref: BatchRef, wanted: Mapping[str, int]) -> None:
        sample.batches_read += 1
        try:
            table = reader.read(ref)
        except BatchError as error:  # a run will not pay for it either
            sample.unreadable.append(str(error))
            for route, size in wanted.items():
                sample.observed[route].append(Observed(size, 0, ()))
            return
        batch = decide(self.rules, ref, table, load_previous(self.store, ref))
        sample.rows_read += table.num_rows
        for outcome in batch.outcomes:
            sample.not_sent[str(outcome.failure)] += 1
        answered, waiting = self._answered(ref), self._waiting(ref)
        for route, size in wanted.items():
            taken = [(p, a) for p, a in batch.take(frozenset({route})) if (a.row, route) not in waiting]
            due = [(p, a.chain) for p, a in taken if (a.row, route) not in answered]
            sample.recorded += len(taken) - len(due)
            count = self._quota(self.population.frames[route], size)
            measured = self._measure(batch.table, ref, route, due, count)
            sample.not_sent["prompt_error"] += self._share_of_failed(measured, len(due))
            sample.observed[route].append(Observed(size, len(due), measured))

    def _measure(
        self,
        table: pa.Table,
        ref: BatchRef,
        route: str,
        due: Sequence[tuple[int, tuple[str, ...]]],
        count: int,
    ) -> tuple[Measured | None, ...]:
        draw = random.Random(f"{self.seed}\0{ref.batch_id}\0{route}")  # noqa: S311 - a sample, no secret
        picked = [due[i] for i in sorted(draw.sample(range(len(due)), min(len(due), count)))]
        measure = self.measures[route]
        return tuple(measure([chain for _, chain in picked], table, [position for position, _ in picked]))

    def _quota(self, frame: Frame, size: int) -> int:
        """A batch's part of the route's sample, by its size."""
        return max(_LEAST_VALUES, -(-self.per_route * size // max(1, frame.chosen_size)))

    def _answered(self, ref: BatchRef) -> set[tuple[int, str]]:
        """Pairs answered in the ledger, by an attempt that was not committed: they are replayed for free."""
        if self.store is None:
            return set()
        data = read_ledger(self.store, ref.batch_id)
        calls = fold(scan(data or b"")[0], ref.batch_id).calls.values()
        return {(c.row, c.route) for c in calls if c.end == "answered" and c.attempt >= ref.attempt}

    def _waiting(self, ref: BatchRef) -> Set[tuple[int, str]]:
        """Pairs that are in a provider's batch: their answers come to a later run."""
        return frozenset() if self.store is None else waiting_pairs(self.store, ref.batch_id)

    @staticmethod
    def _share_of_failed(measured: Sequence[Measured | None], members: int) -> int:
        failed = sum(m is None for m in measured)
        return round(members * failed / len(measured)) if failed else 0
