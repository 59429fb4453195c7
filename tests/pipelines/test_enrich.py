import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.enrich import Job, load_job, progress_of, run_job
from schemas.batches import BatchReport
from schemas.errors import ConfigurationError, OutputError, RunnerRefusedError, WorkloadError
from schemas.outcomes import money
from schemas.run import RunContext
from tests.support.documents import rows, write
from tests.support.fakes import FakeEmbedder, FakeEngine, FakeOpeners
from tests.support.records import run_context
from tests.support.runs import START, Place
from tests.support.workloads import EMBEDDER
from tests.transforms.embed.tiny_model import write_tiny_model
from transforms.call.request import EngineStats
from transforms.openers import Openers
from transforms.output import open_output
from transforms.plan import Plan, plan_run
from transforms.process_workers import forget_worker, worker_of
from transforms.settle import settle_run
from transforms.worker import Worker

REPOSITORY = Path(__file__).parents[2]
CLOSED: dict[str, Any] = {
    "policy__reject": [{"name": "closed", "when": "TRUE", "reason": "nothing leaves"}],
    "limits__batch_rows": 2,
}


@dataclass
class Planned:
    """A planned run, and the arguments that its workers get."""

    place: Place
    context: RunContext
    plan: Plan

    def arguments(self, group: int = 0, groups: int = 1, *flags: str, **changes: str) -> list[str]:
        run = self.place.folder / "run.json"
        run.write_text(json.dumps(asdict(self.context)))
        values = {
            "workload": str(self.place.loaded.path),
            "run": str(run),
            "plan": self.plan.plan_uri,
            "group": str(group),
            "groups": str(groups),
            **changes,
        }
        own = [f"--{name}={value}" for name, value in values.items()]
        return [*own, *(["--", *flags] if flags else [])]


def plan(folder: Path, name: str = "a b", *, files: int = 1, **changes: Any) -> Planned:
    """Files of six documents in three batches; the folder's name has a space in it."""
    place = Place(folder / name, changes)
    for number in range(files):
        write(place.folder / "in" / f"{'abc'[number]}.parquet", rows(range(number * 6, number * 6 + 6)))
    loaded = place.loaded
    context = run_context(
        loaded.output_uri, run_id=f"run-{folder.name}-{name}", workload_sha256=loaded.workload.digest()
    )
    with open_output(loaded, rehearsal=False):
        return Planned(place, context, plan_run(loaded, context))


# ---- the job behind a command line


def test_a_group_gets_its_share_of_the_plan(tmp_path: Path) -> None:
    planned = plan(tmp_path, **CLOSED)
    jobs = [load_job(planned.arguments(group, 2)) for group in (0, 1)]
    assert [len(job.refs) for job in jobs] == [2, 1]
    assert jobs[0].refs + jobs[1].refs == tuple(planned.plan.refs)
    assert jobs[0].config.run == planned.context
    assert jobs[0].config.base_dir == str(planned.place.folder)


def test_what_stands_behind_two_dashes_goes_to_the_runner(tmp_path: Path) -> None:
    job = load_job(plan(tmp_path, **CLOSED).arguments(0, 1, "--direct_runner_bundle_repeat=1", "--x", "--"))
    assert job.flags == ("--direct_runner_bundle_repeat=1", "--x", "--")


def test_a_workload_that_changed_since_it_was_planned_is_refused(tmp_path: Path) -> None:
    planned = plan(tmp_path, **CLOSED)
    planned.place.changes["prompts__topic__template"] = "Other: {{ text }}"
    with pytest.raises(ConfigurationError, match=r"w\.toml has changed since run .* was planned"):
        load_job(planned.arguments())


def test_a_budget_that_changed_since_then_is_not(tmp_path: Path) -> None:
    planned = plan(tmp_path, **CLOSED)
    planned.place.changes["budget__amount"] = "5"
    assert len(load_job(planned.arguments()).refs) == 3


def test_a_group_that_is_none_and_a_workload_that_is_gone_are_refused(tmp_path: Path) -> None:
    planned = plan(tmp_path, **CLOSED)
    with pytest.raises(OutputError, match="group 3 of 3"):
        load_job(planned.arguments(3, 3))
    with pytest.raises(WorkloadError):
        load_job(planned.arguments(workload=str(tmp_path / "none.toml")))


# ---- a job run in this process


def run_in_process(planned: Planned, openers: FakeOpeners, *flags: str) -> list[dict[str, Any]]:
    job = load_job(planned.arguments(0, 1, *flags))
    worker_of(job.config, openers)
    events: list[dict[str, Any]] = []
    run_job(job, events.append)
    return [json.loads(json.dumps(event)) for event in events]


def reports(events: Sequence[dict[str, Any]]) -> list[BatchReport]:
    return [BatchReport.from_dict(e["report"]) for e in events if e["event"] == "batch"]


def test_every_batch_is_said_as_a_line_and_progress_at_the_end(tmp_path: Path) -> None:
    planned = plan(tmp_path, limits__batch_rows=2)
    events = run_in_process(planned, FakeOpeners())
    assert sorted(r.batch_id for r in reports(events)) == sorted(ref.batch_id for ref in planned.plan.refs)
    assert {r.state for r in reports(events)} == {"committed"}
    last = events[-1]
    assert (last["event"], last["documents"], last["batches"], last["calls"]) == ("progress", 6, 3, 6)
    assert last["amount"] == "0.060000000000"


def test_an_unsafe_runner_is_refused_before_anything_is_worked_on(tmp_path: Path) -> None:
    planned = plan(tmp_path, limits__batch_rows=2)
    openers = FakeOpeners()
    with pytest.raises(RunnerRefusedError):
        run_in_process(planned, openers, "--runner=DirectRunner")
    assert openers.opened == []


def test_a_pipeline_that_fails_closes_its_engine_and_says_how_far_it_was(tmp_path: Path) -> None:
    planned = plan(tmp_path, limits__batch_rows=2)
    engine = FakeEngine(fail=lambda _: ZeroDivisionError("defect"))
    job = load_job(planned.arguments())
    worker_of(job.config, FakeOpeners(engine))
    events: list[dict[str, Any]] = []
    with pytest.raises(ZeroDivisionError):
        run_job(job, events.append)
    assert engine.closed
    assert events[-1]["event"] == "progress"


def test_documents_that_are_under_way_count_as_progress(tmp_path: Path) -> None:
    routes = [{"name": "ask", "backends": ["mini"], "prompt": "topic"}, {"name": "vec", "backends": ["emb"]}]
    planned = plan(tmp_path, backends__emb=EMBEDDER, routes=routes)
    config = load_job(planned.arguments()).config
    embedder = FakeEmbedder()
    embedder.embed_groups([["of an earlier run"]])
    worker = Worker(config, FakeOpeners(fake_embedder=embedder))
    before = progress_of(worker, 7)
    assert (before.group, before.documents, before.batches, before.calls, before.amount) == (7, 0, 0, 0, "0")
    worker.counters.documents = 10
    worker.embedder("vec").embed_groups([["one", "two"], ["three"]])
    assert progress_of(worker, 7).documents == 13


class SpendingEngine(FakeEngine):
    """Has made four calls."""

    def stats(self) -> EngineStats:
        return EngineStats(calls=4, answered=2, amount=money("0.02"))


def test_what_a_stopped_worker_has_spent_is_still_told(tmp_path: Path) -> None:
    planned = plan(tmp_path)
    engine = SpendingEngine()
    worker = Worker(load_job(planned.arguments()).config, FakeOpeners(engine))
    worker.engine()
    before = progress_of(worker, 0)
    worker.stop()
    assert engine.closed
    assert progress_of(worker, 0) == before
    assert (before.calls, before.amount) == (4, "0.020000000000")


def test_four_threads_of_a_pipeline_feed_one_embedder(tmp_path: Path) -> None:
    """So that a process has its devices once: its weights, its programs, its steps in flight."""

    class SeenOpeners(FakeOpeners):
        def embedder(self, backend: Any, base_dir: Path, lengths: Any = None) -> Any:
            self.opened.append("embedder")
            opened.append(Openers.embedder(self, backend, base_dir))
            return opened[-1]

    opened: list[Any] = []
    real = {**EMBEDDER, "model_path": str(write_tiny_model(tmp_path / "model")), "compute_dtype": "float32"}
    routes = [{"name": "vec", "backends": ["emb"]}]
    planned = plan(tmp_path, files=3, backends__emb=real, routes=routes, limits__batch_rows=1)
    openers = SeenOpeners()
    events = run_in_process(planned, openers, "--direct_num_workers=4")
    assert len(reports(events)) == 18
    assert {(report.state, report.error) for report in reports(events)} == {("committed", "")}
    assert openers.opened == ["embedder"]
    assert opened[0].stats().texts == 18


def test_two_groups_of_one_plan_do_all_of_it(tmp_path: Path) -> None:
    planned = plan(tmp_path, limits__batch_rows=2)
    for group in (0, 1):
        job = load_job(planned.arguments(group, 2))
        worker_of(job.config, FakeOpeners())
        run_job(job, lambda _: None)
    manifest = settle_run(planned.place.loaded, planned.context, planned.plan, [], START)
    assert (manifest.state, manifest.results) == ("complete", 6)


@pytest.fixture
def spaceless_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam starts these workers with a shell line that a space in this environment's path would break."""
    (tmp_path / "environment").symlink_to(sys.prefix)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "environment" / "bin" / "python"))


@pytest.mark.slow
@pytest.mark.usefixtures("spaceless_python")
def test_batches_of_workers_in_other_processes_are_told_of_from_what_they_leave(tmp_path: Path) -> None:
    planned = plan(tmp_path, files=2, **CLOSED)
    write(planned.place.folder / "in" / "b.parquet", rows(range(90, 96)))
    job = load_job(planned.arguments(0, 1, "--direct_running_mode=multi_processing"))
    events: list[dict[str, Any]] = []
    run_job(job, events.append)
    uris = {ref.batch_id: Path(ref.uri).name for ref in planned.plan.refs}
    said = Counter((uris[report.batch_id], report.state) for report in reports(events))
    assert said == {("a.parquet", "committed"): 3, ("b.parquet", "failed"): 3}
    assert all("has changed" in report.error for report in reports(events) if report.state == "failed")
    assert (events[-1]["documents"], events[-1]["batches"]) == (6, 3)


def test_a_job_is_forgotten_when_it_ends(tmp_path: Path) -> None:
    planned = plan(tmp_path, limits__batch_rows=2)
    run_in_process(planned, FakeOpeners())
    config = load_job(planned.arguments()).config
    fresh = FakeOpeners()
    assert worker_of(config, fresh).openers is fresh
    forget_worker(config)


def test_a_job_holds_plain_values(tmp_path: Path) -> None:
    job = load_job(plan(tmp_path, **CLOSED).arguments())
    assert replace(job, group=1) == Job(job.config, job.refs, 1, job.flags)


# ---- real processes; all are started at once, because each takes seconds to import Beam


@dataclass
class Ended:
    code: int
    events: list[dict[str, Any]]
    errors: str


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    folder = tmp_path_factory.mktemp("processes")
    plans = {name: plan(folder, name, **CLOSED) for name in ("good run", "refused", "unplanned")}
    flags = {"good run": ["--direct_runner_bundle_repeat=1"], "refused": ["--runner=DaskRunner"]}
    changes = {"unplanned": {"plan": "runs/none/plan.parquet"}}
    processes = {
        name: subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pipelines.enrich",
                *p.arguments(0, 1, *flags.get(name, []), **changes.get(name, {})),
            ],
            cwd=REPOSITORY,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name, p in plans.items()
    }
    found = {}
    for name, process in processes.items():
        out, err = process.communicate(timeout=120)
        found[name] = Ended(process.returncode, [json.loads(line) for line in out.splitlines()], err)
    return found


def test_a_process_that_did_its_work_says_so_in_lines_and_ends_with_0(ended: dict[str, Ended]) -> None:
    good = ended["good run"]
    assert good.code == 0
    assert [e["event"] for e in good.events if e["event"] != "progress"] == ["batch"] * 6 + ["done"]
    states = sorted(r.state for r in reports(good.events))
    assert states == ["already_committed"] * 3 + ["committed"] * 3
    assert {r.record.failures_by_class["policy_rejected"] for r in reports(good.events) if r.record} == {2}


def test_a_configuration_to_mend_ends_with_2_and_a_sentence(ended: dict[str, Ended]) -> None:
    process = ended["refused"]
    (event,) = [e for e in process.events if e["event"] == "error"]
    assert (process.code, event["class"]) == (2, "RunnerRefusedError")
    assert event["message"].startswith("--runner=daskrunner is refused: ")
    assert "Traceback" not in process.errors


def test_anything_else_ends_with_1_and_a_sentence_and_the_rest_in_the_log(ended: dict[str, Ended]) -> None:
    process = ended["unplanned"]
    assert process.code == 1
    (event,) = process.events
    assert (event["event"], event["class"]) == ("error", "FileNotFoundError")
    assert event["message"].startswith("FileNotFoundError: ")
    assert "Traceback" in process.errors
