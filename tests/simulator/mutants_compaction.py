"""Defects of compacting commit records: what is believed, asked for, counted and kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.simulator.planting import defect, swap
from transforms import compacted, compaction
from transforms.attempt_keys import keys_of, unpacked_keys
from transforms.batch_ids import name_of
from transforms.commit_index import CommitIndex
from transforms.commit_survey import Survey
from transforms.layout import commit_path
from transforms.store import Store

TOLD = "the manifest says what is there"
FINISHES = "the same command finishes the job"
IMMUTABLE = "what is committed never changes"
CAP = "spend never passes the cap"
TROUBLE = "production code fails in foreseen ways only"


@defect("compaction", TOLD, FINISHES, CAP)
def compacted_records_are_believed_to_be_all(replaced: ExitStack) -> None:
    """A newer attempt that is in no file is not asked for."""

    def found(self: Survey) -> Iterator[list[Any]]:
        return iter(()) if self.compacted.files else before(self)

    before = swap(replaced, Survey, "found", found)


@defect("compaction", TOLD, FINISHES, CAP)
def a_run_is_covered_before_its_last_commit(replaced: ExitStack) -> None:
    swap(replaced, Survey, "covered_by", lambda self, found: list(self.planned))


@defect("compaction", TOLD, FINISHES, CAP)
def a_record_in_two_files_counts_twice(replaced: ExitStack) -> None:
    def tables(self: CommitIndex, columns: Sequence[str]) -> Iterator[pa.Table]:
        return self._pieces(columns)

    swap(replaced, CommitIndex, "tables", tables)


@defect("compaction", TROUBLE, TOLD)
def damage_is_not_noticed(replaced: ExitStack) -> None:
    def opened(store: Store, path: str) -> pq.ParquetFile:
        return pq.ParquetFile(pa.BufferReader(store.read(path)))

    swap(replaced, compacted, "open_compacted", opened)


@defect("compaction", IMMUTABLE)
def records_are_deleted_once_they_are_compacted(replaced: ExitStack) -> None:
    def write(store: Store, pieces: Sequence[pa.Table], covers: Any) -> Any:
        written = before(store, pieces, covers)
        for piece in pieces:
            for batch, attempt in zip(*unpacked_keys(keys_of(piece)), strict=True):
                store.delete(commit_path(name_of(batch), int(attempt)))
        return written

    before = swap(replaced, compaction, "write_compacted", write)
