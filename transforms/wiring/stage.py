"""What every stage of a batch's way does, whatever it is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from schemas.batches import BatchRef, BatchReport
from schemas.errors import BatchError, LedgerError, ReconcileError, StoreError, first_line
from transforms.process_workers import join_worker, leave_worker
from transforms.read import place
from transforms.work import WorkBatch
from transforms.worker import Worker, WorkerConfig

REPORTS = "reports"
HOLD_BYTES = 128 << 20
"""Of batches that wait for calls or embeddings, however few rows of them do."""

_BATCH_TROUBLES = (BatchError, LedgerError, ReconcileError, StoreError, OSError)


class StageDoFn(beam.DoFn):
    """A stage of a batch's way.

    `worker` is the process's and is looked up in `setup`: anything that Beam could reach while it
    builds the graph (it reads attributes, properties too) would travel to the workers as a pickle.
    """

    worker: Worker

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config

    def setup(self) -> None:
        self.worker = join_worker(self._config)

    def teardown(self) -> None:
        leave_worker(self._config)

    def guarded(self, ref: BatchRef, work: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        """Do something for one batch; its troubles become its report, other batches go on."""
        try:
            yield from work()
        except _BATCH_TROUBLES as error:
            sentence = str(error) if place(ref) in str(error) else f"{place(ref)}: {first_line(error)}"
            yield self.reported(BatchReport(ref.batch_id, ref.attempt, "failed", sentence))

    def reported(self, report: BatchReport) -> TaggedOutput:
        """Tell this process's listener at once; the stage behind the output may run much later.

        The batch has left the chain: another process may have it.
        """
        self.worker.give_back(report.batch_id)
        return self.told(report)

    def told(self, report: BatchReport) -> TaggedOutput:
        """Tell of a batch that this stage never had, whose claim is somebody else's to end."""
        self.worker.report(report)
        return TaggedOutput(REPORTS, report)


def held_bytes(batches: Iterable[WorkBatch]) -> int:
    """What batches take in memory."""
    return sum(batch.table.nbytes for batch in batches)


def windowed(values: Iterable[Any]) -> Iterator[WindowedValue]:
    """Outputs of `finish_bundle`, where Beam wants each with its window."""
    window = GlobalWindow()
    for value in values:
        if isinstance(value, TaggedOutput):
            yield TaggedOutput(value.tag, WindowedValue(value.value, window.max_timestamp(), [window]))
        else:
            yield WindowedValue(value, window.max_timestamp(), [window])
