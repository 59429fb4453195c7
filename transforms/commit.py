"""The commit: the one moment that counts, and what makes it visible.

A batch's attempt is committed by creating its commit record, and the failures that it leaves with it. Of
several workers on one attempt one creates it; the parts of the others are named by no record, are never
published and are swept. Publishing only gives committed results their final names: whoever comes first does
it, any number of times. What is shown of failures is made from the records (`transforms.failure_files`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from schemas.batches import BackendTotals, CommitRecord, PartRef
from schemas.errors import ReconcileError, StoreError
from schemas.failures import FailureClass, is_retryable
from schemas.ids import key_sum, row_key
from schemas.outcomes import ZERO, Outcome, money_text
from schemas.run import RunContext
from transforms.commit_file import commit_bytes
from transforms.layout import (
    STAGING,
    commit_path,
    parse_name,
    read_commit,
)
from transforms.output_lock import require_held
from transforms.store import Store
from transforms.work import WorkBatch


@dataclass(frozen=True, slots=True)
class Draft:
    """A commit record that is not created yet, and the failures that it leaves, as they travel with it."""

    record: CommitRecord
    failures: bytes = b""

    def to_bytes(self) -> bytes:
        """The object that commits it."""
        return commit_bytes(self.record, self.failures)


@dataclass(frozen=True, slots=True)
class Commit:
    """The record that won, and whether it is this writer's."""

    record: CommitRecord
    won: bool


def reconcile(batch: WorkBatch, parts: Sequence[PartRef]) -> str:
    """Prove that every assignment of the batch is exactly one row of its parts; the key sum.

    Of a first attempt every row that was not skipped must have an assignment.

    Raises:
        ReconcileError: it is not so. Nothing may be committed then.
    """
    pairs = [(o.assignment.row, o.assignment.route) for o in batch.outcomes]
    found = key_sum(row_key(*p) for p in pairs)
    is_same = len(pairs) == len(batch.expected) and set(pairs) == batch.expected
    expected = found if is_same else key_sum(row_key(*p) for p in batch.expected)
    carried = batch.carried.num_rows if batch.carried is not None else 0
    written = sum(part.rows for part in parts) - carried
    rows = len({row for row, _ in batch.expected}) + batch.rows_skipped
    lost = batch.ref.previous_attempt is None and rows != batch.ref.row_count
    if lost or batch.todo or expected != found or not (len(batch.expected) == len(pairs) == written):
        raise ReconcileError(
            f"batch {batch.ref.batch_id} attempt {batch.ref.attempt}: {batch.ref.row_count} rows, {rows} of "
            f"them skipped or assigned; {len(batch.expected)} assignments, {len(pairs)} outcomes, {written} "
            f"rows written, {len(batch.todo)} never taken, key sums {expected:032x} and {found:032x}. "
            "Nothing of it was committed. This is a defect: report it"
        )
    return f"{found:032x}"


def make_record(
    batch: WorkBatch, parts: Sequence[PartRef], run: RunContext, writer: str, now: datetime
) -> CommitRecord:
    """The commit record of a batch whose parts are staged.

    Raises:
        ReconcileError: see `reconcile`.
    """
    sums = reconcile(batch, parts)
    failed = [o for o in batch.outcomes if not o.is_result]
    by_class = _carried_counts(batch)
    for outcome in failed:
        by_class[str(outcome.failure)] += 1
    failures = sum(by_class.values())
    return CommitRecord(
        batch_id=batch.ref.batch_id,
        attempt=batch.ref.attempt,
        run_id=run.run_id,
        writer=writer,
        workload_sha256=run.workload_sha256,
        committed_at=now.isoformat(),
        ref=batch.ref,
        rows_in=batch.ref.row_count,
        rows_skipped=batch.rows_skipped,
        assignments=len(batch.outcomes) - len(failed) + failures,
        results=len(batch.outcomes) - len(failed),
        failures=failures,
        retryable=sum(n for name, n in by_class.items() if is_retryable(FailureClass(name))),
        key_sum=sums,
        parts=tuple(parts),
        failures_by_class=dict(by_class),
        results_by_route=_count_routes([o for o in batch.outcomes if o.is_result]),
        failures_by_route=_failures_by_route(batch, failed),
        totals=_totals(batch.outcomes),
        ambiguous=tuple(batch.ambiguous),
        rehearsal=run.rehearsal,
        refused=_refused(failed),
    )


def _carried_counts(batch: WorkBatch) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    if batch.carried is not None:
        for name in batch.carried.column("error_class").to_pylist():
            counts[name] += 1
    return counts


def _refused(failed: Sequence[Outcome]) -> dict[str, str]:
    """The least that each cap has refused: with less than that left, trying again is of no use."""
    least: dict[str, Decimal] = {}
    for outcome in failed:
        if outcome.refused_by:
            need = outcome.refused_need
            least[outcome.refused_by] = min(need, least.get(outcome.refused_by, need))
    return {cap: money_text(need) for cap, need in sorted(least.items())}


def _count_routes(outcomes: Sequence[Outcome]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for outcome in outcomes:
        counts[outcome.assignment.route] += 1
    return dict(counts)


def _failures_by_route(batch: WorkBatch, failed: Sequence[Outcome]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int, _count_routes(failed))
    if batch.carried is not None:
        for lineage in batch.carried.column("lineage").to_pylist():
            counts[lineage["route"] or ""] += 1
    return dict(counts)


def _totals(outcomes: Sequence[Outcome]) -> dict[str, dict[str, BackendTotals]]:
    """What this attempt spent, by route and backend (the last backend that was tried).

    A document that only waits for a provider batch was not worked on, and is counted when it is.
    """
    grouped: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        waits = outcome.failure is FailureClass.AWAITING_BATCH and not outcome.calls
        if outcome.backend is not None and not waits:
            grouped[outcome.assignment.route, outcome.backend].append(outcome)
    totals: dict[str, dict[str, BackendTotals]] = defaultdict(dict)
    for (route, backend), members in grouped.items():
        totals[route][backend] = _sum_outcomes(members)
    return dict(totals)


def _sum_outcomes(outcomes: Sequence[Outcome]) -> BackendTotals:
    known = [o.charge for o in outcomes if o.charge.amount is not None]
    bases = sorted((o.charge.basis for o in outcomes if o.charge.basis != "none"), key="shared".__eq__)
    return BackendTotals(
        documents=len(outcomes),
        results=sum(o.is_result for o in outcomes),
        calls=sum(o.calls for o in outcomes),
        replayed=sum(o.replayed_calls for o in outcomes),
        ambiguous=sum(o.ambiguous_calls for o in outcomes),
        ambiguous_amount=money_text(sum((o.ambiguous_amount for o in outcomes), ZERO)),
        input_tokens=sum(o.usage.input_tokens or 0 for o in outcomes),
        output_tokens=sum(o.usage.output_tokens or 0 for o in outcomes),
        amount=money_text(sum((c.amount for c in known if c.amount is not None), ZERO)),
        list_amount=money_text(sum((c.list_amount for c in known if c.list_amount is not None), ZERO)),
        unknown=len(outcomes) - len(known),
        device_seconds=sum(o.charge.device_seconds or 0.0 for o in outcomes),
        basis=bases[0] if bases else "none",
        shared=sum(o.shared_from is not None for o in outcomes),
    )


def commit(store: Store, draft: Draft) -> Commit:
    """Commit a batch's attempt, and publish the results of what won.

    A record of our own that is already there (an acknowledgement that was lost) counts as won.

    Raises:
        StoreError: a staged part is gone, or can't be published. Unless a record is there, nothing of
            this attempt is committed.
    """
    record = draft.record
    path = commit_path(record.batch_id, record.attempt)
    _require_staged(store, record, path)
    created = store.create(path, draft.to_bytes())
    winner = record if created else read_commit(store, record.batch_id, record.attempt)
    publish(store, winner)
    won = winner.writer == record.writer
    if not won:
        for part in files_of(record):
            store.delete(part.staged)
    return Commit(winner, won)


def files_of(record: CommitRecord) -> list[PartRef]:
    """The parts of a record that are files."""
    return [part for part in record.parts if part.is_file]


def _require_staged(store: Store, record: CommitRecord, path: str) -> None:
    """A writer that was given up and comes back may find that its parts were swept."""
    gone = [part.staged for part in files_of(record) if not store.exists(part.staged)]
    if gone and not store.exists(path):
        raise StoreError(
            f"{store.root}/{gone[0]} is gone: another run has swept this output meanwhile. Nothing of batch "
            f"{record.batch_id} attempt {record.attempt} was committed; run again to do it"
        )


def publish(store: Store, record: CommitRecord) -> None:
    """Give a committed record's results their final names.

    Raises:
        StoreError: a part is under neither name.
    """
    for part in files_of(record):
        if part.kind == "results" or store.exists(part.staged):  # failures: of an earlier version's record
            store.publish(part.staged, part.final)


def recover(store: Store) -> int:
    """Finish what was committed but not published, and sweep what no commit names; the files deleted.

    Only for the holder of the output's lock: no worker may be staging anything meanwhile. It lists what is
    staged, and nothing else.

    Raises:
        StoreError: see `publish`, and `transforms.output_lock.require_held`.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for path in store.list(STAGING):
        folders[path.split("/")[1]].append(path)
    for folder, paths in folders.items():
        require_held(store)
        record = _committed_from(store, folder)
        if record is not None:
            publish(store, record)
        for path in paths:
            store.delete(path)
    store.prune(STAGING)
    return sum(len(paths) for paths in folders.values())


def _committed_from(store: Store, folder: str) -> CommitRecord | None:
    """The commit record whose parts were staged in this folder; None if there is none."""
    name = parse_name(folder)
    if name is None:
        return None
    batch_id, attempt, writer = name
    try:
        record = read_commit(store, batch_id, attempt)
    except FileNotFoundError:
        return None
    return record if record.writer == writer else None
