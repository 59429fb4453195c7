"""Reading a batch: its rows of the needed columns, in a bounded amount of memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.batches import BatchRef
from schemas.errors import BatchError, InputChangedError, UnreadableBatchError, first_line

_BUFFER_BYTES = 1 << 20


@dataclass(slots=True)
class _Cursor:
    """A row group that is being read from front to back; `rest` was read and not yet asked for."""

    parquet: pq.ParquetFile
    batches: Iterator[pa.RecordBatch]
    position: int
    rest: pa.Table | None = None


class BatchReader:
    """Reads batches of a plan. Not thread-safe; one per worker thread.

    Pages can only be decoded from a row group's start, so the reader keeps its place: neighbouring
    batches asked for in order cost one pass together, not one each.
    """

    def __init__(self, schema: pa.Schema) -> None:
        """`schema`: the columns to read, and the types to read them as."""
        self._schema = schema
        self._key: tuple[str, int] | None = None
        self._cursor: _Cursor | None = None

    def read(self, ref: BatchRef) -> pa.Table:
        """The batch's rows, one chunk a column; strings are not yet known to be valid UTF-8.

        Raises:
            InputChangedError: the file is not the one that was planned.
            UnreadableBatchError: its pages can't be read.
        """
        try:
            _check_unchanged(ref)
            table = self._rows(ref)
        except BatchError:
            self.close()
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as error:
            self.close()
            raise UnreadableBatchError(f"{place(ref)}: can't be read ({first_line(error)})") from None
        if table.num_rows != ref.row_count:
            self.close()
            raise UnreadableBatchError(
                f"{place(ref)}: the footer promises {ref.row_count} rows here, {table.num_rows} can be read"
            )
        return table

    def close(self) -> None:
        """Close the file that is being read."""
        if self._cursor is not None:
            self._cursor.parquet.close()
        self._cursor, self._key = None, None

    def _rows(self, ref: BatchRef) -> pa.Table:
        cursor = self._cursor_at(ref)
        parts: list[pa.Table] = []
        wanted_end = ref.first_row + ref.row_count
        while cursor.position < wanted_end:
            chunk = self._next(cursor)
            if chunk is None:
                break
            start, end = cursor.position, cursor.position + chunk.num_rows
            take_from, take_to = max(ref.first_row, start), min(wanted_end, end)
            if take_from < take_to:
                parts.append(chunk.slice(take_from - start, take_to - take_from))
            if end > wanted_end:
                cursor.rest = chunk.slice(wanted_end - start)
                end = wanted_end
            cursor.position = end
        table = pa.concat_tables(parts) if parts else self._schema.empty_table()
        return table.combine_chunks()

    def _cursor_at(self, ref: BatchRef) -> _Cursor:
        """The open cursor if it is not past the batch, else a new one."""
        key = (ref.uri, ref.row_group)
        if self._cursor is not None and self._key == key and self._cursor.position <= ref.first_row:
            return self._cursor
        self.close()
        parquet = pq.ParquetFile(ref.uri, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        batches = parquet.iter_batches(
            ref.row_count, row_groups=[ref.row_group], columns=self._schema.names, use_threads=False
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


def _check_unchanged(ref: BatchRef) -> None:
    stat = os.stat(ref.uri)
    if (stat.st_size, stat.st_mtime_ns) != (ref.size, ref.mtime_ns):
        raise InputChangedError(
            f"{ref.uri} has changed since this run was planned (size or modification time). "
            "Nothing of its remaining batches was sent; run again to plan anew"
        )


def place(ref: BatchRef) -> str:
    """Where a batch stands, for people: file, row group and rows."""
    last = ref.first_row + ref.row_count - 1
    return f"{ref.uri}, row group {ref.row_group}, rows {ref.first_row}–{last}"
