"""Planned attempts that were not committed, each with the reason: as columns, for there may be a million."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow as pa

from schemas.batches import BatchReport
from schemas.run import FailedBatch
from transforms.attempt_keys import ByBatch
from transforms.batch_ids import ID_BYTES, written_ids
from transforms.batch_refs import BatchRefs
from transforms.committed import Committed
from transforms.layout import run_path
from transforms.store import Store
from transforms.table_file import PIECE, write_pieces

LISTED = 1000
"""Batches that a manifest names; where there are more, a file of the run names all."""

FAILED_BATCHES_FILE = "failed_batches.parquet"
FAILED_BATCHES_SCHEMA = pa.schema(
    [
        ("batch_id", pa.string()),
        ("uri", pa.string()),
        ("row_group", pa.int32()),
        ("first_row", pa.int64()),
        ("row_count", pa.int64()),
        ("error", pa.string()),
    ]
)
_SCHEMA = pa.schema(
    [
        ("batch_id", pa.binary(ID_BYTES)),
        ("attempt", pa.int32()),
        ("error", pa.dictionary(pa.int32(), pa.string())),
    ]
)
_NOT_A_WORD = "its worker ended before it was done"


class Unfinished(Sequence[BatchReport]):
    """What was said of attempts that were not committed; each report is made when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @classmethod
    def of(cls, reports: Iterable[BatchReport]) -> Unfinished:
        """These reports, in this order."""
        if isinstance(reports, Unfinished):
            return reports
        rows = [(bytes.fromhex(report.batch_id), report.attempt, report.error) for report in reports]
        columns = dict(zip(_SCHEMA.names, zip(*rows, strict=True), strict=True)) if rows else {}
        return cls(pa.table(columns, _SCHEMA) if rows else _SCHEMA.empty_table())

    @classmethod
    def all_of(cls, refs: BatchRefs, error: str) -> Unfinished:
        """The attempts of some batches, for one reason."""
        errors = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(refs), np.int32)), pa.array([error]))
        return cls(pa.table([refs.batches, refs.table["attempt"], errors], _SCHEMA))

    @classmethod
    def joined(cls, parts: Iterable[Unfinished]) -> Unfinished:
        """All of them, part after part."""
        return cls(pa.concat_tables([_SCHEMA.empty_table(), *(part._table for part in parts)]))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[BatchReport]:
        for piece in self._table.to_batches(PIECE):
            for row in piece.to_pylist():
                yield BatchReport(row["batch_id"].hex(), row["attempt"], "failed", row["error"])

    @overload
    def __getitem__(self, index: int) -> BatchReport: ...

    @overload
    def __getitem__(self, index: slice) -> Unfinished: ...

    def __getitem__(self, index: int | slice) -> BatchReport | Unfinished:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            assert step == 1
            return Unfinished(self._table.slice(start, max(0, stop - start)))
        return next(iter(self[(number := range(len(self))[index]) : number + 1]))

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return int(self._table.nbytes)

    @property
    def batches(self) -> pa.ChunkedArray:
        """The batches' ids, 16 bytes each."""
        return self._table["batch_id"]

    @property
    def attempts(self) -> pa.ChunkedArray:
        """Which attempt at each."""
        return self._table["attempt"]

    @property
    def errors(self) -> pa.ChunkedArray:
        """Why, each sentence once and by number."""
        return self._table["error"]


@dataclass(frozen=True, slots=True)
class LeftOpen:
    """The batches that a run left: how many, the first, and the file that names all if these are not all."""

    count: int
    listed: tuple[FailedBatch, ...]
    file: str = ""


def note_left_open(
    store: Store, run_id: str, refs: BatchRefs, committed: Committed, failed: Sequence[BatchReport]
) -> LeftOpen:
    """Which planned attempts are not committed, each with what its worker said about it.

    Where they are many they are written down, in the plan's order; durable when this returns.
    """
    said = Unfinished.of(failed)
    reasons = ByBatch(said.batches, said.errors)
    count, listed = _counted(_left_open(refs, committed, reasons))
    if count == len(listed):
        return LeftOpen(count, listed)
    path = run_path(run_id, FAILED_BATCHES_FILE)
    write_pieces(store, path, FAILED_BATCHES_SCHEMA, _left_open(refs, committed, reasons))
    return LeftOpen(count, listed, path)


def _counted(pieces: Iterable[pa.Table]) -> tuple[int, tuple[FailedBatch, ...]]:
    count = 0
    listed: list[FailedBatch] = []
    for piece in pieces:
        count += len(piece)
        listed += [FailedBatch(**row) for row in piece.slice(0, LISTED - len(listed)).to_pylist()]
    return count, tuple(listed)


def _left_open(refs: BatchRefs, committed: Committed, reasons: ByBatch) -> Iterator[pa.Table]:
    for first in range(0, len(refs), PIECE):
        part = refs[first : first + PIECE]
        part = part.where(committed.attempts_of(part.ids) < part.attempts)
        columns = {name: part.table[name] for name in FAILED_BATCHES_SCHEMA.names[1:-1]}
        columns["batch_id"] = written_ids(part.ids)
        columns["error"] = reasons.of(part.ids).cast(pa.string()).fill_null(_NOT_A_WORD)
        yield pa.table(columns).select(FAILED_BATCHES_SCHEMA.names).cast(FAILED_BATCHES_SCHEMA)
