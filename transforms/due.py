"""Which batches are due: those of which nothing is committed, and failures that are tried again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pyarrow as pa

from schemas.failures import FailureClass, is_retryable
from transforms.batch_ids import packed_ids
from transforms.batch_refs import BatchRefs, Mask, Rows
from transforms.committed import Committed

RETRYABLE_CLASSES = frozenset(name.value for name in FailureClass if is_retryable(name))


@dataclass(frozen=True, slots=True)
class Due:
    """The batches that are due, in order: which attempts, and where each stands among all batches.

    `rows` are those that the attempt works on: all of a new batch, else the failures that are tried again.
    """

    refs: BatchRefs
    rows: Rows
    numbers: Rows

    def where(self, mask: Mask) -> Due:
        """Those for which `mask` is true."""
        return self if mask.all() else Due(self.refs.where(mask), self.rows[mask], self.numbers[mask])


def find_due_batches(
    every: BatchRefs, committed: Committed, waiting: Collection[str] = (), retry_classes: Sequence[str] = ()
) -> Due:
    """What of some batches is due.

    `waiting` are batches with requests in provider batches that have not come back: where nothing else is
    left to try again, nothing is due. `retry_classes` are tried again besides the retryable ones.
    """
    if not len(committed):
        return Due(every, every.row_counts, np.arange(len(every)))
    places = committed.rows_of(every.ids)
    left = committed.failures_in(RETRYABLE_CLASSES.union(retry_classes)).copy()
    awaiting = committed.failures_in([FailureClass.AWAITING_BATCH.value])
    waits = committed.rows_of(packed_ids(sorted(waiting)))
    waits = waits[waits >= 0]
    left[waits[left[waits] == awaiting[waits]]] = 0
    is_new = places < 0
    rows = np.where(is_new, every.row_counts, left[places])
    is_due = is_new | (rows > 0)
    refs = every.where(is_due)
    if not is_new[is_due].all():
        refs = _further_attempts(refs, committed, places[is_due], retry_classes)
    return Due(refs, rows[is_due], np.flatnonzero(is_due))


def _further_attempts(
    refs: BatchRefs, committed: Committed, places: Rows, retry_classes: Sequence[str]
) -> BatchRefs:
    """The attempts that follow the committed ones; the first ones of batches that are at no place."""
    is_new, before = places < 0, committed.attempts[places]
    classes = sorted(set(retry_classes))
    ends = np.cumsum(np.where(is_new, 0, len(classes)))
    return refs.replaced(
        attempt=pa.array(np.where(is_new, 1, before + 1), pa.int32()),
        previous_attempt=pa.array(before, pa.int32(), mask=is_new),
        duplicate_rows=committed.duplicates_at(places),
        retry_classes=pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], ends]), pa.int32()),
            pa.array(classes * int((~is_new).sum()), pa.string()),
        ),
    )


def beyond_caps(due: Due, committed: Committed, left: Mapping[str, Decimal]) -> Mask:
    """Which batches have nothing left but what caps refused that have too little left for any of it.

    Trying those again would refuse it again, and write the same failures once more. `left` is what each cap
    has left.
    """
    beyond = np.zeros(len(due.refs), bool)
    if not left or not len(committed):
        return beyond
    places = committed.rows_of(due.refs.ids)
    exhausted = committed.failures_in([FailureClass.BUDGET_EXHAUSTED.value])
    refused = np.flatnonzero((places >= 0) & (exhausted[places] == due.rows))
    for number, needs in zip(refused, committed.refused_at(places[refused]), strict=True):
        beyond[number] = bool(needs) and all(
            cap in left and left[cap] < Decimal(need) for cap, need in needs.items()
        )
    return beyond


def beginning_with(refs: BatchRefs, beginnings: Sequence[str]) -> Iterator[Mask]:
    """For each beginning of a batch id (hexadecimal digits), which batches have it."""
    order = np.argsort(refs.ids)
    ordered = refs.ids[order]
    for beginning in beginnings:
        mask = np.zeros(len(refs), bool)
        if set(beginning) <= set("0123456789abcdef") and len(beginning) <= 32:
            least, most = packed_ids([beginning.ljust(32, "0"), beginning.ljust(32, "f")])
            first, end = np.searchsorted(ordered, least), np.searchsorted(ordered, most, side="right")
            mask[order[first:end]] = True
        yield mask
