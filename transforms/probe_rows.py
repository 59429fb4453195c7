"""Decoding a row group's rows from front to back; runs in a reader process alone.

What is read here was written by strangers: pyarrow may raise, take all memory, or abort the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_BUFFER_BYTES = 1 << 20


@dataclass(slots=True)
class _Cursor:
    """A row group that is being read from front to back; `rest` was read and not yet asked for."""

    parquet: pq.ParquetFile
    batches: Iterator[pa.RecordBatch]
    position: int
    rest: pa.Table | None = None


class RowGroupRows:
    """Runs of rows of row groups, as the types of a schema.

    Pages can only be decoded from a row group's start, so the place is kept: neighbouring runs asked
    for in order cost one pass together, not one each.
    """

    def __init__(self, schema: pa.Schema, open_file: Callable[[str], Any] = str) -> None:
        """`schema`: the columns to read, and the types to read them as.

        `open_file` gives what pyarrow opens for a path.
        """
        self._schema = schema
        self._open_file = open_file
        self._key: tuple[str, int] | None = None
        self._cursor: _Cursor | None = None

    def read(self, uri: str, group: int, first: int, count: int, on_the_way: Callable[[], None]) -> pa.Table:
        """Rows from `first` on, `count` of them or as many as there are; columns may be in chunks.

        `on_the_way` is called after each step that was decoded.
        """
        cursor = self._cursor_at(uri, group, first, count)
        parts: list[pa.Table] = []
        wanted_end = first + count
        while cursor.position < wanted_end:
            chunk = self._next(cursor)
            on_the_way()
            if chunk is None:
                break
            start, end = cursor.position, cursor.position + chunk.num_rows
            take_from, take_to = max(first, start), min(wanted_end, end)
            if take_from < take_to:
                parts.append(chunk.slice(take_from - start, take_to - take_from))
            if end > wanted_end:
                cursor.rest = chunk.slice(wanted_end - start)
                end = wanted_end
            cursor.position = end
        return pa.concat_tables(parts) if parts else self._schema.empty_table()

    def close(self) -> None:
        """Close the file that is being read."""
        if self._cursor is not None:
            self._cursor.parquet.close()
        self._cursor, self._key = None, None

    def _cursor_at(self, uri: str, group: int, first: int, count: int) -> _Cursor:
        """The open cursor if it is not past the first row, else a new one."""
        key = (uri, group)
        if self._cursor is not None and self._key == key and self._cursor.position <= first:
            return self._cursor
        self.close()
        parquet = pq.ParquetFile(self._open_file(uri), buffer_size=_BUFFER_BYTES, pre_buffer=False)
        batches = parquet.iter_batches(
            count, row_groups=[group], columns=self._schema.names, use_threads=False
        )
        self._key, self._cursor = key, _Cursor(parquet, iter(batches), 0)
        return self._cursor

    def _next(self, cursor: _Cursor) -> pa.Table | None:
        if cursor.rest is not None:
            rest, cursor.rest = cursor.rest, None
            return rest
        batch = next(cursor.batches, None)
        if batch is None:
            return None
        return read_table_as(pa.Table.from_batches([batch]), self._schema)


def read_table_as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A file's columns as the plan's types; strings go through binary, which does not check them yet."""
    columns = [_cast_column(table.column(field.name), field.type) for field in schema]
    return pa.table(columns, schema=schema)


def _cast_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type == kind:
        return column
    if pa.types.is_large_string(kind) and not pa.types.is_integer(column.type):
        return pa.chunked_array([_unchecked_large_string(chunk) for chunk in column.chunks], type=kind)
    return column.cast(kind)


def _unchecked_large_string(chunk: pa.Array) -> pa.Array:
    return chunk.cast(pa.large_binary()).view(pa.large_string())
