"""What becomes of batches that other processes work on, from what stands in the output.

Workers of a cluster have no way to speak to the process that launched them, and need none: a commit
record says that a batch is done and what it cost, a report that a worker left says why it is not.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any, TypeVar

from schemas.batches import BatchRef, BatchReport, CommitRecord
from schemas.run import Progress
from transforms.layout import read_commit, report_path
from transforms.side_by_side import side_by_side
from transforms.store import Store

T = TypeVar("T")
_LOOKS = 256  # batches that one look asks the store about: the cost of looking does not grow with the run


class Watched:
    """The batches of a group that are worked on elsewhere.

    `look` finds commits among the batches that are still out, some hundred at a time, `look_at_all` among all
    of them; `finish` does that too and takes what the workers said of the rest. Each batch is told of once.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        group: int,
        refs: Sequence[BatchRef],
        emit: Callable[[dict[str, Any]], None],
        rehearsal: bool,
    ) -> None:
        self._store = store
        self._run_id = run_id
        self._group = group
        self._out = deque(refs)
        self._emit = emit
        self._rehearsal = rehearsal
        self._documents = self._batches = self._calls = 0
        self._amount = Decimal(0)

    @property
    def out(self) -> tuple[BatchRef, ...]:
        """The batches that are not committed as far as was looked."""
        return tuple(self._out)

    def look(self) -> None:
        """Look at some of the batches that are out, in turn, and say how far the group is."""
        looked_at = [self._out.popleft() for _ in range(min(_LOOKS, len(self._out)))]
        self._out.extend(self._not_committed_of(looked_at))
        self._say()

    def look_at_all(self) -> None:
        """Look at every batch that is out, and say how far the group is."""
        self._out = deque(self._not_committed_of(self._out))
        self._say()

    def finish(self) -> None:
        """The last pipeline has ended: what is not committed by now won't be."""
        for report in side_by_side(self._store, self._left_report, self._not_committed_of(self._out)):
            if report is not None:
                self._tell(report)
        self._out.clear()
        self._say()

    def _not_committed_of(self, refs: Iterable[BatchRef]) -> list[BatchRef]:
        """Tell of those that are committed; the others."""
        refs = list(refs)
        records = side_by_side(self._store, self._record, refs)
        return [ref for ref, record in zip(refs, records, strict=True) if not self._committed(ref, record)]

    def _record(self, ref: BatchRef) -> CommitRecord | None:
        try:
            return read_commit(self._store, ref.batch_id, ref.attempt)
        except FileNotFoundError:
            return None

    def _committed(self, ref: BatchRef, record: CommitRecord | None) -> bool:
        if record is None:
            return False
        self._batches += 1
        self._documents += record.rows_in
        for totals in (t for backends in record.totals.values() for t in backends.values()):
            self._calls += totals.calls
            self._amount += Decimal(totals.list_amount if self._rehearsal else totals.amount)
        state = "committed" if record.run_id == self._run_id else "already_committed"
        self._tell(BatchReport(ref.batch_id, ref.attempt, state, record=record))
        return True

    def _left_report(self, ref: BatchRef) -> BatchReport | None:
        try:
            left = self._store.read(report_path(self._run_id, ref.batch_id, ref.attempt))
        except FileNotFoundError:
            return None  # nobody spoke of it: the launcher knows that it was due
        return BatchReport.from_dict(json.loads(left))

    def _tell(self, report: BatchReport) -> None:
        self._emit({"event": "batch", "report": report.to_dict()})

    def _say(self) -> None:
        progress = Progress(self._group, self._documents, self._batches, self._calls, str(self._amount))
        self._emit({"event": "progress", **progress.to_dict()})


def run_stages(stages: Sequence[T], watched: Watched, work: Callable[[T, Sequence[BatchRef]], None]) -> None:
    """Work through stages one after the other, each over what those before it have not committed.

    One that would have nothing to do is not begun: its workers may be expensive ones.
    """
    try:
        for stage in stages:
            out = watched.out
            if not out:
                break
            work(stage, out)
            watched.look_at_all()
    finally:
        watched.finish()
