"""Ids that stand more than once in an input: found by 64-bit hashes, confirmed by the ids themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from transforms.expressions import Condition
from transforms.intake import look_at_rows
from transforms.probe import ReaderError, ReaderLimits, leave_reader, take_reader

_ROWS_AT_A_TIME = 16384  # few enough that what a small file blows up to stays small here


@dataclass(frozen=True, slots=True)
class IdRun:
    """One row group whose ids are to be looked at.

    `done` are its row ranges (first, end) that are committed: their rows come before all others.
    `known` are rows that are known to be duplicates: no document of theirs was ever answered.
    """

    uri: str
    row_group: int
    done: tuple[tuple[int, int], ...] = ()
    known: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class _Ids:
    """The ids of a run's rows that count: rows, hashes, and whether a row is not committed yet."""

    rows: np.ndarray
    hashes: np.ndarray
    open: np.ndarray


def find_duplicates(
    runs: Sequence[IdRun], schema: pa.Schema, id_column: str, row_filter: Condition | None
) -> dict[tuple[str, int], set[int]]:
    """Rows whose id stood in an earlier row, by (uri, row group); committed rows are the earliest.

    `schema` are the types that the columns are read as in all files. Rows that the filter skips
    count neither as first nor as later ones; null ids are left out.
    Memory: 17 bytes a row, and as much again while sorting.
    """
    found = [_ids_of_run(run, schema, id_column, row_filter) for run in runs]
    starts = np.cumsum([0, *(len(ids.rows) for ids in found)])
    if not starts[-1]:
        return {}
    hashes = np.concatenate([ids.hashes for ids in found])
    rows = np.concatenate([ids.rows for ids in found])
    order = np.lexsort((np.concatenate([ids.open for ids in found]), hashes))
    groups = list(_equal_neighbours(order, hashes))
    places = {int(p): _place(int(p), starts, rows, runs) for group in groups for p in group}
    ids = _read_ids(places.values(), id_column, schema)
    return _confirmed(groups, places, ids)


def _ids_of_run(run: IdRun, schema: pa.Schema, id_column: str, row_filter: Condition | None) -> _Ids:
    columns = list(dict.fromkeys([id_column, *(row_filter.columns if row_filter else ())]))
    read_as = pa.schema([schema.field(name) for name in columns])
    kept_rows, kept_hashes, first = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], 0
    for table in _tables(run.uri, run.row_group, read_as):
        look = look_at_rows(table, row_filter)
        column = _hashable(look.table.column(id_column))
        keep = column.is_not_null().to_numpy().copy()
        keep[list(look.skipped)] = False
        keep[[row - first for row in run.known if first <= row < first + table.num_rows]] = False
        kept_rows.append(np.flatnonzero(keep) + first)
        kept_hashes.append(column.hash().to_numpy()[keep])
        first += table.num_rows
    rows = np.concatenate(kept_rows)
    is_open = np.ones(len(rows), bool)
    for start, end in run.done:
        is_open &= (rows < start) | (rows >= end)
    return _Ids(rows, np.concatenate(kept_hashes), is_open)


def _tables(uri: str, group: int, read_as: pa.Schema) -> Iterator[pa.Table]:
    """A row group's rows from front to back, up to those that can't be read.

    Those behind can't be read in a worker either: their batches fail there, with the reason.
    """
    first = 0
    reader = take_reader(ReaderLimits())
    try:
        while True:
            table = reader.rows(read_as, uri, group, first, _ROWS_AT_A_TIME)
            yield table
            first += table.num_rows
            if table.num_rows < _ROWS_AT_A_TIME:
                return
    except ReaderError:
        return
    finally:
        leave_reader(reader)


def _hashable(column: pa.ChunkedArray) -> pl.Series:
    """Ids as bytes or integers, so that equal ids are equal here and nothing else is."""
    if not pa.types.is_integer(column.type):
        column = column.cast(pa.large_binary())
    return pl.Series(column)


def _equal_neighbours(order: np.ndarray, hashes: np.ndarray) -> Iterator[np.ndarray]:
    """The positions of equal hashes, in `order`; hashes that stand once are left out."""
    in_order = hashes[order]
    borders = np.flatnonzero(in_order[1:] != in_order[:-1]) + 1
    edges = np.concatenate([[0], borders, [len(order)]])
    for index in np.flatnonzero(np.diff(edges) > 1):
        yield order[edges[index] : edges[index + 1]]


def _place(
    position: int, starts: np.ndarray, rows: np.ndarray, runs: Sequence[IdRun]
) -> tuple[str, int, int]:
    run = runs[int(np.searchsorted(starts, position, side="right")) - 1]
    return run.uri, run.row_group, int(rows[position])


def _read_ids(
    places: Iterable[tuple[str, int, int]], id_column: str, schema: pa.Schema
) -> dict[tuple[str, int, int], object]:
    """The ids at some places, reading each row group's id column once."""
    by_group: dict[tuple[str, int], list[int]] = defaultdict(list)
    for uri, group, row in places:
        by_group[uri, group].append(row)
    found: dict[tuple[str, int, int], object] = {}
    read_as = pa.schema([schema.field(id_column)])
    for (uri, group), rows in by_group.items():
        wanted, first = np.unique(rows), 0
        for table in _tables(uri, group, read_as):
            here = wanted[(wanted >= first) & (wanted < first + table.num_rows)]
            values = _hashable(table.column(0).take(pa.array(here - first))).to_list()
            found.update({(uri, group, int(row)): value for row, value in zip(here, values, strict=True)})
            first += table.num_rows
    return found


def _confirmed(
    groups: Iterable[np.ndarray],
    places: dict[int, tuple[str, int, int]],
    ids: dict[tuple[str, int, int], object],
) -> dict[tuple[str, int], set[int]]:
    duplicates: dict[tuple[str, int], set[int]] = defaultdict(set)
    for positions in groups:
        seen: set[object] = set()
        for position in positions:
            uri, group, row = places[int(position)]
            value = ids.get((uri, group, row))
            if value is not None and value in seen:
                duplicates[uri, group].add(row)
            seen.add(value)
    return dict(duplicates)
