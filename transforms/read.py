"""Reading a batch: its rows of the needed columns, decoded in a reader process that may die of them."""

from __future__ import annotations

import os
import time

import pyarrow as pa

from schemas.batches import BatchRef
from schemas.errors import InputChangedError, UnreadableBatchError, first_line
from transforms.probe import Elsewhere, Reader, ReaderError, ReaderLimits, leave_reader, take_reader
from transforms.store import is_remote


class BatchReader:
    """Reads batches of a plan. Not thread-safe; one per worker thread.

    Files are decoded in a reader process (`transforms.probe`), which keeps its place: neighbouring
    batches asked for in order cost one pass together, not one each. What can't be read costs its file's
    time once: rows behind unreadable ones of a row group are not tried again, and a file is given up when
    `limits.seconds` went by in vain.
    """

    def __init__(self, schema: pa.Schema, limits: ReaderLimits | None = None) -> None:
        """`schema`: the columns to read, and the types to read them as."""
        self._schema = schema
        self._limits = limits or ReaderLimits()
        self._reader: Reader | None = None
        self._elsewhere: Elsewhere | None = None
        self._lost: dict[tuple[str, int], tuple[int, str]] = {}
        self._wasted: dict[str, float] = {}

    def read(self, ref: BatchRef) -> pa.Table:
        """The batch's rows, one chunk a column; strings are not yet known to be valid UTF-8.

        Raises:
            InputChangedError: the file is not the one that was planned.
            UnreadableBatchError: its pages can't be read.
        """
        if is_remote(ref.uri):
            self._fix_generation(ref)
        else:
            _check_unchanged(ref)
        self._refuse_lost(ref)
        started = time.monotonic()
        try:
            table = self._rows(ref)
        except FileNotFoundError:
            raise _changed(ref, "it is gone, or at another generation") from None
        except ReaderError as error:
            self._wasted[ref.uri] = self._wasted.get(ref.uri, 0.0) + time.monotonic() - started
            self._lost[ref.uri, ref.row_group] = (ref.first_row, first_line(error))
            raise UnreadableBatchError(f"{place(ref)}: can't be read ({first_line(error)})") from None
        if table.num_rows != ref.row_count:
            raise UnreadableBatchError(
                f"{place(ref)}: the footer promises {ref.row_count} rows here, {table.num_rows} can be read"
            )
        return table

    def _fix_generation(self, ref: BatchRef) -> None:
        """Have ranges of an object fetched at the generation that was planned, and at no other."""
        from transforms.gcs.inputs import GENERATION_PREFIX, Ranges

        if self._elsewhere is None:
            self._elsewhere = Ranges()
        assert isinstance(self._elsewhere, Ranges)
        self._elsewhere.fix(ref.uri, ref.size, ref.generation.removeprefix(GENERATION_PREFIX))

    def close(self) -> None:
        """Let go of the reader process."""
        reader, self._reader = self._reader, None
        if reader is not None:
            leave_reader(reader)

    def __del__(self) -> None:
        self.close()

    def _rows(self, ref: BatchRef) -> pa.Table:
        if self._reader is None or not self._reader.alive:
            self._reader = take_reader(self._limits)
        self._reader.elsewhere = self._elsewhere
        return self._reader.rows(self._schema, ref.uri, ref.row_group, ref.first_row, ref.row_count)

    def _refuse_lost(self, ref: BatchRef) -> None:
        """Pages are decoded from front to back: what stopped an earlier batch stops this one."""
        first, reason = self._lost.get((ref.uri, ref.row_group), (None, ""))
        if first is not None and ref.first_row >= first:
            raise UnreadableBatchError(f"{place(ref)}: can't be read (given up at row {first}: {reason})")
        if self._wasted.get(ref.uri, 0.0) >= self._limits.seconds:
            raise UnreadableBatchError(
                f"{place(ref)}: was not tried, {self._limits.seconds:g} s were spent in vain on its file"
            )


def _check_unchanged(ref: BatchRef) -> None:
    try:
        stat = os.stat(ref.uri)
    except (OSError, ValueError) as error:
        raise UnreadableBatchError(f"{place(ref)}: can't be read ({first_line(error)})") from None
    if (stat.st_size, stat.st_mtime_ns) != (ref.size, ref.mtime_ns):
        raise _changed(ref, "size or modification time")


def _changed(ref: BatchRef, how: str) -> InputChangedError:
    return InputChangedError(
        f"{ref.uri} has changed since this run was planned ({how}). "
        "Nothing of its remaining batches was sent; run again to plan anew"
    )


def place(ref: BatchRef) -> str:
    """Where a batch stands, for people: file, row group and rows."""
    last = ref.first_row + ref.row_count - 1
    return f"{ref.uri}, row group {ref.row_group}, rows {ref.first_row}–{last}"
