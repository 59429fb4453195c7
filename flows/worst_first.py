"""A run's batches, the worst first, without another copy of them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from flows.batch_lines import BatchLine, BatchLines
from schemas.batches import BatchReport
from transforms.attempt_keys import ByBatch
from transforms.batch_ids import ids_in
from transforms.table_file import PIECE
from transforms.unfinished import Unfinished


@dataclass(frozen=True, slots=True, eq=False)
class WorstFirst:
    """Batches in order: those that failed, then those that are committed, at places `order` of all lines."""

    failed: Unfinished
    lines: BatchLines
    order: pa.Array

    def __len__(self) -> int:
        return len(self.failed) + len(self.order)

    def __iter__(self) -> Iterator[BatchLine]:
        for piece in self.pieces():
            yield from piece

    def pieces(self) -> Iterator[BatchLines]:
        """All of them, a piece at a time. A failed batch of which no worker spoke has no group (-1)."""
        spoken = self.lines.table.filter(pc.invert(self.lines.is_committed()))
        groups = ByBatch(spoken["batch_id"], spoken["group"])
        for first in range(0, len(self.failed), PIECE):
            part = self.failed[first : first + PIECE]
            yield BatchLines.failed(part, groups.of(ids_in(part.batches)).fill_null(-1))
        for first in range(0, len(self.order), PIECE):
            yield self.lines.at(self.order.slice(first, PIECE))


def worst_first(lines: Iterable[BatchLine], failed: Sequence[BatchReport]) -> WorstFirst:
    """Those that failed, then those with the most to try again, then by failures."""
    columns = BatchLines.of(lines)
    return WorstFirst(Unfinished.of(failed), columns, columns.worst_first())
