"""The Beam wiring: each stage of a batch's way as a PTransform over the functions of this layer.

All stages are one fused chain: a batch flows through it as an object of the worker and never
crosses a shuffle. A stage that works on several batches at a time keeps them and hands them on when
they are done, at the latest when the bundle ends. What goes wrong with a batch as a whole leaves the
chain as a report on the `reports` output; what is unexpected propagates and fails the bundle.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam import typehints
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from schemas.batches import BatchRef, BatchReport
from schemas.errors import BatchClaimedError, BatchError, LedgerError, ReconcileError, StoreError, first_line
from transforms.act import embed_batches, finish_calls, prepare_calls
from transforms.call.request import CallBatch, CallBatchResult
from transforms.commit import commit, make_record
from transforms.decide import decide
from transforms.layout import commit_path, read_commit
from transforms.previous import load_previous
from transforms.probe import ReaderLimits
from transforms.process_workers import join_worker, leave_worker
from transforms.read import BatchReader, place
from transforms.work import WorkBatch
from transforms.worker import STOPPED, Worker, WorkerConfig

REPORTS = "reports"
_EMBED_AT_ONCE = 2048
_GROUPS_AHEAD = 2  # groups of batches at the embedder: one on the devices, one being tokenised
PATIENCE_S = 30.0  # for batches that somebody else has; a batch seldom takes longer
_LOOK_AGAIN_S = 0.2
_HOLD_BYTES = 128 << 20  # of batches that wait for calls or embeddings, however few rows of them do
_BATCH_TROUBLES = (BatchError, LedgerError, ReconcileError, StoreError, OSError)


class _StageDoFn(beam.DoFn):
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


class _ReadDoFn(_StageDoFn):
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
            yield from _windowed(self.guarded(ref, read))

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


class _RouteDoFn(_StageDoFn):
    def process(self, read: tuple[BatchRef, pa.Table]) -> Iterator[Any]:
        ref, table = read
        yield from self.guarded(ref, lambda: [self._route(ref, table)])

    def _route(self, ref: BatchRef, table: pa.Table) -> WorkBatch:
        batch = decide(self.worker.rules(), ref, table, load_previous(self.worker.store(), ref))
        self.worker.counters.documents += len(batch.outcomes)
        return batch


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A batch whose calls are on their way."""

    batch: WorkBatch
    asked: CallBatch
    answer: Future[CallBatchResult]


class _CallDoFn(_StageDoFn):
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
            yield from _windowed(self._hand_on(self._waiting.popleft()))

    def _submit(self, batch: WorkBatch) -> Iterator[Any]:
        asked = prepare_calls(self.worker, batch)
        if asked is None:
            yield batch
        else:
            self._waiting.append(_Waiting(batch, asked, self.worker.engine().submit(asked)))

    def _is_full(self) -> bool:
        """Whether what waits behind the oldest batch keeps the engine busy while that one is awaited."""
        behind = sum(len(w.asked.requests) for w in self._waiting) - len(self._waiting[0].asked.requests)
        too_much = _held_bytes(w.batch for w in self._waiting) >= _HOLD_BYTES
        return too_much or behind >= 2 * self._config.run.max_in_flight

    def _hand_on(self, waiting: _Waiting) -> Iterator[Any]:
        def finished() -> Iterator[WorkBatch]:
            finish_calls(waiting.batch, waiting.asked, waiting.answer.result())
            counters = self.worker.counters
            counters.documents += len(waiting.asked.requests)
            counters.hosted += len(waiting.asked.requests)
            yield waiting.batch

        yield from self.guarded(waiting.batch.ref, finished)


@dataclass(frozen=True, slots=True)
class _Group:
    """Batches that are embedded together, and how many documents of theirs."""

    batches: list[WorkBatch]
    documents: int
    done: Future[None]


class _EmbedDoFn(_StageDoFn):
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
        if enough or _held_bytes(self._gathered) >= _HOLD_BYTES // (_GROUPS_AHEAD + 1):
            self._start()
        while self._waiting and (len(self._waiting) > _GROUPS_AHEAD or self._waiting[0].done.done()):
            yield from self._hand_on()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        self._start()
        while self._waiting:
            yield from _windowed(self._hand_on())

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


class _LetGoDoFn(_StageDoFn):
    """Lets go of batches that need an embedder; their answers are in the ledger for whoever has one."""

    def process(self, batch: WorkBatch) -> Iterator[WorkBatch]:
        if batch.todo:
            self.worker.give_back(batch.ref.batch_id)
        else:
            yield batch


class _WriteDoFn(_StageDoFn):
    def process(self, batch: WorkBatch) -> Iterator[Any]:
        yield from self.guarded(batch.ref, lambda: [self._write(batch)])

    def _write(self, batch: WorkBatch) -> tuple[WorkBatch, str, tuple[Any, ...]]:
        writer = secrets.token_hex(8)
        return batch, writer, self.worker.part_writer().write(batch, writer)


class _CommitDoFn(_StageDoFn):
    def process(self, written: tuple[WorkBatch, str, tuple[Any, ...]]) -> Iterator[Any]:
        batch, writer, parts = written
        yield from self.guarded(batch.ref, lambda: [self._commit(batch, writer, parts)])

    def _commit(self, batch: WorkBatch, writer: str, parts: tuple[Any, ...]) -> TaggedOutput:
        record = make_record(batch, parts, self._config.run, writer, datetime.now(UTC))
        done = commit(self.worker.store(), record)
        state = "committed" if done.won else "already_committed"
        return self.reported(BatchReport(batch.ref.batch_id, batch.ref.attempt, state, record=done.record))


def _held_bytes(batches: Iterable[WorkBatch]) -> int:
    return sum(batch.table.nbytes for batch in batches)


def _windowed(values: Iterable[Any]) -> Iterator[WindowedValue]:
    window = GlobalWindow()
    for value in values:
        if isinstance(value, TaggedOutput):
            yield TaggedOutput(value.tag, WindowedValue(value.value, window.max_timestamp(), [window]))
        else:
            yield WindowedValue(value, window.max_timestamp(), [window])


@dataclass(eq=False)
class ProcessBatches(beam.PTransform):
    """BatchRefs in, BatchReports out: read, route, call, embed, write and commit each batch.

    Only references and reports cross a shuffle. At the end of a bundle every batch of it is
    committed or reported as failed. Batches that somebody else is at work on are waited for at most
    `patience_s` seconds. With `calls_only` hosted models are asked, and batches that need an embedder
    besides are left for workers that have one: those replay the answers from the ledger.
    """

    config: WorkerConfig
    patience_s: float = PATIENCE_S
    calls_only: bool = False

    def expand(self, refs: PCollection) -> PCollection:
        """Chain the stages."""
        config = self.config
        main: PCollection = refs | "SpreadRefs" >> beam.Reshuffle()
        reports = []
        stages: list[tuple[str, beam.DoFn, Any]] = [
            ("ReadBatches", _ReadDoFn(config, self.patience_s), typehints.Tuple[BatchRef, pa.Table]),
            ("RouteDocuments", _RouteDoFn(config), WorkBatch),
            ("CallModels", _CallDoFn(config), WorkBatch),
            (
                ("LetGoOfEmbeddings", _LetGoDoFn(config), WorkBatch)
                if self.calls_only
                else ("EmbedDocuments", _EmbedDoFn(config), WorkBatch)
            ),
            ("WriteParts", _WriteDoFn(config), typehints.Tuple[WorkBatch, str, Any]),
            ("CommitBatches", _CommitDoFn(config), Any),
        ]
        for label, stage, element_type in stages:
            outputs = main | label >> beam.ParDo(stage).with_outputs(REPORTS, main="batches")
            main = outputs["batches"]
            main.element_type = element_type  # with it comes the coder, which Beam asks for sizes
            reports.append(outputs[REPORTS])
        return tuple(reports) | "AllReports" >> beam.Flatten()
