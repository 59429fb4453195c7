"""All stages of a batch's way, one after the other.

They are one fused chain: a batch flows through it as an object of the worker and never
crosses a shuffle. A stage that works on several batches at a time keeps them and hands them on when
they are done, at the latest when the bundle ends. What goes wrong with a batch as a whole leaves the
chain as a report on the `reports` output; what is unexpected propagates and fails the bundle.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam import typehints
from apache_beam.pvalue import PCollection, TaggedOutput

from schemas.batches import BatchRef, BatchReport
from transforms.commit import Draft, commit, make_record
from transforms.decide import decide
from transforms.previous import load_previous
from transforms.wiring.calling import CallDoFn
from transforms.wiring.embedding import EmbedDoFn
from transforms.wiring.reading import ReadDoFn
from transforms.wiring.stage import REPORTS, StageDoFn
from transforms.work import WorkBatch
from transforms.worker import WorkerConfig
from transforms.write import Written

PATIENCE_S = 30.0  # for batches that somebody else has; a batch seldom takes longer


class _RouteDoFn(StageDoFn):
    def process(self, read: tuple[BatchRef, pa.Table]) -> Iterator[Any]:
        ref, table = read
        yield from self.guarded(ref, lambda: [self._route(ref, table)])

    def _route(self, ref: BatchRef, table: pa.Table) -> WorkBatch:
        batch = decide(self.worker.rules(), ref, table, load_previous(self.worker.store(), ref))
        self.worker.counters.documents += len(batch.outcomes)
        return batch


class _LetGoDoFn(StageDoFn):
    """Lets go of batches that need an embedder; their answers are in the ledger for whoever has one."""

    def process(self, batch: WorkBatch) -> Iterator[WorkBatch]:
        if batch.todo:
            self.worker.give_back(batch.ref.batch_id)
        else:
            yield batch


class _WriteDoFn(StageDoFn):
    def process(self, batch: WorkBatch) -> Iterator[Any]:
        yield from self.guarded(batch.ref, lambda: [self._write(batch)])

    def _write(self, batch: WorkBatch) -> tuple[WorkBatch, str, Written]:
        writer = secrets.token_hex(8)
        return batch, writer, self.worker.part_writer().write(batch, writer)


class _CommitDoFn(StageDoFn):
    def process(self, element: tuple[WorkBatch, str, Written]) -> Iterator[Any]:
        batch, writer, written = element
        yield from self.guarded(batch.ref, lambda: [self._commit(batch, writer, written)])

    def _commit(self, batch: WorkBatch, writer: str, written: Written) -> TaggedOutput:
        record = make_record(batch, written.parts, self._config.run, writer, datetime.now(UTC))
        done = commit(self.worker.store(), Draft(record, written.failures))
        state = "committed" if done.won else "already_committed"
        return self.reported(BatchReport(batch.ref.batch_id, batch.ref.attempt, state, record=done.record))


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
            ("ReadBatches", ReadDoFn(config, self.patience_s), typehints.Tuple[BatchRef, pa.Table]),
            ("RouteDocuments", _RouteDoFn(config), WorkBatch),
            ("CallModels", CallDoFn(config), WorkBatch),
            (
                ("LetGoOfEmbeddings", _LetGoDoFn(config), WorkBatch)
                if self.calls_only
                else ("EmbedDocuments", EmbedDoFn(config), WorkBatch)
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
