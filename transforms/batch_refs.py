"""Many references of batches as columns: some 80 bytes a batch, where objects would take a thousand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import repeat
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.batches import BatchRef
from transforms.batch_ids import ID_BYTES, Ids, ids_in

REFS_SCHEMA = pa.schema(
    [
        ("batch_id", pa.binary(ID_BYTES)),
        ("uri", pa.dictionary(pa.int32(), pa.string())),
        ("generation", pa.dictionary(pa.int32(), pa.string())),
        ("row_group", pa.int32()),
        ("first_row", pa.int64()),
        ("row_count", pa.int64()),
        ("attempt", pa.int32()),
        ("previous_attempt", pa.int32()),
        ("duplicate_rows", pa.list_(pa.int64())),
        ("retry_classes", pa.list_(pa.string())),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
)
"""The fields of `BatchRef`. Names of files stand once in each piece of the table."""

_ROWS_AT_ONCE = 4096
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class BatchRefs(Sequence[BatchRef]):
    """References of batches, in the input's order.

    Each is made when it is asked for, and a slice shares the columns. To walk through all of them costs a
    few microseconds each: what can be said of all at once is said by arrays (`ids`, `row_counts`, `table`).
    """

    def __init__(self, table: pa.Table) -> None:
        """Of a table with `REFS_SCHEMA`."""
        self.table = table

    @classmethod
    def of(cls, refs: Iterable[BatchRef]) -> BatchRefs:
        """Some references, in this order."""
        rows = list(refs)
        columns = {field.name: [getattr(ref, field.name) for ref in rows] for field in fields(BatchRef)}
        columns["batch_id"] = [bytes.fromhex(ref.batch_id) for ref in rows]
        return cls(pa.table(columns, REFS_SCHEMA))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> BatchRef: ...

    @overload
    def __getitem__(self, index: slice) -> BatchRefs: ...

    def __getitem__(self, index: int | slice) -> BatchRef | BatchRefs:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"a slice of batches has no step, and this one has {step}")
            return BatchRefs(self.table.slice(start, max(0, stop - start)))
        return next(iter(self[(number := range(len(self))[index]) : number + 1]))

    def __iter__(self) -> Iterator[BatchRef]:
        for piece in self.table.to_batches(_ROWS_AT_ONCE):
            columns: list[Iterable[Any]] = [_values(piece.column(name)) for name in REFS_SCHEMA.names]
            yield from map(BatchRef, *columns)

    @property
    def batches(self) -> pa.ChunkedArray:
        """The batch ids as a column, 16 bytes each."""
        return self.table.column("batch_id")

    @cached_property
    def ids(self) -> Ids:
        """The batch ids, 16 bytes each."""
        return ids_in(self.table.column("batch_id"))

    @property
    def row_counts(self) -> Rows:
        """How many rows each has."""
        return self.integers("row_count")

    @property
    def attempts(self) -> Rows:
        """Which attempt at each is due."""
        return self.integers("attempt")

    def integers(self, column: str) -> Rows:
        """A column of integers that are never null."""
        found: Rows = self.table.column(column).to_numpy().astype(np.int64, copy=False)
        return found

    def replaced(self, **columns: pa.Array) -> BatchRefs:
        """The same batches with other values in some columns."""
        table = self.table
        for name, column in columns.items():
            table = table.set_column(REFS_SCHEMA.get_field_index(name), REFS_SCHEMA.field(name), column)
        return BatchRefs(table)

    def where(self, mask: Mask) -> BatchRefs:
        """Those for which `mask` is true."""
        return self if mask.all() else BatchRefs(self.table.filter(pa.array(mask)))


def _values(column: pa.Array) -> Iterable[Any]:
    """A column's values as a reference has them."""
    if pa.types.is_fixed_size_binary(column.type):
        return (value.hex() for value in column.to_pylist())
    if pa.types.is_dictionary(column.type):  # each name is one object, however many have it
        names = column.dictionary.to_pylist()
        return (names[index] for index in column.indices.to_pylist())
    if pa.types.is_list(column.type):
        if not len(column.flatten()):
            return repeat((), len(column))
        return (tuple(value or ()) for value in column.to_pylist())
    values: list[Any] = column.to_pylist()
    return values


def no_refs() -> BatchRefs:
    """No batches."""
    return BatchRefs(REFS_SCHEMA.empty_table())
