"""Cutting an input into batches: by rows, and by the bytes that its footers promise."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import pyarrow as pa

from schemas.ids import batch_ids
from schemas.limits import Limits
from transforms.batch_ids import ID_BYTES
from transforms.batch_refs import REFS_SCHEMA, BatchRefs
from transforms.input_files import NAMES_A_PIECE, Files, InputFile, RowGroup

_BATCHES_A_PIECE = 16_384


def cut_batches(files: Iterable[InputFile], limits: Limits) -> BatchRefs:
    """All batches of some files: files in their order, row groups and rows in that of the file.

    Takes time and memory by the number of batches, whatever the files hold. Names of `Files` are not copied.
    """
    every = files if isinstance(files, Files) else Files.of(files)
    pieces, piece = [], _Piece(every, 0)
    for number, file in enumerate(every):
        if len(piece) >= _BATCHES_A_PIECE or (number and number % NAMES_A_PIECE == 0):
            pieces.append(piece.columns())
            piece = _Piece(every, number)
        piece.cut(file, limits)
    pieces.append(piece.columns())
    return BatchRefs(pa.Table.from_batches(pieces, REFS_SCHEMA))


class _Piece:
    """The columns of the batches of neighbouring files."""

    def __init__(self, files: Files, first: int) -> None:
        self._files = files
        self._first = first
        self._sizes = array("q")
        self._mtimes = array("q")
        self._ids = bytearray()
        self._file_of = array("i")
        self._row_group = array("i")
        self._first_row = array("q")
        self._row_count = array("q")

    def __len__(self) -> int:
        return len(self._row_count)

    def cut(self, file: InputFile, limits: Limits) -> None:
        number = len(self._sizes)
        self._sizes.append(file.size)
        self._mtimes.append(file.mtime_ns)
        for group in file.row_groups:
            step = _rows_of_a_batch(group, limits)
            firsts = range(0, group.rows, step)
            counts = [min(step, group.rows - first) for first in firsts]
            for digest in batch_ids(file.uri, file.generation, group.index, zip(firsts, counts, strict=True)):
                self._ids += digest
            self._first_row.extend(firsts)
            self._row_count.extend(counts)
            self._row_group.extend([group.index] * len(counts))
            self._file_of.extend([number] * len(counts))

    def columns(self) -> pa.RecordBatch:
        rows = len(self)
        file_of = _numbers(self._file_of, pa.int32())
        uris, generations = self._files.names(self._first, self._first + len(self._sizes))
        empty = pa.array([0] * (rows + 1), pa.int32())
        return pa.record_batch(
            [
                pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(ID_BYTES), rows, [None, pa.py_buffer(self._ids)]
                ),
                pa.DictionaryArray.from_arrays(file_of, uris),
                pa.DictionaryArray.from_arrays(file_of, generations),
                _numbers(self._row_group, pa.int32()),
                _numbers(self._first_row, pa.int64()),
                _numbers(self._row_count, pa.int64()),
                pa.repeat(pa.scalar(1, pa.int32()), rows),
                pa.nulls(rows, pa.int32()),
                pa.ListArray.from_arrays(empty, pa.array([], pa.int64())),
                pa.ListArray.from_arrays(empty, pa.array([], pa.string())),
                _numbers(self._sizes, pa.int64()).take(file_of),
                _numbers(self._mtimes, pa.int64()).take(file_of),
            ],
            schema=REFS_SCHEMA,
        )


def _numbers(values: array[int], kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _rows_of_a_batch(group: RowGroup, limits: Limits) -> int:
    if not (group.rows and group.bytes):
        return limits.batch_rows
    return min(limits.batch_rows, max(1, limits.batch_bytes * group.rows // group.bytes))
