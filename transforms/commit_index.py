"""The commit records of an output as tables: how every batch stands, and what every attempt says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from schemas.arrow import COMMITS_SCHEMA
from schemas.batches import CommitRecord
from transforms.commit_rows import commit_rows
from transforms.committed import LOOKED_UP, Committed
from transforms.layout import list_commits, read_commit
from transforms.side_by_side import side_by_side
from transforms.store import Store

_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class CommitIndex:
    """The commits of an output.

    `committed` says how every batch stands. `begun` are attempts that were planned and not committed, by
    batch: only they can have ledgers that no commit record accounts for. None: look at the ledgers.
    """

    committed: Committed
    pieces: Sequence[pa.Table] = ()
    begun: Mapping[str, int] | None = None

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of all attempts, each attempt once, piece by piece."""
        for piece in self.pieces:
            yield piece.select(columns)


def index_of(records: Sequence[CommitRecord]) -> CommitIndex:
    """The index of these records."""
    table = commit_rows(records)
    return CommitIndex(Committed(table), (table,))


def no_commits() -> CommitIndex:
    """The index of an output that has none."""
    return CommitIndex(Committed(COMMITS_SCHEMA.empty_table()))


def read_index(store: Store) -> CommitIndex:
    """The commits of an output as they stand. Reads only."""
    names = [(batch, attempt) for batch, attempts in list_commits(store).items() for attempt in attempts]
    pieces = []
    for start in range(0, len(names), _ROWS_AT_ONCE):
        piece = names[start : start + _ROWS_AT_ONCE]
        pieces.append(commit_rows(side_by_side(store, lambda name: read_commit(store, *name), piece)))
    if not pieces:
        return no_commits()
    return CommitIndex(Committed(pa.concat_tables([piece.select(LOOKED_UP) for piece in pieces])), pieces)


def sample_commits(store: Store, committed: Committed, most: int) -> tuple[CommitRecord, ...]:
    """The newest commit records of at most so many batches, spread evenly."""
    step = max(1, -(-len(committed) // most))
    rows = range(0, len(committed), step)
    names = [(standing.batch_id, standing.attempt) for standing in map(committed.standing, rows)]
    return tuple(side_by_side(store, lambda name: read_commit(store, *name), names))
