"""A batch on its way through a worker: what was read, what was decided, what has come out so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from schemas.batches import AmbiguousCall, BatchRef
from schemas.outcomes import Assignment, Charge, Outcome, Usage


@dataclass(frozen=True, slots=True)
class Prior:
    """What earlier attempts spent on a (row, route) pair that is tried again."""

    usage: Usage
    charge: Charge
    calls: int
    replayed_calls: int
    ambiguous_calls: int
    ambiguous_amount: str


@dataclass(slots=True)
class WorkBatch:
    """One attempt at one batch. It is filled by one stage after the other and never crosses a shuffle.

    `table` has the batch's rows in order; an assignment's position in it is `row - ref.first_row`.
    `digests` are the SHA-256 of the rows' texts. `todo` is what no stage has taken yet. `carried`
    are the rows of the previous attempt's failures that are not tried again. `vectors` are by route,
    in the order of `Outcome.vector_index`. `expected` are the (row, route) pairs to account for.
    """

    ref: BatchRef
    table: pa.Table
    digests: list[str | None]
    rows_skipped: int
    todo: list[tuple[int, Assignment]]
    outcomes: list[Outcome]
    carried: pa.Table | None = None
    prior: Mapping[tuple[int, str], Prior] = field(default_factory=dict)
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    ambiguous: list[AmbiguousCall] = field(default_factory=list)
    expected: frozenset[tuple[int, str]] = frozenset()

    def take(self, routes: frozenset[str]) -> list[tuple[int, Assignment]]:
        """Take the assignments of some routes out of `todo`."""
        taken = [pair for pair in self.todo if pair[1].route in routes]
        self.todo = [pair for pair in self.todo if pair[1].route not in routes]
        return taken
