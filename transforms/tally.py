"""Adding up what is committed, and checking that the commit records agree with each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from schemas.batches import AmbiguousCall, BackendTotals, CommitRecord
from schemas.errors import ReconcileError, StoreError
from schemas.run import RunContext
from transforms.commit_totals import add_totals
from transforms.layout import list_commits, read_commit
from transforms.side_by_side import side_by_side
from transforms.store import Store


@dataclass(slots=True)
class Sums:
    """Running sums over commit records."""

    rows_in: int = 0
    rows_skipped: int = 0
    results: int = 0
    by_this_run: int = 0
    calls_by_this_run: int = 0
    results_by_route: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    failures_by_route: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    failures_by_class: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    totals: dict[str, dict[str, BackendTotals]] = field(default_factory=lambda: defaultdict(dict))
    ambiguous: list[AmbiguousCall] = field(default_factory=list)
    with_failures: dict[str, int] = field(default_factory=dict)  # batch → newest attempt
    batches: dict[str, int] = field(default_factory=dict)  # the same, of every batch


def _records(store: Store, run_id: str) -> Iterator[list[CommitRecord]]:
    """The commit records of each batch, by attempt; see `add_up` for what is checked of them."""

    def read(batch: tuple[str, list[int]]) -> list[CommitRecord]:
        records = [read_commit(store, batch[0], attempt) for attempt in batch[1]]
        _check_chain(records)
        for record in records:
            if record.run_id == run_id:
                _require_parts(store, record, "results")
        _require_parts(store, records[-1], "failures")
        return records

    return side_by_side(store, read, list_commits(store).items())


def add_up(store: Store, run: RunContext) -> Sums:
    """Add up every committed batch of an output.

    Raises:
        ReconcileError: the records of a batch contradict each other.
        StoreError: results that this run committed, or a batch's failures, are not there.
    """
    sums = Sums()
    for records in _records(store, run.run_id):
        newest = records[-1]
        sums.batches[newest.batch_id] = newest.attempt
        sums.rows_in += newest.rows_in
        sums.rows_skipped += records[0].rows_skipped
        _add_counts(sums.failures_by_route, newest.failures_by_route)
        _add_counts(sums.failures_by_class, newest.failures_by_class)
        if newest.failures:
            sums.with_failures[newest.batch_id] = newest.attempt
        for record in records:
            _add_record(sums, record, mine=record.run_id == run.run_id)
    return sums


def _add_record(sums: Sums, record: CommitRecord, *, mine: bool) -> None:
    sums.results += record.results
    _add_counts(sums.results_by_route, record.results_by_route)
    sums.ambiguous.extend(record.ambiguous)
    sums.by_this_run += mine
    for route, backends in record.totals.items():
        for name, totals in backends.items():
            before = sums.totals[route].get(name, BackendTotals())
            sums.totals[route][name] = add_totals(before, totals)
            sums.calls_by_this_run += (totals.calls - totals.replayed) if mine else 0


def _require_parts(store: Store, record: CommitRecord, kind: str) -> None:
    for part in record.parts:
        if part.kind == kind and not store.exists(part.final):
            raise StoreError(
                f"{store.root}/{part.final} was committed by {record.run_id} and is not there. "
                "Someone deleted it; restore it, or use a new output folder"
            )


def _check_chain(records: Sequence[CommitRecord]) -> None:
    """Attempts follow each other, and each takes up exactly what the one before left undone."""
    first = records[0]
    if [r.attempt for r in records] != list(range(1, len(records) + 1)):
        raise ReconcileError(
            f"batch {first.batch_id}: attempts {[r.attempt for r in records]}, one is missing"
        )
    if first.assignments < first.rows_in - first.rows_skipped:
        raise ReconcileError(
            f"batch {first.batch_id}: {first.rows_in} rows in, {first.rows_skipped} skipped, "
            f"but only {first.assignments} assignments"
        )
    for before, after in pairwise(records):
        if before.failures != after.results + after.failures:
            raise ReconcileError(
                f"batch {first.batch_id}: attempt {before.attempt} left {before.failures} failures, attempt "
                f"{after.attempt} accounts for {after.results + after.failures}"
            )


def _add_counts(into: dict[str, int], counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        into[name] += count
