"""The stage that reads: batches that are free at once, those that somebody else has when they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from apache_beam.utils.windowed_value import WindowedValue

from schemas.batches import BatchRef, BatchReport
from schemas.errors import BatchClaimedError, BatchError, first_line
from transforms.layout import commit_path, read_commit
from transforms.probe import ReaderLimits
from transforms.read import BatchReader, place
from transforms.wiring.stage import StageDoFn, windowed
from transforms.worker import STOPPED, WorkerConfig

_LOOK_AGAIN_S = 0.2


class ReadDoFn(StageDoFn):
    """Reads what it can claim; batches that somebody else has are tried again when the bundle ends.

    That somebody is a worker of this run that its engine has given up but that goes on: what it commits
    needs no work, and what it does not is free within moments.
    """

    def __init__(self, config: WorkerConfig, patience_s: float) -> None:
        super().__init__(config)
        self._patience_s = patience_s
        self._reader: BatchReader | None = None
        self._claimed: list[BatchRef] = []

    def start_bundle(self) -> None:
        self._claimed.clear()

    def process(self, ref: BatchRef) -> Iterator[Any]:
        yield from self.guarded(ref, lambda: self._read_or_wait(ref))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        waiting, self._claimed = self._claimed, []
        until = time.monotonic() + self._patience_s
        for ref in waiting:
            read = partial(self._read_when_free, ref, until)
            yield from windowed(self.guarded(ref, read))

    def _read_or_wait(self, ref: BatchRef) -> Iterator[Any]:
        try:
            self.worker.claim(ref.batch_id, self)  # first: what is then found committed stays all there is
        except BatchClaimedError:
            self._claimed.append(ref)
            return
        yield from self._read(ref)

    def _read_when_free(self, ref: BatchRef, until: float) -> Iterator[Any]:
        while True:
            try:
                self.worker.claim(ref.batch_id, self)
                break
            except BatchClaimedError as error:
                if time.monotonic() >= until:
                    sentence = f"{place(ref)}: {first_line(error)}"
                    yield self.told(BatchReport(ref.batch_id, ref.attempt, "failed", sentence))
                    return
            time.sleep(_LOOK_AGAIN_S)
        yield from self._read(ref)

    def _read(self, ref: BatchRef) -> Iterator[Any]:
        store = self.worker.store()
        if self.worker.stopping:
            raise BatchError(STOPPED)
        if store.exists(commit_path(ref.batch_id, ref.attempt)):
            record = read_commit(store, ref.batch_id, ref.attempt)
            yield self.reported(BatchReport(ref.batch_id, ref.attempt, "already_committed", record=record))
            return
        if self._reader is None:
            limits = ReaderLimits(memory=self._config.workload.limits.reader_bytes)
            self._reader = BatchReader(self._config.schema(), limits)
        yield ref, self._reader.read(ref)

    def teardown(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self.worker.give_back_all(self)
        super().teardown()
