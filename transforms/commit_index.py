"""The commit records of an output as tables: how every batch stands, and what every attempt says.

Read from compacted files; what stands in none is asked for by name. So it costs a few reads and what is open,
not what is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from schemas.batches import CommitRecord
from transforms.attempt_keys import Keys, keys_of, keys_without, places_of
from transforms.commit_rows import commit_rows
from transforms.commit_survey import NAMES_AT_ONCE, Survey, survey_commits
from transforms.committed import Committed, Lookups
from transforms.compacted import Rows, rows_in
from transforms.layout import read_commit
from transforms.side_by_side import side_by_side
from transforms.store import Store


@dataclass(frozen=True, slots=True, eq=False)
class CommitIndex:
    """The commits of an output.

    `committed` says how every batch stands, `attempts` are all attempts, ascending. `begun` are those that
    were planned and are not committed: only they can have ledgers that no commit record accounts for. None:
    look at the ledgers.
    """

    committed: Committed
    attempts: Keys
    store: Store | None = None
    files: tuple[Rows, ...] = ()
    loose: tuple[pa.Table, ...] = ()
    begun: Keys | None = None

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of all attempts, each attempt once, a piece at a time."""
        seen = np.zeros(len(self.attempts), bool)
        for table in self._pieces([*dict.fromkeys([*columns, "batch_id", "attempt"])]):
            places = places_of(keys_of(table), self.attempts)
            is_new = ~seen[places]
            seen[places] = True
            yield (table if is_new.all() else table.filter(pa.array(is_new))).select(columns)

    def _pieces(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        if self.store is not None:
            yield from rows_in(self.store, self.files, columns)
        for piece in self.loose:
            yield piece.select(columns)


def index_of(
    survey: Survey, files: Sequence[Rows], found: Lookups, loose: Sequence[pa.Table] = ()
) -> CommitIndex:
    """The index of an output. What was found besides the surveyed files is `loose`, or in `files` too."""
    lookups = survey.compacted.lookups.plus(found)
    begun = None if not survey.compacted.files else keys_without(survey.asked, lookups.keys)
    return CommitIndex(Committed(lookups), lookups.keys, survey.store, tuple(files), tuple(loose), begun)


def no_commits() -> CommitIndex:
    """The index of an output that has none."""
    nothing = Lookups.joined(())
    return CommitIndex(Committed(nothing), nothing.keys)


def read_index(store: Store) -> CommitIndex:
    """The commits of an output as they stand. Reads only."""
    survey = survey_commits(store)
    loose = [commit_rows(records) for records in survey.found()]
    return index_of(survey, [file.rows for file in survey.compacted.files], Lookups.of(loose), loose)


def sample_commits(store: Store, committed: Committed, most: int) -> tuple[CommitRecord, ...]:
    """The newest commit records of at most so many batches, spread evenly."""
    step = max(1, -(-len(committed) // most))
    rows = range(0, len(committed), step)
    names = [(standing.batch_id, standing.attempt) for standing in map(committed.standing, rows)]
    return tuple(side_by_side(store, lambda name: read_commit(store, *name), names, NAMES_AT_ONCE))
