"""What is committed in an output, by batch: its newest attempt and what that left undone.

Columns instead of records: a few dozen bytes a batch, so that a million batches are looked up in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.batches import CommitRecord
from transforms.batch_ids import ID_BYTES, Ids, ids_in, name_of, packed_ids
from transforms.commit_rows import commit_rows

Keys = npt.NDArray[np.bytes_]
"""Batch and attempt in one: the id's 16 bytes and four of the attempt, so that both are compared at once."""

Rows = npt.NDArray[np.int64]
_ROWS_AT_ONCE = 10_000
_KEY = np.dtype([("id", f"S{ID_BYTES}"), ("attempt", ">u4")])
_KEPT = ("batch_id", "attempt", "run_id", "uri", "generation", "failures", "failures_by_class", "refused")
LOOKED_UP = (*_KEPT, "duplicate_rows")
"""The columns of `COMMITS_SCHEMA` that are kept of each batch."""


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


class Committed:
    """The newest committed attempt of every batch of an output.

    For one batch there is `get`; for many, `rows_of` gives the places of all of them at once, and `attempts`
    and `failures_in` are arrays over those places.
    """

    def __init__(self, table: pa.Table) -> None:
        """Of a table with the columns `LOOKED_UP`, one row an attempt, in any order."""
        table = _newest(encoded(table.select(LOOKED_UP)))
        self.ids: Ids = ids_in(table.column("batch_id"))
        """The batches, ascending, 16 bytes each."""
        self.attempts: npt.NDArray[np.int32] = table.column("attempt").to_numpy()
        """The newest attempt of each."""
        self.failures: npt.NDArray[np.int64] = table.column("failures").to_numpy()
        """The failures that it left."""
        self._table = table

    @classmethod
    def of(cls, records: Iterable[CommitRecord]) -> Committed:
        """What some records come to."""
        return cls(commit_rows(records))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return int(self._table.nbytes)

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
        batch_id = name_of(self.ids[row])
        duplicates = self._table.column("duplicate_rows")[row].as_py() or ()
        if not self.failures[row]:
            return Standing(batch_id, int(self.attempts[row]), duplicate_rows=tuple(duplicates))
        return Standing(
            batch_id,
            int(self.attempts[row]),
            dict(self._table.column("failures_by_class")[row].as_py()),
            dict(self._table.column("refused")[row].as_py()),
            tuple(duplicates),
        )

    def rows_of(self, ids: Ids) -> Rows:
        """The places of many batches (see `packed_ids`); -1 of those of which nothing is committed."""
        return places_of(ids, self.ids)

    def failures_in(self, classes: Collection[str]) -> Rows:
        """Of each batch, how many failures of some classes it has left; by place."""
        column = self._table.column("failures_by_class").combine_chunks()
        of_class = pc.is_in(column.keys, value_set=pa.array(sorted(classes), pa.string()))
        counts = np.where(of_class.to_numpy(zero_copy_only=False), column.items.to_numpy(), 0)
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        offsets = column.offsets.to_numpy()
        return sums[offsets[1:]] - sums[offsets[:-1]]

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
        places = pa.array(rows, pa.int64(), mask=rows < 0)
        return self._table.column(column).combine_chunks().take(places)

    def files(self) -> Iterator[AnsweredFile]:
        """The input files of which something is committed, each content of one once."""
        columns = [self._table.column(name).combine_chunks() for name in ("uri", "generation", "run_id")]
        uris, generations = (column.indices.to_numpy().astype(np.int64) for column in columns[:2])
        _, first = np.unique(uris << 32 | generations, return_index=True)
        for row in first:
            yield AnsweredFile(*(column[int(row)].as_py() for column in columns))

    def _row(self, batch_id: str) -> int:
        return int(self.rows_of(packed_ids([batch_id]))[0])


def keys_of(table: pa.Table) -> Keys:
    """The attempts of a table with the columns `batch_id`, binary or hexadecimal, and `attempt`."""
    ids = ids_in(table.column("batch_id"))
    keys = np.empty(len(ids), _KEY)
    keys["id"], keys["attempt"] = ids, table.column("attempt").to_numpy()
    return keys.view(f"S{_KEY.itemsize}")


def key_of(names: Sequence[tuple[str, int]]) -> Keys:
    """The keys of some batches and attempts, in their order."""
    keys = np.empty(len(names), _KEY)
    keys["id"], keys["attempt"] = packed_ids([batch for batch, _ in names]), [a for _, a in names]
    return keys.view(f"S{_KEY.itemsize}")


def keys_without(keys: Keys, known: Keys) -> Keys:
    """Those of some keys that are not among others, which are sorted; in their order."""
    return keys[places_of(keys, known) < 0]


def with_keys(known: Keys, others: Keys) -> Keys:
    """Sorted keys and others, each once, ascending; costs little where there are few others."""
    new = np.unique(keys_without(others, known))
    return np.insert(known, np.searchsorted(known, new), new) if len(new) else known


def places_of(keys: Keys, known: Keys) -> Rows:
    """Where each of some keys stands among others, which are sorted; -1 where it doesn't."""
    if not len(known):
        return np.full(len(keys), -1, np.int64)
    found = np.searchsorted(known, keys)
    found[found == len(known)] = 0
    return np.where(known[found] == keys, found, -1)


def unpacked_keys(keys: Keys) -> tuple[Ids, npt.NDArray[np.int32]]:
    """The batches and attempts of keys."""
    fields = np.ascontiguousarray(keys).view(_KEY)
    return fields["id"].copy(), fields["attempt"].astype(np.int32)


def encoded(table: pa.Table) -> pa.Table:
    """A table of lookups with the names of files and runs kept once instead of once a batch."""
    for name in ("run_id", "uri", "generation"):
        column = table.column(name)
        if not pa.types.is_dictionary(column.type):
            table = table.set_column(table.schema.get_field_index(name), name, column.dictionary_encode())
    return table.unify_dictionaries()


def _newest(table: pa.Table) -> pa.Table:
    """Of each batch the row of its newest attempt, by batch; the same attempt may stand more than once."""
    table = table.take(pc.sort_indices(table, [("batch_id", "ascending"), ("attempt", "ascending")]))
    ids = ids_in(table.column("batch_id"))
    is_last = np.ones(len(ids), bool)
    is_last[:-1] = ids[:-1] != ids[1:]
    return table.filter(pa.array(is_last)).combine_chunks()
