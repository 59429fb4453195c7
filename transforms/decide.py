"""From a batch as it was read to a batch that knows what is to be done with each of its rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa

from schemas.batches import BatchRef
from schemas.ids import sha256_hex
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
    return [digest for chunk in texts.chunks for digest in _chunk_digests(chunk.cast(pa.large_binary()))]


def _chunk_digests(chunk: pa.LargeBinaryArray) -> list[str | None]:
    """Over the buffers themselves: an Arrow scalar for each value takes longer than its digest."""
    if not len(chunk):  # which may have no buffers
        return []
    _, offsets, data = chunk.buffers()
    ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
    content = memoryview(b"" if data is None else data)
    digests: list[str | None] = [sha256_hex(content[start:end]) for start, end in pairwise(ends)]
    for position in np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False)).tolist():
        digests[position] = None
    return digests
