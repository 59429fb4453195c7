"""From a batch as it was read to a batch that knows what is to be done with each of its rows."""

from __future__ import annotations

import hashlib

import pyarrow as pa

from schemas.batches import BatchRef
from transforms.intake import inspect_rows
from transforms.previous import Previous
from transforms.route import Rules, choose_routes, only_pairs
from transforms.work import WorkBatch


def decide(rules: Rules, ref: BatchRef, table: pa.Table, previous: Previous | None) -> WorkBatch:
    """Inspect and route a batch's rows; of a further attempt, those alone that are tried again."""
    settings = rules.workload.input
    duplicates = [row - ref.first_row for row in ref.duplicate_rows]
    intake = inspect_rows(table, settings, rules.row_filter, duplicates)
    decisions = choose_routes(rules, intake, ref.first_row)
    if previous is not None:
        decisions = only_pairs(decisions, previous.retry)
        expected = frozenset(previous.retry)
    else:
        decided = [o.assignment for o in decisions.done] + [a for _, a in decisions.todo]
        expected = frozenset((a.row, a.route) for a in decided)
    return WorkBatch(
        ref=ref,
        table=intake.table,
        digests=_digests(table.column(settings.text)),
        rows_skipped=len(intake.skipped),
        todo=decisions.todo,
        outcomes=decisions.done,
        carried=None if previous is None else previous.carried,
        prior={} if previous is None else previous.retry,
        expected=expected,
    )


def _digests(texts: pa.ChunkedArray) -> list[str | None]:
    """SHA-256 of each text's bytes as they stand in the input, without copying them."""
    return [
        None if not value.is_valid else hashlib.sha256(value.as_buffer()).hexdigest()
        for chunk in texts.chunks
        for value in chunk.cast(pa.large_binary())
    ]
