"""Ids that stand more than once in an input: found by 64-bit hashes, confirmed by the ids themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.expressions import Condition, evaluate

_ROWS_AT_A_TIME = 65536


@dataclass(frozen=True, slots=True)
class IdRun:
    """The rows of one row group whose ids are to be looked at."""

    uri: str
    row_group: int


def find_duplicates(
    runs: Sequence[IdRun], id_column: str, row_filter: Condition | None
) -> dict[tuple[str, int], set[int]]:
    """Rows whose id stood in an earlier row, by (uri, row group); runs are taken in their order.

    Rows that the filter skips count neither as first nor as later ones; null ids are left out.
    Memory: 16 bytes a row while sorting.
    """
    hashes, rows, starts = _hash_all(runs, id_column, row_filter)
    suspects = _later_of_equal(hashes)
    if not suspects.size:
        return {}
    by_hash: dict[int, list[int]] = defaultdict(list)
    wanted = np.isin(hashes, np.unique(hashes[suspects]))
    for position in np.flatnonzero(wanted):
        by_hash[int(hashes[position])].append(int(position))
    places = {p: _place(p, starts, rows, runs) for group in by_hash.values() for p in group}
    ids = _read_ids(places.values(), id_column)
    return _confirmed(by_hash.values(), places, ids)


def _hash_all(
    runs: Sequence[IdRun], id_column: str, row_filter: Condition | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes and row numbers of all rows that count, and where each run starts in them."""
    hashes: list[np.ndarray] = [np.empty(0, np.uint64)]
    rows: list[np.ndarray] = [np.empty(0, np.int64)]
    starts = [0]
    for run in runs:
        run_rows, values = _ids_of_run(run, id_column, row_filter)
        hashes.append(values)
        rows.append(run_rows)
        starts.append(starts[-1] + len(run_rows))
    return np.concatenate(hashes), np.concatenate(rows), np.asarray(starts)


def _ids_of_run(run: IdRun, id_column: str, row_filter: Condition | None) -> tuple[np.ndarray, np.ndarray]:
    columns = list(dict.fromkeys([id_column, *(row_filter.columns if row_filter else ())]))
    kept_rows, kept_hashes, first = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], 0
    with pq.ParquetFile(run.uri, pre_buffer=False) as parquet:
        for batch in parquet.iter_batches(_ROWS_AT_A_TIME, row_groups=[run.row_group], columns=columns):
            table = pa.Table.from_batches([batch])
            keep = np.ones(table.num_rows, bool)
            if row_filter is not None:
                keep &= np.asarray(evaluate([row_filter], table).masks[0], bool)
            column = _hashable(table.column(id_column))
            keep &= column.is_not_null().to_numpy()
            kept_rows.append(np.flatnonzero(keep) + first)
            kept_hashes.append(column.hash().to_numpy()[keep])
            first += table.num_rows
    return np.concatenate(kept_rows), np.concatenate(kept_hashes)


def _hashable(column: pa.ChunkedArray) -> pl.Series:
    """Ids as bytes, so that text that is no valid UTF-8 can't do harm; integers as they are."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not pa.types.is_integer(column.type):
        column = column.cast(pa.large_binary())
    return pl.Series(column)


def _later_of_equal(hashes: np.ndarray) -> np.ndarray:
    """Positions whose hash stood at an earlier position."""
    order = np.argsort(hashes, kind="stable")
    in_order = hashes[order]
    return order[1:][in_order[1:] == in_order[:-1]]


def _place(
    position: int, starts: np.ndarray, rows: np.ndarray, runs: Sequence[IdRun]
) -> tuple[str, int, int]:
    run = runs[int(np.searchsorted(starts, position, side="right")) - 1]
    return run.uri, run.row_group, int(rows[position])


def _read_ids(places: Iterable[tuple[str, int, int]], id_column: str) -> dict[tuple[str, int, int], object]:
    """The ids at some places, reading each row group's id column once."""
    by_group: dict[tuple[str, int], list[int]] = defaultdict(list)
    for uri, group, row in places:
        by_group[uri, group].append(row)
    found: dict[tuple[str, int, int], object] = {}
    for (uri, group), rows in by_group.items():
        with pq.ParquetFile(uri, pre_buffer=False) as parquet:
            column = parquet.read_row_group(group, columns=[id_column]).column(0)
        values = _hashable(column.take(pa.array(rows))).to_list()
        found.update({(uri, group, row): value for row, value in zip(rows, values, strict=True)})
    return found


def _confirmed(
    groups: Iterable[list[int]],
    places: dict[int, tuple[str, int, int]],
    ids: dict[tuple[str, int, int], object],
) -> dict[tuple[str, int], set[int]]:
    duplicates: dict[tuple[str, int], set[int]] = defaultdict(set)
    for positions in groups:
        seen: set[object] = set()
        for position in sorted(positions):
            uri, group, row = places[position]
            value = ids[uri, group, row]
            if value in seen:
                duplicates[uri, group].add(row)
            seen.add(value)
    return dict(duplicates)
