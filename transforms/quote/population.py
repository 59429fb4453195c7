"""Which batches may hold a route's documents, how large each is, and which of them are read."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from schemas.batches import BatchRef
from schemas.errors import BatchError
from transforms.batch_refs import Rows
from transforms.expressions import evaluate
from transforms.plan import DueWork
from transforms.previous import Previous, load_previous
from transforms.quote.values import Routing
from transforms.read import BatchReader
from transforms.route import Rules
from transforms.store import Store

MOST_BATCHES = 64
"""Batches that are read for one route; where there are no more, every row is routed."""
_SURVEY_ROWS = 5_000_000
_SURVEY_BATCHES = 20_000
_SURVEY_TEXT_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """The batches in which documents of a route may stand, and those of them that are chosen to be read.

    `numbers` count the batches that are due from 0; `chosen` are indexes of them. `sizes` are known exactly
    for all of them: rows, or documents that the conditions send to the route.
    """

    numbers: Rows
    sizes: Rows
    chosen: tuple[int, ...]

    @property
    def batches(self) -> int:
        """How many there are."""
        return len(self.numbers)

    @property
    def size(self) -> int:
        """Sum of all sizes."""
        return int(self.sizes.sum())

    @property
    def chosen_size(self) -> int:
        """Sum of the sizes of the batches that are read."""
        return int(self.sizes[list(self.chosen)].sum())


@dataclass(frozen=True, slots=True)
class Population:
    """One frame a route, and how it came about."""

    frames: dict[str, Frame]
    routing: Routing
    sentence: str


def find_population(work: DueWork, rules: Rules, store: Store | None, seed: int) -> Population:
    """Choose the batches to read, the same ones for the same input and seed.

    Few batches are all read. Else the conditions are evaluated on every row where that is cheap
    (their columns alone are read), so that each route's documents are known but for faulty ones, and
    each route gets batches of its own; or else one sample of batches serves all routes.
    """
    names = [route.name for route in rules.workload.routes]
    count = len(work.refs)
    if count <= MOST_BATCHES:
        frame = Frame(np.arange(count), work.rows, tuple(range(count)))
        return Population(dict.fromkeys(names, frame), "every row", "every row that is due was routed")
    if _is_cheap(work, rules):
        sizes = _survey(work, rules, store)
        frames = {name: _frame(np.array(sizes[name], np.int64), seed) for name in names}
        sentence = (
            "the routes' conditions were evaluated on every row that is due; what is faulty or rejected "
            "after that is estimated from the batches that were read"
        )
        return Population(frames, "conditions on every row", sentence)
    frame = _frame(work.rows, seed)
    sentence = f"rows were routed in {len(frame.chosen):,} of {count:,} batches that are due"
    return Population(dict.fromkeys(names, frame), "sample", sentence)


def _frame(sizes: Rows, seed: int) -> Frame:
    """The batches that hold anything; routes with the same batches read the same ones."""
    numbers = np.flatnonzero(sizes)
    return Frame(numbers, sizes[numbers], choose(len(numbers), MOST_BATCHES, seed))


def choose(count: int, most: int, seed: int) -> tuple[int, ...]:
    """At most `most` of the indexes below `count`: one at random from each of as many equal stretches."""
    draw = random.Random(f"batches\0{seed}")  # noqa: S311 - a sample, no secret
    strata = min(count, most)
    return tuple(draw.randrange(i * count // strata, (i + 1) * count // strata) for i in range(strata))


def _expression_columns(rules: Rules) -> list[str]:
    conditions = [*rules.routes, *rules.rejections, *([rules.row_filter] if rules.row_filter else [])]
    return sorted({column for condition in conditions for column in condition.columns})


def _is_cheap(work: DueWork, rules: Rules) -> bool:
    rows = int(work.refs.row_counts.sum())
    if rows > _SURVEY_ROWS or len(work.refs) > _SURVEY_BATCHES:
        return False
    if rules.workload.input.text not in _expression_columns(rules):
        return True
    size = work.found.files.bytes
    return size <= _SURVEY_TEXT_BYTES


def _survey(work: DueWork, rules: Rules, store: Store | None) -> dict[str, list[int]]:
    """For each route, how many rows of each batch its conditions and the policy let through."""
    columns = _expression_columns(rules) or [rules.workload.input.id]
    reader = BatchReader(pa.schema([work.found.schema.field(name) for name in columns]))
    names = [route.name for route in rules.workload.routes]
    sizes: dict[str, list[int]] = {name: [] for name in names}
    try:
        for ref in work.refs:
            counts = _counts(load_previous(store, ref), ref, rules, reader)
            for name in names:
                sizes[name].append(ref.row_count if counts is None else counts.get(name, 0))
    finally:
        reader.close()
    return sizes


def _counts(
    previous: Previous | None, ref: BatchRef, rules: Rules, reader: BatchReader
) -> dict[str, int] | None:
    """Candidates of a batch by route; None where they can't be known from these columns alone."""
    if previous is not None:
        counts: dict[str, int] = defaultdict(int)
        for _, route in previous.retry:
            counts[route] += 1
        return dict(counts)
    try:
        table = reader.read(ref)
        table.validate(full=True)  # bytes that are no UTF-8 must not reach an expression
    except (BatchError, pa.ArrowInvalid):
        return None
    return count_candidates(rules, table)


def count_candidates(rules: Rules, table: pa.Table) -> dict[str, int]:
    """How many rows of a table each route gets, as `transforms.route` decides it, faults left out."""
    workload = rules.workload
    filters = [rules.row_filter] if rules.row_filter else []
    masks = [np.asarray(m, bool) for m in evaluate([*filters, *rules.routes, *rules.rejections], table).masks]
    free = masks.pop(0) if filters else np.ones(table.num_rows, bool)
    hits, rejected = masks[: len(rules.routes)], masks[len(rules.routes) :]
    counts = {}
    for route, hit in zip(workload.routes, hits, strict=True):
        taken = free & hit
        if workload.match == "first":
            free = free & ~hit
        for rule, mask in zip(workload.policy.reject, rejected, strict=True):
            if not rule.routes or route.name in rule.routes:
                taken = taken & ~mask
        counts[route.name] = int(taken.sum())
    return counts
