"""Adding up what is committed, and checking that the commit records agree with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.batches import AmbiguousCall, BackendTotals, CommitRecord
from schemas.errors import ReconcileError, StoreError
from schemas.run import RunContext
from transforms.attempt_keys import Rows, chained, keys_of, places_of, unpacked_keys
from transforms.batch_ids import ids_in, name_of
from transforms.commit_index import CommitIndex
from transforms.commit_totals import add_totals, entries, sum_totals
from transforms.store import Store

LISTED_AMBIGUOUS = 1000
"""Calls of unknown end that are listed; the others are counted."""

_COUNTS = ("rows_in", "rows_skipped", "assignments", "results", "failures")
_BY_NAME = ("failures_by_class", "failures_by_route", "results_by_route")
_COLUMNS = ("batch_id", "attempt", "run_id", *_COUNTS, *_BY_NAME, "totals", "ambiguous")


@dataclass(slots=True)
class Sums:
    """Running sums over commit records. `ambiguous` lists the first calls of unknown end."""

    rows_in: int = 0
    rows_skipped: int = 0
    results: int = 0
    batches: int = 0
    by_this_run: int = 0
    calls_by_this_run: int = 0
    results_by_route: Counter[str] = field(default_factory=Counter)
    failures_by_route: Counter[str] = field(default_factory=Counter)
    failures_by_class: Counter[str] = field(default_factory=Counter)
    totals: dict[str, dict[str, BackendTotals]] = field(default_factory=dict)
    ambiguous: list[AmbiguousCall] = field(default_factory=list)


def require_parts(store: Store, record: CommitRecord) -> None:
    """Make sure that what a record names is there.

    Raises:
        StoreError: results that it committed are not there.
    """
    for part in record.parts:
        if part.kind == "results" and not store.exists(part.final):
            raise StoreError(
                f"{store.root}/{part.final} was committed by {record.run_id} and is not there. "
                "Someone deleted it; restore it, or use a new output folder"
            )


def add_up(index: CommitIndex, run: RunContext) -> Sums:
    """Add up every committed batch of an output, a piece at a time.

    Raises:
        ReconcileError: the records of a batch contradict each other.
    """
    sums, chains = Sums(batches=len(index.committed)), _Chains(index)
    for table in index.tables(_COLUMNS):
        chains.take(table)
        newest = _newest(table, index)
        sums.rows_in += _sum(newest, "rows_in")
        sums.rows_skipped += _sum(table.filter(pc.equal(table.column("attempt"), 1)), "rows_skipped")
        sums.results += _sum(table, "results")
        sums.results_by_route += _by_name(table, "results_by_route")
        sums.failures_by_route += _by_name(newest, "failures_by_route")
        sums.failures_by_class += _by_name(newest, "failures_by_class")
        _add_totals(sums, table)
        mine = table.filter(pc.equal(table.column("run_id"), run.run_id))
        sums.by_this_run += len(mine)
        sums.calls_by_this_run += sum(t.calls - t.replayed for t in sum_totals(mine).values())
        _list_ambiguous(sums, table)
    chains.check()
    return sums


def _newest(table: pa.Table, index: CommitIndex) -> pa.Table:
    rows = index.committed.rows_of(ids_in(table.column("batch_id")))
    return table.filter(pa.array(index.committed.attempts[rows] == table.column("attempt").to_numpy()))


def _sum(table: pa.Table, name: str) -> int:
    return pc.sum(table.column(name)).as_py() or 0


def _by_name(table: pa.Table, name: str) -> Counter[str]:
    column = table.column(name).combine_chunks()
    flat = pa.table({"name": column.keys, "count": column.items})
    grouped = flat.group_by("name").aggregate([("count", "sum")])
    return Counter(dict(zip(*(grouped.column(n).to_pylist() for n in ("name", "count_sum")), strict=True)))


def _add_totals(sums: Sums, table: pa.Table) -> None:
    for (route, backend), totals in sum_totals(table).items():
        of_route = sums.totals.setdefault(route, {})
        of_route[backend] = add_totals(of_route.get(backend, BackendTotals()), totals)


def _list_ambiguous(sums: Sums, table: pa.Table) -> None:
    if len(sums.ambiguous) >= LISTED_AMBIGUOUS:
        return
    calls, rows = entries(table, "ambiguous")
    left = LISTED_AMBIGUOUS - len(sums.ambiguous)
    places = table.select(["batch_id", "attempt"]).take(rows.slice(0, left)).to_pylist()
    for place, call in zip(places, calls.slice(0, left).to_pylist(), strict=True):
        sums.ambiguous.append(AmbiguousCall(place["batch_id"].hex(), place["attempt"], **call))


class _Chains:
    """What must hold between the attempts of a batch: some numbers of each attempt, in order.

    An attempt that is its batch's only one is looked at when it comes by, and nothing of it is kept.
    """

    def __init__(self, index: CommitIndex) -> None:
        self._keys = chained(index.attempts)
        self._left = np.zeros(len(self._keys), np.int64)
        self._accounted = np.zeros(len(self._keys), np.int64)
        self._short = ""

    def take(self, table: pa.Table) -> None:
        """Note some attempts."""
        rows_in, skipped, assignments, results, failures = (table.column(n).to_numpy() for n in _COUNTS)
        keys = keys_of(table)
        is_first = table.column("attempt").to_numpy() == 1
        for row in _rows_where(is_first & (assignments < rows_in - skipped)):
            self._short = self._short or (
                f"batch {name_of(unpacked_keys(keys)[0][row])}: {rows_in[row]} rows in, "
                f"{skipped[row]} skipped, but only {assignments[row]} assignments"
            )
        places = places_of(keys, self._keys)
        self._left[places[places >= 0]] = failures[places >= 0]
        self._accounted[places[places >= 0]] = (results + failures)[places >= 0]

    def check(self) -> None:
        """Attempts follow each other, and each takes up exactly what the one before left undone."""
        ids, attempts = unpacked_keys(self._keys)
        follows = np.zeros(len(ids), bool)
        follows[1:] = ids[1:] == ids[:-1]
        before = np.where(follows, np.concatenate([attempts[:1], attempts[:-1]]), 0)
        for row in _rows_where(attempts != before + 1):
            every = [int(attempt) for attempt in attempts[ids == ids[row]]]
            raise ReconcileError(f"batch {name_of(ids[row])}: attempts {every}, one is missing")
        if self._short:
            raise ReconcileError(self._short)
        left = np.concatenate([self._left[:1], self._left[:-1]])
        for row in _rows_where(follows & (left != self._accounted)):
            raise ReconcileError(
                f"batch {name_of(ids[row])}: attempt {before[row]} left {left[row]} failures, attempt "
                f"{attempts[row]} accounts for {self._accounted[row]}"
            )


def _rows_where(wrong: npt.NDArray[np.bool_]) -> Iterator[int]:
    return map(int, np.flatnonzero(wrong))


def examples_of(index: CommitIndex, error_class: str, most: int) -> list[tuple[str, int]]:
    """A few batches whose newest attempt left failures of a class, with that attempt."""
    left: Rows = index.committed.failures_in([error_class])
    rows = np.flatnonzero(left)[:most]
    return [(name_of(index.committed.ids[row]), int(index.committed.attempts[row])) for row in rows]
