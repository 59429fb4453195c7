"""Whole runs in this process: plan, a Beam pipeline over fakes, settle."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.enrich import build
from pipelines.options import pipeline_options
from schemas.batches import BatchRef, BatchReport
from schemas.ids import sha256_hex
from schemas.load import LoadedWorkload
from schemas.run import Manifest
from tests.support.fakes import FakeOpeners
from tests.support.records import run_context
from tests.support.workloads import load
from transforms.coders import register_arrow_coders
from transforms.output import open_output
from transforms.plan import Plan, plan_run
from transforms.plan_file import read_plan
from transforms.process_workers import forget_worker, worker_of
from transforms.settle import settle_run
from transforms.store import LocalStore
from transforms.worker import WorkerConfig

_NUMBERS = itertools.count(1)
START = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)


@dataclass
class Run:
    """What a run was asked, what its workers said, and what came of it."""

    plan: Plan
    reports: list[BatchReport]
    manifest: Manifest
    openers: FakeOpeners

    @property
    def states(self) -> list[str]:
        """How the batches ended, sorted."""
        return sorted(report.state for report in self.reports)


@dataclass
class Place:
    """A workload in a folder, with the documents beside it."""

    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def loaded(self) -> LoadedWorkload:
        return load(self.folder, **self.changes)

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def run(
        self,
        openers: FakeOpeners | None = None,
        *,
        flags: Sequence[str] = (),
        refs: Sequence[BatchRef] | None = None,
        retry_classes: Sequence[str] = (),
        max_in_flight: int = 8,
    ) -> Run:
        """One run from plan to manifest; `refs` are worked on instead of what is due."""
        openers = openers or FakeOpeners()
        loaded = self.loaded
        context = run_context(
            loaded.output_uri,
            run_id=f"20261122T090000000Z-{next(_NUMBERS):06x}",
            workload_sha256=loaded.workload.digest(),
            max_in_flight=max_in_flight,
        )
        with open_output(loaded, rehearsal=False):
            plan = plan_run(loaded, context, retry_classes=retry_classes)
            due, schema = read_plan(LocalStore(loaded.output_uri), plan.plan_uri)
            encoded = schema.serialize().to_pybytes()
            config = WorkerConfig(loaded.workload, str(loaded.base_dir), context, encoded)
            reports = run_pipeline(config, due if refs is None else refs, openers, flags)
            failed = [report for report in reports if report.state == "failed"]
            manifest = settle_run(loaded, context, plan, failed, START)
        return Run(plan, reports, manifest, openers)

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The rows of `results/route=NAME` or `failures`, by row of the source."""
        paths = sorted((self.output / kind).glob("*.parquet"))
        tables = [pq.read_table(path, partitioning=None) for path in paths]
        found = pa.concat_tables(tables).to_pylist() if tables else []
        return sorted(found, key=lambda row: _source(row))

    def answers(self, route: str) -> dict[str, str]:
        """Answer by document id."""
        return {row["document_id"]: row["answer"] for row in self.rows(f"results/route={route}")}

    def failures(self) -> list[tuple[str | None, str | None, str]]:
        """Document id, route and class of every failure."""
        return [(r["document_id"], r["lineage"]["route"], r["error_class"]) for r in self.rows("failures")]

    def files(self) -> dict[str, str]:
        """Path and digest of everything that a reader of the output sees."""
        return {
            str(path.relative_to(self.output)): sha256_hex(path.read_bytes())
            for folder in ("results", "failures", "commits")
            for path in sorted((self.output / folder).rglob("*"))
            if path.is_file()
        }


def _source(row: dict[str, Any]) -> tuple[str, int, int, str]:
    source = row["lineage"]["source"]
    return source["uri"], source["row_group"], source["row"], row["lineage"]["route"] or ""


def run_pipeline(
    config: WorkerConfig,
    refs: Sequence[BatchRef],
    openers: FakeOpeners,
    flags: Sequence[str] = (),
    patience_s: float = 0.0,
) -> list[BatchReport]:
    """Run the real pipeline over fakes; what its worker reported, in order."""
    reports: list[BatchReport] = []
    register_arrow_coders()
    worker = worker_of(config, openers)
    worker.on_report = reports.append
    try:
        pipeline = beam.Pipeline(options=pipeline_options(flags))
        build(pipeline, refs, config, patience_s)
        pipeline.run().wait_until_finish()
    finally:
        forget_worker(config)
    return reports
