"""The stage that asks hosted models: batch after batch, while earlier ones are still being answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from apache_beam.utils.windowed_value import WindowedValue

from transforms.act import finish_calls, prepare_calls
from transforms.call.request import CallBatch, CallBatchResult
from transforms.wiring.stage import HOLD_BYTES, StageDoFn, held_bytes, windowed
from transforms.work import WorkBatch
from transforms.worker import WorkerConfig


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A batch whose calls are on their way."""

    batch: WorkBatch
    asked: CallBatch
    answer: Future[CallBatchResult]


class CallDoFn(StageDoFn):
    """Keeps enough batches on their way that the engine never runs dry, and no more."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config)
        self._waiting: deque[_Waiting] = deque()

    def start_bundle(self) -> None:
        self._waiting.clear()

    def process(self, batch: WorkBatch) -> Iterator[Any]:
        yield from self.guarded(batch.ref, lambda: self._submit(batch))
        while self._waiting and (self._is_full() or self._waiting[0].answer.done()):
            yield from self._hand_on(self._waiting.popleft())

    def finish_bundle(self) -> Iterator[WindowedValue]:
        while self._waiting:
            yield from windowed(self._hand_on(self._waiting.popleft()))

    def _submit(self, batch: WorkBatch) -> Iterator[Any]:
        asked = prepare_calls(self.worker, batch)
        if asked is None:
            yield batch
        else:
            self._waiting.append(_Waiting(batch, asked, self.worker.engine().submit(asked)))

    def _is_full(self) -> bool:
        """Whether what waits behind the oldest batch keeps the engine busy while that one is awaited."""
        behind = sum(len(w.asked.requests) for w in self._waiting) - len(self._waiting[0].asked.requests)
        too_much = held_bytes(w.batch for w in self._waiting) >= HOLD_BYTES
        return too_much or behind >= 2 * self._config.run.max_in_flight

    def _hand_on(self, waiting: _Waiting) -> Iterator[Any]:
        def finished() -> Iterator[WorkBatch]:
            finish_calls(waiting.batch, waiting.asked, waiting.answer.result())
            counters = self.worker.counters
            counters.documents += len(waiting.asked.requests)
            counters.hosted += len(waiting.asked.requests)
            yield waiting.batch

        yield from self.guarded(waiting.batch.ref, finished)
