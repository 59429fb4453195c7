"""`switchgear ledger verify`: what it prints, and its exit codes."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.backstage import Backstage
from flows.cli import app
from flows.report import console
from tests.flows.fake_run import FakeRun
from tests.support import documents, workloads
from tests.support.drive import drive
from transforms.output_lock import LOCK


def verify(output: Path, *flags: str) -> Result:
    fake = FakeRun(output.parent, 1, None)  # type: ignore[arg-type]
    backstage = Backstage(fake.steps, lambda *_: None, console(), console(stderr=True), lambda _: 0)  # type: ignore[arg-type, return-value]
    return CliRunner().invoke(app, ["ledger", "verify", str(output), *flags], obj=backstage)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    texts = [f"text {n % 5}" for n in range(8)]
    documents.write(
        tmp_path / "in" / "a.parquet", documents.rows([f"d{n}" for n in range(8)], text=texts), row_group=8
    )
    workload = workloads.write_workload(tmp_path, rehearsal={"latency_ms": [0, 1]})
    drive(workload, rehearsal=True)
    return tmp_path / "out"


def test_a_good_output_exits_0_and_says_so_with_exact_sums(output: Path) -> None:
    result = verify(output)
    assert result.exit_code == 0, result.output
    assert "Proven: every answered call is in exactly one row's cost" in result.stdout
    assert "5 calls, 5 answered" in result.stdout
    assert "3 rows share" in result.stdout


def test_with_json_standard_output_is_one_value(output: Path) -> None:
    result = verify(output, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["state"] == "proven"


def test_a_contradiction_exits_1_and_names_the_place(output: Path) -> None:
    part = next(output.glob("results/*/*.parquet"))
    part.unlink()
    result = verify(output)
    assert result.exit_code == 1
    assert part.name in result.stdout
    assert "Contradicted" in result.stdout


def test_an_interrupted_run_exits_3(output: Path) -> None:
    next(output.glob("runs/*/manifest.json")).unlink()
    result = verify(output)
    assert result.exit_code == 3
    assert "Not finished" in result.stdout


def test_an_output_at_which_a_run_is_at_work_is_left_alone(output: Path) -> None:
    descriptor = os.open(output / LOCK, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        result = verify(output)
    finally:
        os.close(descriptor)
    assert result.exit_code == 2
    assert "a run is at work" in result.stderr


def test_what_is_no_output_exits_2(tmp_path: Path) -> None:
    assert verify(tmp_path / "nowhere").exit_code == 2
