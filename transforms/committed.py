"""What is committed in an output, by batch: its newest attempt and what that left undone.

Arrays instead of records: some forty bytes a batch, so that a million batches are looked up in memory. What
an attempt left is kept of those that left something.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import COMMITS_SCHEMA
from schemas.batches import CommitRecord
from transforms.attempt_keys import (
    Keys,
    Rows,
    ascending,
    keys_of,
    newest_of,
    places_of,
    unpacked_keys,
    with_keys,
)
from transforms.batch_ids import Ids, name_of, packed_ids
from transforms.commit_rows import commit_rows

_ROWS_AT_ONCE = 10_000
_NOTED = ("batch_id", "attempt", "failures_by_class", "refused", "duplicate_rows")
_OF_FILES = ("uri", "generation", "run_id")
LOOKED_UP = (*_NOTED, *_OF_FILES)
"""The columns of `COMMITS_SCHEMA` that lookups are made of."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one batch stands: its newest committed attempt, and the failures that this left.

    `refused` has, by cap, the least amount that it refused; `duplicate_rows` are rows whose id stood in an
    earlier batch.
    """

    batch_id: str
    attempt: int
    failures_by_class: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    duplicate_rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AnsweredFile:
    """An input file of which documents were answered: its content then, and a run that did."""

    uri: str
    generation: str
    run_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Lookups:
    """What is kept of some attempts: which they are, what those left that left anything, and of which files.

    Each content of an input file stands there once for each table that these were made of.
    """

    keys: Keys
    noted: pa.Table
    files: pa.Table

    @classmethod
    def of(cls, tables: Iterable[pa.Table]) -> Lookups:
        """Of tables with the columns `LOOKED_UP`, one row an attempt; each is taken and let go."""
        keys, noted, files = [], [_empty(_NOTED)], [_empty(_OF_FILES)]
        for table in tables:
            keys.append(keys_of(table))
            noted.append(_with_something_to_note(table.select(_NOTED)))
            files.append(_distinct(table.select(_OF_FILES)))
        return cls(ascending(keys), pa.concat_tables(noted), pa.concat_tables(files))

    @classmethod
    def joined(cls, parts: Sequence[Lookups]) -> Lookups:
        """All of them; an attempt that stands in several counts once."""
        return cls(
            ascending(part.keys for part in parts),
            pa.concat_tables([_empty(_NOTED), *(part.noted for part in parts)]),
            pa.concat_tables([_empty(_OF_FILES), *(part.files for part in parts)]),
        )

    def plus(self, few: Lookups) -> Lookups:
        """The same with others, at little cost where these are few."""
        return Lookups(
            with_keys(self.keys, few.keys),
            pa.concat_tables([self.noted, few.noted]),
            pa.concat_tables([self.files, few.files]),
        )


@cache
def _empty(columns: tuple[str, ...]) -> pa.Table:
    """To make it takes half a millisecond."""
    return COMMITS_SCHEMA.empty_table().select(columns)


def _with_something_to_note(table: pa.Table) -> pa.Table:
    lengths = sum(np.diff(_offsets(table, name)) for name in _NOTED[2:])
    return table.filter(pa.array(lengths > 0))


def _offsets(table: pa.Table, name: str) -> npt.NDArray[np.int32]:
    offsets: npt.NDArray[np.int32] = table.column(name).combine_chunks().offsets.to_numpy()
    return offsets


def _distinct(files: pa.Table) -> pa.Table:
    """Each content of a file once, with a run that answered documents of it."""
    if len(files) < 2:
        return files
    found = files.group_by(["uri", "generation"], use_threads=False).aggregate([("run_id", "min")])
    return found.rename_columns({"run_id_min": "run_id"}).select(_OF_FILES).cast(_empty(_OF_FILES).schema)


class Committed:
    """The newest committed attempt of every batch of an output.

    For one batch there is `get`; for many, `rows_of` gives the places of all of them at once, and `attempts`
    and `failures_in` are arrays over those places.
    """

    def __init__(self, lookups: Lookups) -> None:
        newest = newest_of(lookups.keys)
        ids, attempts = unpacked_keys(newest)
        self.ids: Ids = ids
        """The batches, ascending, 16 bytes each."""
        self.attempts: npt.NDArray[np.int32] = attempts
        """The newest attempt of each."""
        rows, first = np.unique(places_of(keys_of(lookups.noted), newest), return_index=True)
        self._noted_rows: Rows = rows[rows >= 0]
        self._noted = lookups.noted.take(pa.array(first[rows >= 0])).combine_chunks()
        self._files = lookups.files

    @classmethod
    def of(cls, records: Iterable[CommitRecord]) -> Committed:
        """What some records come to."""
        return cls(Lookups.of([commit_rows(records)]))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        arrays = (self.ids, self.attempts, self._noted_rows, self._noted, self._files)
        return sum(int(array.nbytes) for array in arrays)

    def __len__(self) -> int:
        """How many batches."""
        return len(self.ids)

    def __contains__(self, batch_id: str) -> bool:
        """Whether anything of a batch is committed."""
        return self._row(batch_id) >= 0

    def __iter__(self) -> Iterator[str]:
        """The batches, ascending."""
        return map(name_of, self.ids)

    def get(self, batch_id: str) -> Standing | None:
        """How a batch stands; None if nothing of it is committed."""
        row = self._row(batch_id)
        return None if row < 0 else self.standing(row)

    def attempts_of(self, ids: Ids) -> npt.NDArray[np.int32]:
        """The newest attempt of each of many batches; 0 where nothing is committed."""
        rows = self.rows_of(ids)
        if not len(self):
            return np.zeros(len(ids), np.int32)
        return np.where(rows < 0, 0, self.attempts[rows]).astype(np.int32)

    def standing(self, row: int) -> Standing:
        """The batch at a place."""
        batch_id, attempt = name_of(self.ids[row]), int(self.attempts[row])
        place = int(places_of(np.array([row]), self._noted_rows)[0])
        if place < 0:
            return Standing(batch_id, attempt)
        (noted,) = self._noted.slice(place, 1).to_pylist()
        return Standing(
            batch_id,
            attempt,
            dict(noted["failures_by_class"]),
            dict(noted["refused"]),
            tuple(noted["duplicate_rows"]),
        )

    def rows_of(self, ids: Ids) -> Rows:
        """The places of many batches (see `packed_ids`); -1 of those of which nothing is committed."""
        return places_of(ids, self.ids)

    def rows_with_failures(self) -> Rows:
        """The places of the batches that have failures left."""
        return self._noted_rows[np.diff(_offsets(self._noted, "failures_by_class")) > 0]

    def failures_in(self, classes: Collection[str]) -> Rows:
        """Of each batch, how many failures of some classes it has left; by place."""
        column = self._noted.column("failures_by_class").combine_chunks()
        of_class = pc.is_in(column.keys, value_set=pa.array(sorted(classes), pa.string()))
        counts = np.where(of_class.to_numpy(zero_copy_only=False), column.items.to_numpy(), 0)
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        offsets = column.offsets.to_numpy()
        found = np.zeros(len(self), np.int64)
        found[self._noted_rows] = sums[offsets[1:]] - sums[offsets[:-1]]
        return found

    def duplicates_at(self, rows: Rows) -> pa.ListArray:
        """The duplicate rows of the batches at many places; none at -1."""
        taken = self._taken("duplicate_rows", rows)
        counts = np.concatenate([[0], np.cumsum(taken.value_lengths().fill_null(0).to_numpy())])
        return pa.ListArray.from_arrays(pa.array(counts, pa.int32()), taken.flatten())

    def refused_at(self, rows: Rows) -> Iterator[Mapping[str, str]]:
        """What caps refused of the batches at many places; see `Standing`."""
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            taken = self._taken("refused", rows[start : start + _ROWS_AT_ONCE])
            yield from (dict(needs or ()) for needs in taken.to_pylist())

    def _taken(self, column: str, rows: Rows) -> Any:
        places = places_of(rows, self._noted_rows)
        indices = pa.array(places, pa.int64(), mask=places < 0)
        return self._noted.column(column).combine_chunks().take(indices)

    def files(self) -> Iterator[AnsweredFile]:
        """The input files of which something is committed, each content of one once."""
        for piece in _distinct(self._files).to_batches(_ROWS_AT_ONCE):
            for row in piece.to_pylist():
                yield AnsweredFile(**row)

    def _row(self, batch_id: str) -> int:
        return int(self.rows_of(packed_ids([batch_id]))[0])
