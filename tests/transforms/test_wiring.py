import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that

from pipelines.enrich import build
from pipelines.options import pipeline_options
from schemas.batches import BatchReport
from schemas.errors import BatchClaimedError, LedgerError
from schemas.failures import FailureClass
from tests.support.documents import rows, with_bad_utf8, write
from tests.support.fakes import FakeEmbedder, FakeEngine, FakeOpeners, answer_plainly, failing
from tests.support.records import run_context
from tests.support.runs import Place, Run, run_pipeline
from tests.support.workloads import EMBEDDER, HOSTED
from transforms.claim import BatchClaims
from transforms.embed.embedder import Embeddings
from transforms.plan_file import read_plan
from transforms.process_workers import forget_worker, worker_of
from transforms.store import LocalStore
from transforms.wiring.process import ProcessBatches
from transforms.worker import WorkerConfig

ASK = {"name": "ask", "when": "kind = 'ask'", "backends": ["mini"], "prompt": "topic"}
VEC = {"name": "vec", "when": "kind <> 'nowhere'", "backends": ["emb"]}
BOTH: dict[str, Any] = {
    "backends__emb": {**EMBEDDER, "price_per_device_hour": "3600"},
    "routes": [ASK, VEC],
    "match": "all",
    "input__filter": "size <> 99",
    "policy__reject": [
        {"name": "no_secrets", "when": "text LIKE '%secret%'", "reason": "secret", "routes": ["ask"]}
    ],
    "prompts__topic__template": "About: {{ text }}{{ 1 // size }}",
    "output__columns": ["kind"],
    "limits__batch_rows": 4,
}


def write_mixture(place: Place) -> None:
    """Two files with every kind of row; `size` 0 makes the template fail."""
    a = rows(
        ["a0", "a1", "a2", "a3", "a4", "a5"],
        kind=["ask", "vec", "ask", "nowhere", "ask", "ask"],
        size=[1, 2, 0, 4, 99, 6],
        text=["one", "two words", "three", "four", "five", "a secret"],
    )
    b = rows(
        ["b0", None, "a0", "b3", "b4"],
        kind=["ask", "ask", "ask", "vec", "ask"],
        size=1,
        text=["x", "y", "z", "!no tokens", "   "],
    )
    write(place.folder / "in" / "a.parquet", a)
    write(place.folder / "in" / "b.parquet", with_bad_utf8(b, "kind", [0]), row_group=3)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("mixture"), BOTH)
    write_mixture(place)
    return place


@pytest.fixture(scope="module")
def first(mixture: Place) -> Run:
    return mixture.run()


# ---- one pipeline over every kind of row


@pytest.mark.usefixtures("first")
def test_hosted_documents_are_answered(mixture: Place) -> None:
    assert mixture.answers("ask") == {"a0": "answer: About: one1"}


@pytest.mark.usefixtures("first")
def test_documents_of_an_embed_route_have_their_own_vectors(mixture: Place) -> None:
    found = {r["document_id"]: r["embedding"] for r in mixture.rows("results/route=vec")}
    texts = {"a0": "one", "a1": "two words", "a2": "three", "a5": "a secret"}
    assert found == {i: [len(t), ord(t[0]), ord(t[-1]), 1] for i, t in texts.items()}


@pytest.mark.usefixtures("first")
def test_every_other_document_is_a_failure_with_its_reason_or_skipped(mixture: Place) -> None:
    assert mixture.failures() == [
        ("a2", "ask", "prompt_error"),
        ("a3", None, "no_route"),
        ("a5", "ask", "policy_rejected"),
        ("b0", None, "invalid_text"),
        (None, None, "null_id"),
        ("a0", None, "duplicate_id"),
        ("b3", "vec", "embed_error"),
        ("b4", None, "empty_text"),
    ]


def test_the_manifest_accounts_for_every_row(first: Run) -> None:
    manifest = first.manifest
    assert (manifest.rows_in, manifest.rows_skipped) == (11, 1)
    assert (manifest.results, manifest.failures, manifest.retryable) == (5, 8, 0)
    assert manifest.state == "complete"
    assert manifest.results_by_route == {"ask": 1, "vec": 4}
    assert manifest.failures_by_route == {"ask": 2, "vec": 1, "": 5}


def test_cost_is_summed_by_route_and_backend(first: Run, mixture: Place) -> None:
    ask, vec = first.manifest.totals["ask"]["mini"], first.manifest.totals["vec"]["emb"]
    assert (ask.documents, ask.calls, ask.amount) == (1, 1, "0.010000000000")
    assert (vec.documents, vec.results, vec.device_seconds) == (5, 4, 2.5)
    rows_cost = sum(
        row["cost"]["amount"]
        for kind in ("results/route=ask", "results/route=vec", "failures")
        for row in mixture.rows(kind)
    )
    assert rows_cost == Decimal(first.manifest.amount) == Decimal("2.51")


@pytest.mark.usefixtures("first")
def test_embeddings_carry_their_cost_and_their_model(mixture: Place) -> None:
    row = mixture.rows("results/route=vec")[1]
    assert (row["token_count"], row["truncated"], row["kind"]) == (2, False, "vec")
    assert (row["cost"]["amount"], row["cost"]["basis"]) == (Decimal("0.5"), "device_seconds")
    assert row["gen_ai"]["operation"]["name"] == "embeddings"
    assert row["gen_ai"]["request"]["model"] == "tiny"
    assert row["lineage"]["chain_tried"] == ["emb"]


def test_every_batch_is_reported_once_with_its_record(first: Run) -> None:
    assert first.states == ["committed"] * 4
    assert {r.batch_id for r in first.reports} == {ref.batch_id for ref in first.plan.refs}
    assert all(r.record is not None and r.record.batch_id == r.batch_id for r in first.reports)


def test_each_part_is_opened_once_and_closed_at_the_end(first: Run) -> None:
    assert Counter(first.openers.opened) == {"engine": 1, "embedder": 1}
    assert first.openers.fake_engine.closed


def test_nothing_is_sent_that_policy_or_intake_refused(first: Run) -> None:
    assert [r.prompt for r in first.openers.fake_engine.requests] == ["About: one1"]


def test_running_again_finds_nothing_to_do_and_rewrites_nothing(first: Run, mixture: Place) -> None:
    before = mixture.files()
    again = mixture.run()
    assert (len(again.plan.refs), again.reports, again.openers.opened) == (0, [], [])
    assert mixture.files() == before


def test_batches_that_are_committed_already_are_not_worked_on(first: Run, mixture: Place) -> None:
    before = mixture.files()
    again = mixture.run(refs=first.plan.refs)
    assert again.states == ["already_committed"] * 4
    assert again.openers.opened == []
    assert mixture.files() == before
    assert again.manifest.calls_by_this_run == 0


def _named_by_batch(place: Place) -> list[str]:
    return [path for path in place.files() if not str(path).startswith("failures/")]  # named by their bytes


def test_bundles_that_are_repeated_give_the_same_rows_and_no_second_commit(
    first: Run, mixture: Place, tmp_path: Path
) -> None:
    place = Place(tmp_path, {**BOTH, "input__uri": str(mixture.folder / "in")})
    repeated = place.run(flags=["--direct_runner_bundle_repeat=2"])
    assert repeated.states == ["already_committed"] * 8 + ["committed"] * 4
    assert _named_by_batch(place) == _named_by_batch(mixture)
    for kind in ("results/route=ask", "results/route=vec", "failures"):
        assert [_timeless(r) for r in place.rows(kind)] == [_timeless(r) for r in mixture.rows(kind)]
    assert len(repeated.openers.fake_engine.asked) == 1
    assert repeated.manifest.amount == first.manifest.amount


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    lineage = {k: v for k, v in row["lineage"].items() if k not in ("run_id", "answered_at")}
    return {**row, "lineage": lineage}


# ---- what goes wrong with one batch


def hosted(folder: Path, files: dict[str, Any], **changes: Any) -> Place:
    place = Place(folder, {"limits__batch_rows": 2, **changes})
    for name, table in files.items():
        write(folder / "in" / f"{name}.parquet", table)
    return place


def test_a_batch_that_fails_leaves_the_others_committed_and_says_why(tmp_path: Path) -> None:
    place = hosted(tmp_path, {"a": rows(range(4)), "b": rows(range(10, 14))})

    def fail(batch: Any) -> Exception | None:
        return (
            LedgerError("the ledger's disk is full")
            if batch.requests[0].assignment.document_id == "2"
            else None
        )

    run = place.run(FakeOpeners(FakeEngine(fail=fail)))
    assert run.states == ["committed"] * 3 + ["failed"]
    (failed,) = [r for r in run.reports if r.state == "failed"]
    path = tmp_path / "in" / "a.parquet"
    assert failed.error == f"{path}, row group 0, rows 2–3: the ledger's disk is full"
    assert sorted(place.answers("ask")) == ["0", "1", "10", "11", "12", "13"]
    assert run.manifest.reason.startswith(f"1 batch was not finished: {failed.error}")
    again = place.run()
    assert (len(again.plan.refs), again.manifest.state) == (1, "complete")
    assert len(place.answers("ask")) == 8


def test_a_batch_that_another_process_has_is_left_alone_until_that_one_is_done(tmp_path: Path) -> None:
    place = hosted(tmp_path, {"a": rows(range(4))})
    kept, free = place.run(refs=[]).plan.refs
    other = BatchClaims(str(place.output))
    other.take(kept.batch_id)
    engine = FakeEngine()
    run = place.run(FakeOpeners(engine))
    (failed,) = [r for r in run.reports if r.state == "failed"]
    assert failed.batch_id == kept.batch_id
    assert "is being worked on by another process" in failed.error
    assert {batch.batch_id for batch in engine.asked} == {free.batch_id}
    other.close()
    assert place.run().manifest.state == "complete"


def config_of(place: Place) -> WorkerConfig:
    """What a worker of another run over the same plan is told."""
    loaded = place.loaded
    store = LocalStore(loaded.output_uri)
    _, schema = read_plan(store, next(p for p in store.list("runs") if p.endswith("plan.parquet")))
    context = run_context(loaded.output_uri, workload_sha256=loaded.workload.digest())
    return WorkerConfig(loaded.workload, str(loaded.base_dir), context, schema.serialize().to_pybytes())


def test_a_batch_that_a_forgotten_worker_of_this_process_has_is_waited_for(tmp_path: Path) -> None:
    place = hosted(tmp_path, {"a": rows(range(4))})
    plan, config = place.run(refs=[]).plan, config_of(place)
    kept, free = plan.refs
    engine, forgotten = FakeEngine(), object()
    worker = worker_of(config, FakeOpeners(engine))
    worker.claim(kept.batch_id, forgotten)

    def end_when_the_other_is_asked_for(batch: Any) -> None:
        worker.give_back_all(forgotten)

    engine.fail = end_when_the_other_is_asked_for
    reports = run_pipeline(config, plan.refs, FakeOpeners(), patience_s=60)
    assert sorted(report.state for report in reports) == ["committed", "committed"]
    assert [batch.batch_id for batch in engine.asked] == [free.batch_id, kept.batch_id]


def test_who_waited_in_vain_for_a_batch_does_not_end_the_claim_of_who_has_it(tmp_path: Path) -> None:
    place = hosted(tmp_path, {"a": rows(range(2))})
    plan, config = place.run(refs=[]).plan, config_of(place)
    (kept,) = plan.refs
    worker = worker_of(config, FakeOpeners())
    worker.claim(kept.batch_id, object())
    said: list[BatchReport] = []

    def look(report: BatchReport) -> None:
        with pytest.raises(BatchClaimedError):
            worker.claim(kept.batch_id, object())
        said.append(report)

    worker.on_report = look
    try:
        pipeline = beam.Pipeline(options=pipeline_options([]))
        build(pipeline, plan.refs, config, patience_s=0.0)
        pipeline.run().wait_until_finish()
    finally:
        forget_worker(config)
    (report,) = said
    assert (report.batch_id, report.state) == (kept.batch_id, "failed")
    assert "is being worked on by another thread of this process" in report.error


def test_a_batch_is_claimed_until_it_is_committed(tmp_path: Path) -> None:
    place = hosted(tmp_path, {"a": rows(range(2))})
    (ref,) = place.run(refs=[]).plan.refs
    stranger = BatchClaims(str(place.output))
    free: list[bool] = []

    def look(batch: Any) -> None:
        with pytest.raises(BatchClaimedError):
            stranger.take(ref.batch_id)
        free.append(False)

    assert place.run(FakeOpeners(FakeEngine(fail=look))).states == ["committed"]
    assert free == [False]
    stranger.take(ref.batch_id)
    stranger.close()


def test_a_file_that_breaks_after_it_was_planned_fails_its_batches_alone(tmp_path: Path) -> None:
    place = hosted(tmp_path, {"a": rows(range(4)), "b": rows(range(10, 12))})
    refs = place.run(refs=[]).plan.refs
    (tmp_path / "in" / "a.parquet").write_bytes(b"PAR1 no more")
    config = config_of(place)
    reports = run_pipeline(config, refs, FakeOpeners())
    assert sorted((r.state, "has changed since" in r.error) for r in reports) == [
        ("committed", False),
        ("failed", True),
        ("failed", True),
    ]


def test_a_defect_that_nobody_expected_stops_the_pipeline(tmp_path: Path) -> None:
    place = hosted(tmp_path, {"a": rows(range(2))})
    with pytest.raises(ZeroDivisionError):
        place.run(FakeOpeners(FakeEngine(fail=lambda _: ZeroDivisionError("defect"))))
    assert place.files() == {}


def test_an_engine_that_mixes_up_its_outcomes_commits_nothing(tmp_path: Path) -> None:
    place = hosted(tmp_path, {"a": rows(range(2))})

    def confused(request: Any) -> Any:
        outcome = answer_plainly(request)
        return replace(outcome, assignment=replace(outcome.assignment, row=1 - outcome.assignment.row))

    run = place.run(FakeOpeners(FakeEngine(answer=confused)))
    (report,) = run.reports
    assert report.state == "failed"
    assert "came back for row 0. This is a defect: report it" in report.error
    assert place.files() == {}


# ---- further attempts


def test_a_further_attempt_asks_again_for_what_failed_and_adds_up_the_cost(tmp_path: Path) -> None:
    place = hosted(tmp_path, {"a": rows(range(5), text=["x", "x", "x", "x", ""])})
    slow = failing(
        answer_plainly,
        lambda r: r.assignment.document_id in ("1", "2"),
        failure=FailureClass.TIMEOUT,
        message="no answer",
    )
    first = place.run(FakeOpeners(FakeEngine(answer=slow)))
    assert (first.manifest.state, first.manifest.retryable) == ("incomplete", 2)
    assert place.failures() == [("1", "ask", "timeout"), ("2", "ask", "timeout"), ("4", None, "empty_text")]

    again = place.run()
    assert [r.assignment.document_id for r in again.openers.fake_engine.requests] == ["1", "2"]
    assert (again.plan.rows_due, again.manifest.state) == (2, "complete")
    assert sorted(place.answers("ask")) == ["0", "1", "2", "3"]
    assert place.failures() == [("4", None, "empty_text")]
    cost = {r["document_id"]: r["cost"] for r in place.rows("results/route=ask")}
    assert {i: c["amount"] for i, c in cost.items()} == {
        "0": Decimal("0.01"), "1": Decimal("0.02"), "2": Decimal("0.02"), "3": Decimal("0.01"),
    }  # fmt: skip
    assert cost["1"]["calls"] == 2
    assert again.manifest.amount == "0.060000000000"


def test_a_final_failure_is_tried_again_where_its_class_is_asked_for(tmp_path: Path) -> None:
    place = hosted(tmp_path, {"a": rows(range(4))}, limits__batch_rows=4)
    refusing = failing(answer_plainly, lambda r: r.assignment.row < 2, failure=FailureClass.REFUSED)
    place.run(FakeOpeners(FakeEngine(answer=refusing)))
    assert not place.run().plan.refs
    again = place.run(retry_classes=["refused"])
    assert [r.assignment.row for r in again.openers.fake_engine.requests] == [0, 1]
    assert place.failures() == []


# ---- holding back, and typing


def test_many_batches_are_under_way_at_once_but_not_without_end(tmp_path: Path) -> None:
    place = hosted(tmp_path, {"a": rows(range(60))})
    engine = FakeEngine(hold_back=1)
    run = place.run(FakeOpeners(engine), max_in_flight=4)
    assert run.manifest.results == 60
    assert engine.most_waiting == 2 * 4 + 2  # twice what may be in flight, behind the batch that is awaited


def test_a_batch_of_rejected_documents_opens_neither_engine_nor_embedder(tmp_path: Path) -> None:
    everything = [{"name": "all", "when": "TRUE", "reason": "closed"}]
    place = hosted(tmp_path, {"a": rows(range(4))}, policy__reject=everything)
    run = place.run()
    assert run.openers.opened == []
    assert run.manifest.failures_by_route == {"ask": 4}


def test_documents_of_two_chains_go_where_the_split_sends_them(tmp_path: Path) -> None:
    split = [{"weight": 1, "backends": ["mini"]}, {"weight": 1, "backends": ["other"]}]
    route = {"name": "ask", "prompt": "topic", "split": split}
    place = hosted(tmp_path, {"a": rows(range(20))}, routes=[route], backends__other=HOSTED)
    manifest = place.run().manifest
    documents = {name: totals.documents for name, totals in manifest.totals["ask"].items()}
    assert sum(documents.values()) == 20
    assert set(documents) == {"mini", "other"}


def test_the_transform_hands_on_a_report_for_every_reference(tmp_path: Path) -> None:
    place = hosted(tmp_path, {"a": rows(range(4))})
    refs = place.run(refs=[]).plan.refs
    config = config_of(place)
    worker_of(config, FakeOpeners())

    def check(reports: list[BatchReport]) -> None:
        assert sorted(r.batch_id for r in reports) == sorted(ref.batch_id for ref in refs)

    try:
        with beam.Pipeline(options=pipeline_options([])) as pipeline:
            assert_that(pipeline | beam.Create(refs) | ProcessBatches(config), check)
    finally:
        forget_worker(config)


def vectors(folder: Path, batches: int) -> tuple[Place, list[str]]:
    """So many batches for an embedder, and the ids of their documents."""
    routes = [{"name": "vec", "backends": ["emb"]}]
    place = Place(folder, {"backends__emb": EMBEDDER, "routes": routes, "limits__batch_rows": 2048})
    names = [f"d{number}" for number in range(batches * 2048)]
    texts = ["x" * (n % 40 + 1) for n in range(len(names))]
    write(place.folder / "in" / "a.parquet", rows(names, text=texts))
    return place, names


@dataclass
class MeetingEmbedder(FakeEmbedder):
    """Is through with its first group of documents only when the second one has come."""

    met: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=60))
    lock: threading.Lock = field(default_factory=threading.Lock)
    inside: int = 0
    most: int = 0

    def embed_groups(self, groups: Sequence[Sequence[str]]) -> list[Embeddings]:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            number = len(self.groups)
            made = super().embed_groups(groups)
        if number < 2:
            self.met.wait()
        with self.lock:
            self.inside -= 1
        return made


def test_the_next_documents_are_on_their_way_while_the_embedder_works_and_order_is_kept(tmp_path: Path):
    place, names = vectors(tmp_path, 5)
    embedder = MeetingEmbedder()
    run = place.run(FakeOpeners(fake_embedder=embedder))
    assert [report.state for report in run.reports] == ["committed"] * 5
    assert [report.batch_id for report in run.reports] == [ref.batch_id for ref in run.plan.refs]
    assert embedder.most == 2
    made = place.rows("results/route=vec")
    assert [row["document_id"] for row in made] == names
    assert [row["embedding"][0] for row in made] == [n % 40 + 1 for n in range(len(names))]


def test_every_stage_leaves_the_worker_so_that_its_last_user_can_close_it(tmp_path: Path) -> None:
    place, _ = vectors(tmp_path, 1)
    refs = place.run(refs=[]).plan.refs
    config = config_of(place)
    worker = worker_of(config, FakeOpeners())
    try:
        pipeline = beam.Pipeline(options=pipeline_options([]))
        build(pipeline, refs, config)
        pipeline.run().wait_until_finish()
        assert worker.users == 0
    finally:
        forget_worker(config)


@dataclass
class BreakingEmbedder(FakeEmbedder):
    """Fails at its second group of documents."""

    def embed_groups(self, groups: Sequence[Sequence[str]]) -> list[Embeddings]:
        made = super().embed_groups(groups)
        if len(self.groups) == 2:
            raise RuntimeError("the device is gone")
        return made


def test_a_step_that_fails_shifts_no_row_of_what_was_embedded_before_or_is_embedded_again(tmp_path: Path):
    place, names = vectors(tmp_path, 3)
    with pytest.raises(RuntimeError, match="the device is gone"):
        place.run(FakeOpeners(fake_embedder=BreakingEmbedder()))
    place.run()
    made = place.rows("results/route=vec")
    assert [row["document_id"] for row in made] == names
    assert [row["embedding"][0] for row in made] == [n % 40 + 1 for n in range(len(names))]
