"""The stage that embeds: several batches at a time, one group on the devices and the next made ready."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from apache_beam.utils.windowed_value import WindowedValue

from transforms.act import embed_batches
from transforms.wiring.stage import HOLD_BYTES, StageDoFn, held_bytes, windowed
from transforms.work import WorkBatch
from transforms.worker import WorkerConfig

_EMBED_AT_ONCE = 2048
_GROUPS_AHEAD = 2  # groups of batches at the embedder: one on the devices, one being tokenised


@dataclass(frozen=True, slots=True)
class _Group:
    """Batches that are embedded together, and how many documents of theirs."""

    batches: list[WorkBatch]
    documents: int
    done: Future[None]


class EmbedDoFn(StageDoFn):
    """Gathers batches until there is enough to fill the embedder's shapes, and embeds group after group.

    While a group is on the devices, the next one is read, routed and tokenised and the last one written; no
    more than `_GROUPS_AHEAD` are under way, and they are handed on in their order.
    """

    _threads: ThreadPoolExecutor

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config)
        self._gathered: list[WorkBatch] = []
        self._waiting: deque[_Group] = deque()

    def setup(self) -> None:
        super().setup()
        self._threads = ThreadPoolExecutor(_GROUPS_AHEAD, thread_name_prefix="switchgear-groups")

    def start_bundle(self) -> None:
        self._gathered.clear()
        self._waiting.clear()

    def process(self, batch: WorkBatch) -> Iterator[Any]:
        if not batch.todo:
            yield batch
            return
        self._gathered.append(batch)
        enough = sum(len(b.todo) for b in self._gathered) >= _EMBED_AT_ONCE
        if enough or held_bytes(self._gathered) >= HOLD_BYTES // (_GROUPS_AHEAD + 1):
            self._start()
        while self._waiting and (len(self._waiting) > _GROUPS_AHEAD or self._waiting[0].done.done()):
            yield from self._hand_on()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        self._start()
        while self._waiting:
            yield from windowed(self._hand_on())

    def teardown(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        super().teardown()

    def _start(self) -> None:
        gathered, self._gathered = self._gathered, []
        if gathered:
            documents = sum(len(batch.todo) for batch in gathered)
            done = self._threads.submit(embed_batches, self.worker, gathered)
            self._waiting.append(_Group(gathered, documents, done))

    def _hand_on(self) -> list[WorkBatch]:
        group = self._waiting.popleft()
        group.done.result()
        self.worker.counters.documents += group.documents
        self.worker.counters.embedded += group.documents
        return group.batches
