"""Compacting commit records, by the holder of an output's lock: after a run, before one, and during it.

Nothing that counts depends on it. A crash at any moment leaves records that are in no file, which the next
run asks for, or in two, which count once. Records themselves are never deleted: a worker that comes late
must still find its name taken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from schemas.arrow import COMMITS_SCHEMA
from schemas.batches import CommitRecord
from schemas.errors import StoreError
from transforms.attempt_keys import Keys, keys_of, no_keys, places_of
from transforms.commit_index import CommitIndex, index_of
from transforms.commit_rows import commit_rows
from transforms.commit_survey import PIECE, Survey, survey_commits
from transforms.committed import Lookups
from transforms.compacted import MOST_ROWS, CompactedFile, rows_in, write_compacted
from transforms.failure_files import add_failures
from transforms.output_lock import require_held
from transforms.store import Store

FEW_FILES = 16
SHOW_EVERY_S = 30.0
"""Between two files of failures of a run that goes on."""

_NOTED = 256

_LOGGER = logging.getLogger(__name__)
Check = Callable[[Store, CommitRecord], None]


def take_stock(
    store: Store, check: Check = lambda _store, _record: None, few_files: int | None = None
) -> CommitIndex:
    """Read an output's commits as they stand, and compact those that were in no file.

    `check` is given each of these. Of more than `few_files` small files large ones are made, if so asked:
    that takes longer than all the rest.

    Raises:
        StoreError: see `transforms.output_lock.require_held`.
    """
    survey = survey_commits(store)
    stock = _Stock(store, survey)
    for records in survey.found():
        for record in records:
            check(store, record)
        stock.take(records)
    return stock.finish(few_files)


@dataclass(slots=True)
class _Stock:
    """The files of an output while what was found besides is compacted."""

    store: Store
    survey: Survey
    found: list[Lookups] = field(default_factory=list)
    files: list[CompactedFile] = field(default_factory=list)
    left: list[pa.Table] = field(default_factory=list)  # what is in no file yet
    written: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.files = list(self.survey.compacted.files)

    def take(self, records: Sequence[CommitRecord]) -> None:
        """Note records; as soon as there are many they are durable, lest a crash cost more than a piece."""
        table = commit_rows(records)
        self.found.append(Lookups.of([table]))
        self.left.append(table)
        if len(records) == PIECE:
            self._write(())

    def finish(self, few_files: int | None) -> CommitIndex:
        """Write what is left, and which runs are covered by now; join small files."""
        index = index_of(self.survey, [file.rows for file in self.files], Lookups.joined(self.found))
        covered = self.survey.covered_by(index.attempts)
        small = [file for file in self.files if file.count < MOST_ROWS // 2]
        joined = [] if few_files is None or len(small) <= few_files else small
        if covered or self.left or joined:
            self._join(joined, covered, index)
        damaged = set(self.survey.compacted.damaged) - self.written  # one may have been made anew by its name
        for path in (*sorted(damaged), *self._redundant(index.attempts)):
            require_held(self.store)
            self.store.delete(path)
        return replace(index, files=tuple(file.rows for file in self.files), loose=())

    def _join(self, joined: Sequence[CompactedFile], covered: Sequence[str], index: CommitIndex) -> None:
        """Put the rows of some files together with what is left, and delete these files then."""
        runs = {*covered, *(run for file in joined for run in file.covers)}
        rows = replace(index, files=tuple(file.rows for file in joined), loose=tuple(self.left))
        self.left = []
        for table in rows.tables(COMMITS_SCHEMA.names):
            if sum(map(len, self.left)) + len(table) > MOST_ROWS:
                self._write(())
            self.left.append(table)
        self._write(runs)
        replaced = {file.path for file in joined} - self.written
        self.files = [file for file in self.files if file.path not in replaced]
        for path in sorted(replaced):
            self.store.delete(path)

    def _write(self, covered: Collection[str]) -> None:
        require_held(self.store)
        file = write_compacted(self.store, self.left, covered)
        self.left = []
        self.written.add(file.path)
        # the rows of a joined file may come together again, and then it is that file, once
        self.files = [*(other for other in self.files if other.path != file.path), file]

    def _redundant(self, attempts: Keys) -> Iterator[str]:
        """The files that others make up for: of a run that ended between joining files and deleting them."""
        if sum(file.count for file in self.files) == len(attempts):
            return
        places = {file.path: np.unique(places_of(self._keys_in(file), attempts)) for file in self.files}
        copies = np.zeros(len(attempts), np.int64)
        for mine in places.values():
            copies[mine] += 1
        for file in sorted(self.files, key=lambda file: file.count):
            others = [other for other in self.files if other is not file]
            covers = {run for other in others for run in other.covers}
            if file.covers <= covers and (copies[places[file.path]] > 1).all():
                copies[places[file.path]] -= 1
                self.files = others
                yield file.path

    def _keys_in(self, file: CompactedFile) -> Keys:
        tables = rows_in(self.store, [file.rows], ("batch_id", "attempt"))
        return np.concatenate([no_keys(), *map(keys_of, tables)])


class Compactor:
    """Compacts the records that workers report, while a run goes on: a crash then leaves few to be asked for.

    A report is the record itself, so this reads nothing. What fails is left to the end of the run. Records
    wait as columns: as objects each of them takes 15 kB.

    Failures of batches that were tried for the first time are shown meanwhile, every `show_every_s` seconds
    of `clock`: those are read. What an attempt replaces is exchanged when the run is settled, so that
    nothing stands in `failures/` twice.
    """

    def __init__(
        self,
        store: Store,
        piece: int = PIECE,
        show_every_s: float = SHOW_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._piece = piece
        self._show_every_s = show_every_s
        self._clock = clock
        self._show_at = clock() + show_every_s
        self._guard = threading.Lock()
        self._noted: list[CommitRecord] = []
        self._failed: list[tuple[str, int]] = []
        self._tables: list[pa.Table] = []  # the writer's
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="compaction")

    def note(self, record: CommitRecord) -> None:
        """Take a record that is committed. From any thread; costs a write every so many, or so often."""
        with self._guard:
            self._noted.append(record)
            if record.failures and record.attempt == 1:
                self._failed.append((record.batch_id, record.attempt))
            if len(self._noted) >= min(self._piece, _NOTED):
                self._compact()
            if self._failed and self._clock() >= self._show_at:
                self._show_at = self._clock() + self._show_every_s
                self._show()

    def close(self) -> None:
        """Compact and show what is left; returns when all is durable that can be."""
        with self._guard:
            self._compact(last=True)
            self._show()
        self._writer.shutdown()

    def _compact(self, last: bool = False) -> None:
        noted, self._noted = self._noted, []
        self._writer.submit(self._take, noted, last)

    def _show(self) -> None:
        failed, self._failed = self._failed, []
        self._writer.submit(self._add_failures, failed)

    def _add_failures(self, names: Sequence[tuple[str, int]]) -> None:
        try:
            add_failures(self._store, names)
        except (StoreError, OSError) as error:
            _LOGGER.warning("failures of %d batches are shown later: %s", len(names), error)

    def _take(self, records: Sequence[CommitRecord], last: bool = False) -> None:
        self._tables.append(commit_rows(records))
        waiting = sum(map(len, self._tables))
        try:
            require_held(self._store)
            if waiting >= self._piece or (last and waiting):
                write_compacted(self._store, [pa.concat_tables(self._tables)], ())
                self._tables = []
        except (StoreError, OSError) as error:
            self._tables = []
            _LOGGER.warning("%d commit records are compacted later: %s", waiting, error)
