"""`--budget`: an approved cap reaches planning, workers and the manifest, and a soft one is shown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.backstage import Backstage
from flows.cli import app
from flows.parameters import EnrichParameters
from flows.progress import Standing
from flows.report import console, cost_sentence
from flows.steps import Ending, Watcher, load_for
from pipelines.enrich import load_job
from schemas.ids import new_run_id
from schemas.load import load_workload, with_budget
from schemas.run import Manifest, RunContext
from tests.flows.fake_run import FakeRun
from tests.support import documents, workloads
from transforms.output import open_output
from transforms.plan import plan_run


def ask(tmp_path: Path, ending: Ending, *arguments: str) -> tuple[Result, list[EnrichParameters]]:
    asked: list[EnrichParameters] = []

    def run(parameters: EnrichParameters, watcher: Watcher) -> Ending:
        asked.append(parameters)
        return ending

    fake = FakeRun(tmp_path, 1, ending.manifest)  # type: ignore[arg-type]
    backstage = Backstage(fake.steps, run, console(), console(stderr=True), lambda _: 0)
    return CliRunner().invoke(app, ["run", "docs.toml", *arguments], obj=backstage), asked


@pytest.fixture
def ending(manifest: Callable[..., Manifest], plan: Callable[..., Any]) -> Ending:
    return Ending("/out", plan(1), manifest())


@pytest.mark.parametrize(("given", "amount"), [("30", "30"), ("0.10", "0.10"), ("0", "0")])
def test_the_option_is_a_decimal_and_never_a_float(
    tmp_path: Path, ending: Ending, given: str, amount: str
) -> None:
    result, asked = ask(tmp_path, ending, "--budget", given)
    assert result.exit_code == 0, result.output
    assert asked[0].budget == Decimal(amount)
    assert EnrichParameters.model_validate_json(asked[0].model_dump_json()).budget == Decimal(amount)


@pytest.mark.parametrize("given", ["lots", "-1", "NaN", "Infinity", "1,5"])
def test_what_is_no_amount_is_refused_before_anything_runs(
    tmp_path: Path, ending: Ending, given: str
) -> None:
    result, asked = ask(tmp_path, ending, "--budget", given)
    assert result.exit_code == 2
    assert "USD" in result.output
    assert asked == []


def test_without_the_option_the_workloads_own_budget_holds(tmp_path: Path, ending: Ending) -> None:
    _, asked = ask(tmp_path, ending)
    assert asked[0].budget is None


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    documents.write(tmp_path / "in" / "a.parquet", documents.rows(["a", "b"]), row_group=2)
    return workloads.write_workload(tmp_path, budget={"amount": "20"})


def test_an_approved_cap_replaces_the_files_and_leaves_the_version_as_it_is(workload: Path) -> None:
    loaded = load_workload(workload)
    raised = with_budget(loaded, Decimal(30))
    assert raised.workload.budget.amount == 30
    assert raised.workload.digest() == loaded.workload.digest()
    assert with_budget(loaded, None) is loaded


def test_the_flow_loads_the_workload_with_the_approved_cap(workload: Path) -> None:
    fake = FakeRun(workload.parent, 1, None)  # type: ignore[arg-type]
    steps = dataclasses.replace(fake.steps(), load=lambda path, *_: load_workload(path))
    parameters = EnrichParameters(workload=str(workload), budget=Decimal(30), rehearsal=True)
    assert load_for(parameters, steps).workload.budget.amount == 30


@pytest.mark.parametrize(("approved", "cap"), [("30", 30), (None, 20)])
def test_a_worker_works_under_the_cap_that_the_run_was_planned_with(
    workload: Path, approved: str | None, cap: int
) -> None:
    from datetime import UTC, datetime

    loaded = load_workload(workload)
    run = RunContext(
        new_run_id(datetime.now(UTC)),
        loaded.output_uri,
        loaded.workload.digest(),
        True,
        8,
        budget_amount=approved,
    )
    with open_output(loaded, rehearsal=True):
        plan = plan_run(loaded, run)
    context = workload.parent / "context.json"
    context.write_text(json.dumps(dataclasses.asdict(run)), "utf-8")
    words = f"--workload {workload} --run {context} --plan {plan.plan_uri} --group 0 --groups 1"
    job = load_job(words.split())
    assert job.config.workload.budget.amount == cap


def test_a_soft_budget_that_is_passed_is_said_in_progress_and_report(
    manifest: Callable[..., Manifest],
) -> None:
    standing = Standing(False, 5, 10, 1, 2, 0, 5, Decimal("1.5"), 3.0, 9.0, soft_passed=True)
    assert "$1.50 so far (above the soft budget)" in standing.line()
    assert "soft" not in dataclasses.replace(standing, soft_passed=False).line()
    warned = manifest(budget_amount="20", budget_soft_amount="15", budget_soft_passed=True)
    assert "warning: above the soft budget of $15.00" in cost_sentence(warned)
