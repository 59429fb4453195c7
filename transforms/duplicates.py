"""Ids that stand more than once in an input: found by 64-bit hashes, confirmed by the ids themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from transforms.expressions import Condition
from transforms.intake import look_at_rows
from transforms.probe import Elsewhere, ReaderError, ReaderLimits, leave_reader, take_reader
from transforms.repeated_hashes import RepeatedHashes
from transforms.side_by_side import in_order
from transforms.store import is_remote

_ROWS_AT_A_TIME = 16384  # few enough that what a small file blows up to stays small here
_READERS = 8
_READERS_ELSEWHERE = 16  # which mostly wait for the network
_RUNS_A_READER = 4  # a process takes 0.2 s to start
_ROW_BITS = 34  # of a place: 28 bits number the row group, 34 the row in it
_LAST_ROW = (1 << _ROW_BITS) - 1

Numbers = npt.NDArray[np.int64]
T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class IdRun:
    """One row group whose ids are to be looked at.

    `done` are its row ranges (first, end) that are committed, ascending: their rows come before all others.
    `known` are rows that are known to be duplicates: no document of theirs was ever answered. An object in
    Cloud Storage is read at `generation`, if that is given with its `size`.
    """

    uri: str
    row_group: int
    done: tuple[tuple[int, int], ...] = ()
    known: frozenset[int] = frozenset()
    generation: str = ""
    size: int = 0


class Repeated:
    """Rows whose id stood in an earlier row, by the number of their row group among those looked at."""

    def __init__(self, places: Numbers) -> None:
        """Of the places of the rows (see `_place`), ascending."""
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def rows_of(self, run: int) -> list[int]:
        """Those of one row group, ascending."""
        first, end = np.searchsorted(self._places, [_place(run, 0), _place(run + 1, 0)])
        return [int(place) & _LAST_ROW for place in self._places[first:end]]

    def inside(self, runs: Numbers, first_rows: Numbers, row_counts: Numbers) -> pa.ListArray:
        """For each of many stretches of rows, which rows of it are repeated."""
        starts = np.searchsorted(self._places, _place(runs, first_rows))
        ends = np.searchsorted(self._places, _place(runs, first_rows + row_counts))
        offsets = np.concatenate([[0], np.cumsum(ends - starts)])
        places = np.repeat(starts - offsets[:-1], ends - starts) + np.arange(offsets[-1])
        rows = self._places[places] & _LAST_ROW
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(rows, pa.int64()))


def _place(run: Any, row: Any) -> Any:
    """Row group and row as one number, in the order of the input; of numbers and of arrays alike."""
    return run << _ROW_BITS | row


def find_duplicates(
    runs: Sequence[IdRun],
    schema: pa.Schema,
    id_column: str,
    row_filter: Condition | None,
    hashes: RepeatedHashes | None = None,
) -> Repeated:
    """Rows whose id stood in an earlier row; committed rows are the earliest.

    `schema` are the types that the columns are read as in all files. Rows that the filter skips
    count neither as first nor as later ones; null ids are left out. Row groups are read side by side, and
    asked for as there is room for them.
    Memory: a few MB, and for each row whose id stands more than once 50 bytes and the id. The hashes of all
    ids are in temporary files, 16 bytes a row (see `transforms.repeated_hashes`).
    """
    with hashes or RepeatedHashes() as found:
        note = partial(_note_hashes, schema, id_column, row_filter, found)
        for _ in _side_by_side(note, enumerate(runs), runs):
            pass
        places = found.repeated()
    cuts = np.flatnonzero(np.diff(places >> (_ROW_BITS + 1))) + 1
    wanted = np.split(places, cuts) if len(places) else []
    read = partial(_read_ids, pa.schema([schema.field(id_column)]))
    groups = ((runs[int(piece[0]) >> (_ROW_BITS + 1)], piece) for piece in wanted)
    return Repeated(_later_ones([piece for pieces in _side_by_side(read, groups, runs) for piece in pieces]))


def _side_by_side(work: Callable[[S], T], items: Iterable[S], runs: Sequence[IdRun]) -> Iterator[T]:
    """Do something about row groups, a few at a time: each takes a reader process."""
    elsewhere = bool(runs) and is_remote(runs[0].uri)
    readers = _READERS_ELSEWHERE if elsewhere else min(_READERS, os.cpu_count() or 1)
    readers = max(1, min(readers, len(runs) // _RUNS_A_READER))
    with ThreadPoolExecutor(readers, thread_name_prefix="ids") as pool:
        yield from in_order(pool, work, items, 2 * readers)


def _note_hashes(
    schema: pa.Schema,
    id_column: str,
    row_filter: Condition | None,
    found: RepeatedHashes,
    numbered: tuple[int, IdRun],
) -> None:
    """Take in the hashes of the ids of a row group that count, each with its place and whether it is open."""
    number, run = numbered
    columns = list(dict.fromkeys([id_column, *(row_filter.columns if row_filter else ())]))
    known = np.array(sorted(run.known), np.int64)
    first = 0
    for table in _tables(run, pa.schema([schema.field(name) for name in columns])):
        look = look_at_rows(table, row_filter)
        column = _hashable(look.table.column(id_column))
        rows = np.arange(first, first + table.num_rows)
        keep = column.is_not_null().to_numpy() & ~np.isin(rows, known)
        keep[list(look.skipped)] = False
        rows = rows[keep]
        found.add(column.hash().to_numpy()[keep], _place(number, rows) << 1 | _is_open(rows, run.done))
        first += table.num_rows


def _is_open(rows: Numbers, done: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Whether rows lie outside of some ranges, which ascend."""
    if not done:
        return np.ones(len(rows), bool)
    firsts, ends = np.array(done, np.int64).T
    before = np.searchsorted(firsts, rows, side="right") - 1
    return (before < 0) | (rows >= ends[before])


def _tables(run: IdRun, read_as: pa.Schema) -> Iterator[pa.Table]:
    """A row group's rows from front to back, up to those that can't be read.

    Those behind can't be read in a worker either: their batches fail there, with the reason.
    """
    first = 0
    reader = take_reader(ReaderLimits())
    reader.elsewhere = _elsewhere(run)
    try:
        while True:
            table = reader.rows(read_as, run.uri, run.row_group, first, _ROWS_AT_A_TIME)
            yield table
            first += table.num_rows
            if table.num_rows < _ROWS_AT_A_TIME:
                return
    except (ReaderError, FileNotFoundError):
        return
    finally:
        leave_reader(reader)


def _elsewhere(run: IdRun) -> Elsewhere | None:
    """Where an object's ranges come from, at the generation that is planned; None for a file that is here."""
    if not is_remote(run.uri) or not run.generation:
        return None
    from transforms.gcs.inputs import GENERATION_PREFIX, Ranges

    ranges = Ranges()
    ranges.fix(run.uri, run.size, run.generation.removeprefix(GENERATION_PREFIX))
    return ranges


def _hashable(column: pa.ChunkedArray) -> pl.Series:
    """Ids as bytes or integers, so that equal ids are equal here and nothing else is."""
    if not pa.types.is_integer(column.type):
        column = column.cast(pa.large_binary())
    return pl.Series(column)


def _read_ids(read_as: pa.Schema, group: tuple[IdRun, Numbers]) -> list[pl.DataFrame]:
    """The ids at some places of a row group, as far as they can still be read."""
    run, wanted = group
    rows, first, found = (wanted >> 1) & _LAST_ROW, 0, []
    for table in _tables(run, read_as):
        here = (rows >= first) & (rows < first + table.num_rows)
        ids = _hashable(table.column(0).take(pa.array(rows[here] - first)))
        found.append(pl.DataFrame({"place": wanted[here], "id": ids}))
        first += table.num_rows
    return found


def _later_ones(pieces: Sequence[pl.DataFrame]) -> Numbers:
    """The places of all but the first of equal ids: committed rows first, then as they stand."""
    if not pieces:
        return np.empty(0, np.int64)
    is_open = pl.col("place") & 1
    found = pl.concat(pieces).sort(is_open, "place")
    later = found.filter(pl.col("id").is_first_distinct().not_())
    places: Numbers = (later["place"].to_numpy() >> 1).astype(np.int64)
    return np.sort(places)
