"""Running the flow from a command: on a server that is there already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.launch import run_enrich
from flows.parameters import EnrichParameters
from schemas.errors import ConfigurationError, InputError, MissingSecretError, WorkloadError
from schemas.run import Manifest
from tests.flows.fake_run import FakeCheck, FakeRun, Watched


@pytest.fixture
def fake(tmp_path: Path, manifest: Callable[..., Manifest]) -> FakeRun:
    return FakeRun(tmp_path, 3, manifest())


@pytest.fixture
def server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tests' server as one that the user has configured."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    return prefect_server


def form(fake: FakeRun, **changes: Any) -> EnrichParameters:
    return EnrichParameters(**{"workload": str(fake.workload), "rehearsal": True, **changes})


@pytest.mark.usefixtures("server")
def test_a_run_gives_its_manifest_and_its_plan(fake: FakeRun) -> None:
    ending = run_enrich(form(fake), Watched(), fake.steps())

    assert ending.manifest is not None
    assert ending.manifest.state == "complete"
    assert ending.manifest.rehearsal
    assert ending.plan is not None
    assert len(ending.plan.refs) == 3
    assert ending.output == str(fake.folder / "output")


@pytest.mark.usefixtures("server")
def test_the_workload_is_checked_once_and_what_was_found_is_said(fake: FakeRun) -> None:
    checks: list[Any] = []

    def check(loaded: Any) -> FakeCheck:
        checks.append(loaded)
        return FakeCheck()

    watched = Watched()
    run_enrich(form(fake), watched, fake.steps(check=check))

    assert len(checks) == 1
    assert watched.said == ["checked"]


@pytest.mark.usefixtures("server")
def test_incomplete_is_no_error_but_a_manifest_that_says_so(fake: FakeRun) -> None:
    fake.touch("broken", fake.batch_id(1))

    ending = run_enrich(form(fake), Watched(), fake.steps())

    assert ending.manifest is not None
    assert ending.manifest.state == "incomplete"


@pytest.mark.usefixtures("server")
def test_what_no_worker_could_begin_with_is_a_configuration_error(fake: FakeRun) -> None:
    fake.touch("misconfigured")

    with pytest.raises(ConfigurationError, match="no model"):
        run_enrich(form(fake), Watched(), fake.steps())


@pytest.mark.usefixtures("server")
def test_a_failed_check_is_raised_and_no_worker_started(fake: FakeRun) -> None:
    def check(_: Any) -> FakeCheck:
        raise InputError("no column 'text'")

    with pytest.raises(InputError, match="no column"):
        run_enrich(form(fake), Watched(), fake.steps(check=check))

    assert fake.starts() == []


@pytest.mark.usefixtures("server")
def test_a_defect_in_a_step_is_raised_as_it_is(fake: FakeRun) -> None:
    def plan(*_: Any) -> Any:
        raise ZeroDivisionError("a defect")

    with pytest.raises(ZeroDivisionError, match="a defect"):
        run_enrich(form(fake), Watched(), fake.steps(plan=plan))


def test_a_wrong_workload_or_a_missing_key_needs_no_server_to_be_found(
    fake: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    fake.key = False
    with pytest.raises(MissingSecretError):
        run_enrich(form(fake, rehearsal=False), Watched(), fake.steps())

    fake.workload.write_text("name = 5")
    with pytest.raises(WorkloadError):
        run_enrich(form(fake), Watched(), fake.steps())


def test_a_refused_runner_needs_no_server_to_be_found(fake: FakeRun) -> None:
    def refuse(flags: Any, engine: str) -> None:
        raise ConfigurationError(f"{flags[0]} is refused on {engine}")

    with pytest.raises(ConfigurationError, match="--runner=DirectRunner is refused on local"):
        run_enrich(
            form(fake, runner_flags=("--runner=DirectRunner",)),
            Watched(),
            fake.steps(require_safe_runner=refuse),
        )


def test_the_real_steps_refuse_a_runner_that_loses_data() -> None:
    from flows.steps import real_steps
    from schemas.errors import RunnerRefusedError

    with pytest.raises(RunnerRefusedError):
        real_steps().require_safe_runner(["--direct_running_mode=multi_threading"], "local")


def test_a_run_with_another_backend_is_quoted_as_the_version_of_the_workload_that_it_is(
    tmp_path: Path,
) -> None:
    from flows.steps import real_steps
    from schemas.changes import with_changes
    from schemas.run import RunContext
    from tests.support import documents, workloads
    from transforms.output import open_output
    from transforms.quote.compare import read_quote
    from transforms.store import open_store

    documents.write(tmp_path / "in" / "a.parquet", documents.rows(range(4)))
    dear = {**workloads.HOSTED, "price": {"input_per_million": "9", "output_per_million": "90"}}
    loaded = workloads.load(tmp_path, backends={"mini": workloads.HOSTED, "dear": dear})
    context = RunContext("r1", loaded.output_uri, loaded.workload.digest(), True, 8, reroute={"ask": "dear"})

    with open_output(loaded, rehearsal=True):
        real_steps().quote(with_changes(loaded, context), context, ())

    quote = read_quote(open_store(context.output), "r1")
    assert quote is not None
    assert quote.workload_sha256 == context.workload_sha256
    assert quote.routes[0].backends == ("dear",)
