"""Cutting an input into batches: by rows, and by the bytes that its footers promise."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import pyarrow as pa

from schemas.ids import batch_ids
from schemas.workload import Limits
from transforms.batch_ids import ID_BYTES
from transforms.batch_refs import REFS_SCHEMA, BatchRefs
from transforms.input_files import InputFile, RowGroup

_BATCHES_A_PIECE = 16_384


def cut_batches(files: Iterable[InputFile], limits: Limits) -> BatchRefs:
    """All batches of some files: files in their order, row groups and rows in that of the file.

    Takes time and memory by the number of batches, whatever the files hold.
    """
    pieces, piece = [], _Piece()
    for file in files:
        piece.cut(file, limits)
        if len(piece) >= _BATCHES_A_PIECE:
            pieces.append(piece.columns())
            piece = _Piece()
    pieces.append(piece.columns())
    return BatchRefs(pa.Table.from_batches(pieces, REFS_SCHEMA))


class _Piece:
    """The columns of the batches of neighbouring files."""

    def __init__(self) -> None:
        self._files: list[InputFile] = []
        self._ids = bytearray()
        self._file_of = array("i")
        self._row_group = array("i")
        self._first_row = array("q")
        self._row_count = array("q")

    def __len__(self) -> int:
        return len(self._row_count)

    def cut(self, file: InputFile, limits: Limits) -> None:
        number = len(self._files)
        self._files.append(file)
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
        empty = pa.array([0] * (rows + 1), pa.int32())
        return pa.record_batch(
            [
                pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(ID_BYTES), rows, [None, pa.py_buffer(self._ids)]
                ),
                pa.DictionaryArray.from_arrays(file_of, pa.array([f.uri for f in self._files], pa.string())),
                pa.DictionaryArray.from_arrays(
                    file_of, pa.array([f.generation for f in self._files], pa.string())
                ),
                _numbers(self._row_group, pa.int32()),
                _numbers(self._first_row, pa.int64()),
                _numbers(self._row_count, pa.int64()),
                pa.repeat(pa.scalar(1, pa.int32()), rows),
                pa.nulls(rows, pa.int32()),
                pa.ListArray.from_arrays(empty, pa.array([], pa.int64())),
                pa.ListArray.from_arrays(empty, pa.array([], pa.string())),
                pa.array([f.size for f in self._files], pa.int64()).take(file_of),
                pa.array([f.mtime_ns for f in self._files], pa.int64()).take(file_of),
            ],
            schema=REFS_SCHEMA,
        )


def _numbers(values: array[int], kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _rows_of_a_batch(group: RowGroup, limits: Limits) -> int:
    if not (group.rows and group.bytes):
        return limits.batch_rows
    return min(limits.batch_rows, max(1, limits.batch_bytes * group.rows // group.bytes))
