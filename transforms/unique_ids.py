"""Ids that must be unique in the whole input: the rows of each new batch whose id stood before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.workload import Input
from transforms.batch_refs import BatchRefs
from transforms.committed import Committed
from transforms.due import Due
from transforms.duplicates import IdRun, find_duplicates
from transforms.expressions import compile_condition


class IdRuns(Sequence[IdRun]):
    """The row groups of an input in order, with what is committed of them; each is made when asked for."""

    def __init__(self, every: BatchRefs, committed: Committed) -> None:
        """Of all batches of the input, in order."""
        self._table = every.table
        self._committed = committed
        self._places = committed.rows_of(every.ids)
        self._first_rows = every.integers("first_row")
        self._ends = self._first_rows + every.row_counts
        self._starts = np.flatnonzero(self._first_rows == 0)  # where a row group begins

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> IdRun: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[IdRun, ...]: ...

    def __getitem__(self, index: int | slice) -> IdRun | tuple[IdRun, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        number = range(len(self))[index]
        start = int(self._starts[number])
        stop = int(self._starts[number + 1]) if number + 1 < len(self) else len(self._places)
        done = start + np.flatnonzero(self._places[start:stop] >= 0)
        known: list[int] = []
        if len(done):
            known = self._committed.duplicates_at(self._places[done]).flatten().to_pylist()
        return IdRun(
            uri=self._value("uri", start),
            row_group=self._value("row_group", start),
            done=tuple(zip(self._first_rows[done].tolist(), self._ends[done].tolist(), strict=True)),
            known=frozenset(known),
            generation=self._value("generation", start),
            size=self._value("size", start),
        )

    def _value(self, column: str, row: int) -> Any:
        return self._table.column(column)[row].as_py()

    def holding(self, numbers: np.ndarray) -> np.ndarray:
        """The number of the row group of each of some batches, by their number among all."""
        return np.searchsorted(self._starts, numbers, side="right") - 1


def mark_repeated(
    settings: Input, schema: pa.Schema, every: BatchRefs, committed: Committed, due: Due
) -> BatchRefs:
    """The batches that are due; new ones with the rows whose id stood before. Committed rows come first.

    A further attempt keeps the marks of the first.
    """
    is_new = due.refs.table.column("previous_attempt").is_null().to_numpy()
    if not is_new.any():
        return due.refs
    row_filter = compile_condition("input.filter", settings.filter) if settings.filter else None
    runs = IdRuns(every, committed)
    repeated = find_duplicates(runs, schema, settings.id, row_filter)
    marked = repeated.inside(
        runs.holding(due.numbers),
        due.refs.integers("first_row"),
        np.where(is_new, due.refs.row_counts, 0),
    )
    if not is_new.all():
        kept = due.refs.table.column("duplicate_rows").combine_chunks()
        marked = pc.if_else(pa.array(is_new), marked, kept)
    return due.refs.replaced(duplicate_rows=marked)
