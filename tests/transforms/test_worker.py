import gc
import json
import pickle
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from schemas.batches import BatchReport
from schemas.errors import BatchError
from tests.support.batches import table_for
from tests.support.fakes import FakeOpeners
from tests.support.records import REF, run_context
from tests.support.workloads import EMBEDDER, workload
from transforms.layout import report_path, stop_path
from transforms.process_workers import close_workers, forget_worker, join_worker, leave_worker, worker_of
from transforms.worker import Worker, WorkerConfig

EMBED: dict[str, Any] = {
    "backends__emb": EMBEDDER,
    "routes": [
        {"name": "ask", "backends": ["mini"], "prompt": "topic"},
        {"name": "vec", "backends": ["emb"]},
    ],
}


@pytest.fixture
def config(tmp_path: Path) -> WorkerConfig:
    schema = table_for(REF).schema.serialize().to_pybytes()
    return WorkerConfig(workload(**EMBED), str(tmp_path), run_context(tmp_path / "out"), schema)


def test_a_process_has_one_worker_for_a_run_until_it_is_forgotten(config: WorkerConfig) -> None:
    openers = FakeOpeners()
    first = worker_of(config, openers)
    travelled = pickle.loads(pickle.dumps(config))
    assert worker_of(travelled) is first
    assert first.engine() is openers.fake_engine
    forget_worker(config)
    assert openers.fake_engine.closed
    second = worker_of(config, FakeOpeners())
    assert second is not first
    forget_worker(config)
    forget_worker(config)


def test_what_travels_to_workers_is_the_same_there(config: WorkerConfig) -> None:
    travelled = pickle.loads(pickle.dumps(config))
    assert travelled == config
    assert travelled.schema() == table_for(REF).schema


def test_parts_are_opened_when_they_are_first_needed_and_once(config: WorkerConfig) -> None:
    openers = FakeOpeners()
    worker = Worker(config, openers)
    assert worker._engine is None
    assert openers.opened == []
    assert worker.engine() is worker.engine()
    assert worker.embedder("vec") is worker.embedder("vec")
    assert worker.rules() is worker.rules()
    assert worker.prompt("ask") is worker.prompt("ask")
    assert openers.opened == ["engine", "embedder"]


def test_a_closed_worker_lets_go_of_its_engine(config: WorkerConfig) -> None:
    worker = Worker(config, FakeOpeners())
    worker.close()
    engine = worker.engine()
    worker.close()
    assert engine.closed  # type: ignore[attr-defined]
    assert worker._engine is None


def test_who_closes_a_worker_that_is_being_stopped_waits_until_its_calls_are_settled(
    config: WorkerConfig,
) -> None:
    """A job server that ends with the same signal breaks the pipeline, and the process ends with that."""
    openers, asked, settled = FakeOpeners(), threading.Event(), threading.Event()
    worker, order = Worker(config, openers), []

    def close() -> None:
        asked.set()
        settled.wait(60)
        order.append("settled")

    openers.fake_engine.close = close  # type: ignore[method-assign]
    worker.engine()
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    assert asked.wait(60)
    closing = threading.Thread(target=lambda: (worker.close(), order.append("closed")))
    closing.start()
    closing.join(0.2)
    settled.set()
    for thread in (stopping, closing):
        thread.join(60)
    assert order == ["settled", "closed"]


@pytest.mark.parametrize(
    ("dtype", "element"), [("float32", pa.float32()), ("float16", pa.float16()), ("bfloat16", pa.float16())]
)
def test_vectors_are_stored_as_the_backend_says(tmp_path: Path, dtype: str, element: pa.DataType) -> None:
    changes = {**EMBED, "backends__emb": {**EMBEDDER, "output_dtype": dtype}}
    config = WorkerConfig(workload(**changes), "", run_context(tmp_path), b"")
    openers = FakeOpeners()
    vector = Worker(config, openers).vector_type("vec")
    assert (vector.dim, vector.element) == (4, element)
    assert vector.space == openers.fake_embedder.space.fingerprint


def test_reports_are_told_and_counted(config: WorkerConfig) -> None:
    worker = Worker(config, FakeOpeners())
    told: list[BatchReport] = []
    worker.report(BatchReport("a", 1, "failed"))
    worker.on_report = told.append
    worker.report(BatchReport("b", 1, "committed"))
    assert [r.batch_id for r in told] == ["b"]
    assert worker.counters.batches == 2


def test_the_budget_goes_to_the_engine(tmp_path: Path) -> None:
    limits: list[Decimal | None] = []

    class Noting(FakeOpeners):
        def engine(self, *arguments: Any) -> Any:
            limits.append(arguments[2])
            return super().engine(*arguments)

    for amount in ("1.5", None):
        changes = {} if amount is None else {"budget__amount": amount}
        Worker(WorkerConfig(workload(**changes), "", run_context(tmp_path), b""), Noting()).engine()
    assert limits == [Decimal("1.5"), None]


# ---- a worker whose launcher is somewhere else


def test_a_worker_without_an_owner_is_closed_with_its_last_user(config: WorkerConfig) -> None:
    worker = join_worker(config)
    openers = worker.openers = FakeOpeners()
    assert join_worker(config) is worker
    worker.engine()
    leave_worker(config)
    assert not openers.fake_engine.closed
    leave_worker(config)
    assert openers.fake_engine.closed
    leave_worker(config)


def test_a_worker_with_an_owner_outlives_its_users(config: WorkerConfig) -> None:
    openers = FakeOpeners()
    worker = worker_of(config, openers)
    worker.engine()
    assert join_worker(config) is worker
    leave_worker(config)
    assert not openers.fake_engine.closed
    forget_worker(config)
    assert openers.fake_engine.closed


def test_what_is_said_of_a_batch_that_was_not_committed_stays_in_the_output(config: WorkerConfig) -> None:
    worker = join_worker(config)
    report = BatchReport(REF.batch_id, 4, "failed", "the file is gone")
    worker.report(report)
    leave_worker(config)
    left = worker.store().read(report_path(config.run.run_id, REF.batch_id, 4))
    assert BatchReport.from_dict(json.loads(left)) == report


def test_a_worker_sends_nothing_more_once_its_launcher_wants_it_to_stop(config: WorkerConfig) -> None:
    worker = join_worker(config)
    openers = worker.openers = FakeOpeners()
    worker.engine()
    worker.store().create(stop_path(config.run.run_id), b"")
    assert openers.fake_engine.ended.wait(120)
    with pytest.raises(BatchError, match="stopped"):
        worker.engine()
    leave_worker(config)


def test_a_pool_that_ends_settles_the_runs_it_has(config: WorkerConfig) -> None:
    worker = join_worker(config)
    openers = worker.openers = FakeOpeners()
    worker.engine()
    close_workers()
    assert openers.fake_engine.closed
    assert join_worker(config) is not worker
    close_workers()


def test_garbage_is_searched_for_seldom_while_a_worker_is_there_and_as_before_afterwards(
    config: WorkerConfig,
) -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    worker_of(config, FakeOpeners())
    assert gc.get_threshold()[0] == 50_000
    assert gc.get_freeze_count() > before[1]
    forget_worker(config)
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
