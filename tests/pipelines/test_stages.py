from decimal import Decimal
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from pipelines.enrich import build
from pipelines.options import pipeline_options
from pipelines.stages import Stage, require_engine, stages_of
from schemas.batches import BatchReport
from schemas.errors import ConfigurationError
from schemas.run import RunContext
from schemas.workload import Workload
from tests.support.documents import rows, write
from tests.support.fakes import FakeEmbedder
from tests.support.records import run_context
from tests.support.runs import START, Place
from tests.support.workloads import EMBEDDER, load, workload
from transforms.coders import register_arrow_coders
from transforms.openers import Openers
from transforms.output import open_output
from transforms.plan import plan_run
from transforms.plan_file import read_plan
from transforms.process_workers import forget_worker, worker_of
from transforms.settle import settle_run
from transforms.store import LocalStore
from transforms.worker import WorkerConfig

ASK = {"name": "ask", "when": "kind = 'ask'", "backends": ["mini"], "prompt": "topic"}
VEC = {"name": "vec", "when": "kind = 'vec'", "backends": ["emb"]}
BOTH: dict[str, Any] = {"backends__emb": EMBEDDER, "routes": [ASK, VEC], "limits__batch_rows": 2}
ONLY_VEC: dict[str, Any] = {"backends": {"emb": EMBEDDER}, "routes": [{**VEC}]}


def test_without_tpu_workers_one_pipeline_does_all() -> None:
    assert stages_of(workload(**BOTH), None) == (Stage(),)


def test_with_tpu_workers_models_are_asked_on_plain_ones_first() -> None:
    assert stages_of(workload(**BOTH), "v5e-1") == (Stage(calls_only=True), Stage("v5e-1"))
    assert stages_of(workload(**ONLY_VEC), "v6e-4") == (Stage("v6e-4"),)


class _RealEngine(Openers):
    """The real call engine, which a rehearsal answers, beside a fake embedder."""

    def __init__(self) -> None:
        self.embedders = 0

    def engine(self, workload: Workload, run: RunContext, budget_limit: Decimal | None) -> Any:
        return super().engine(workload, run, budget_limit)

    def embedder(self, backend: Any, base_dir: Path, lengths: Any = None) -> Any:
        self.embedders += 1
        return FakeEmbedder()


def run_stage(config: WorkerConfig, refs: Any, calls_only: bool) -> tuple[list[BatchReport], Any, int]:
    reports: list[BatchReport] = []
    register_arrow_coders()
    openers = _RealEngine()
    worker = worker_of(config, openers)
    worker.on_report = reports.append
    try:
        pipeline = beam.Pipeline(options=pipeline_options([]))
        build(pipeline, refs, config, calls_only=calls_only)
        pipeline.run().wait_until_finish()
        return reports, worker.engine().stats(), openers.embedders
    finally:
        forget_worker(config)


def test_what_the_first_pipeline_asked_the_second_replays_beside_its_embeddings(tmp_path: Path) -> None:
    place = Place(tmp_path, BOTH)
    write(place.folder / "in" / "a.parquet", rows(range(6), kind=["ask", "ask", "ask", "vec", "vec", "vec"]))
    loaded = place.loaded
    context = run_context(
        loaded.output_uri, run_id="run-stages", workload_sha256=loaded.workload.digest(), rehearsal=True
    )
    with open_output(loaded, rehearsal=True):
        plan = plan_run(loaded, context)
        schema = read_plan(LocalStore(loaded.output_uri), plan.plan_uri)[1].serialize().to_pybytes()
        config = WorkerConfig(loaded.workload, str(loaded.base_dir), context, schema)
        asked, mixed, embedded = plan.refs

        reports, stats, embedders = run_stage(config, plan.refs, calls_only=True)
        assert [(r.batch_id, r.state) for r in reports] == [(asked.batch_id, "committed")]
        assert (stats.calls, stats.replayed, embedders) == (3, 0, 0)

        reports, stats, embedders = run_stage(config, plan.refs, calls_only=False)
        assert {r.batch_id: r.state for r in reports} == {
            asked.batch_id: "already_committed",
            mixed.batch_id: "committed",
            embedded.batch_id: "committed",
        }
        assert (stats.calls, stats.replayed, embedders) == (0, 1, 1)
        manifest = settle_run(loaded, context, plan, [], START)
    assert (manifest.state, manifest.results_by_route) == ("complete", {"ask": 3, "vec": 3})


def test_tpu_workers_are_refused_where_there_are_none_or_no_use_for_them(tmp_path: Path) -> None:
    both = load(tmp_path, **BOTH)
    with pytest.raises(ConfigurationError, match="--tpu=v5e-1: workers with TPUs are Dataflow's"):
        require_engine(both, "local", "v5e-1")
    with pytest.raises(ConfigurationError, match="no route of workload demo has an embedder"):
        require_engine(load(tmp_path), "dataflow", "v5e-1")


def test_what_dataflows_workers_can_not_reach_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        require_engine(load(tmp_path, **BOTH), "dataflow", None)
    said = str(caught.value)
    assert all(part in said for part in (f"{tmp_path}/in", f"{tmp_path}/out", "package:some_model"))
    assert "give gs:// addresses" in said
    require_engine(load(tmp_path, **BOTH), "local", None)
