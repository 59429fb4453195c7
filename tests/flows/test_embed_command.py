"""`switchgear embed plan`: what it prints, what it answers machines, and its exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.backstage import Backstage
from flows.cli import app
from flows.embed_command import PlanOptions, run_plan
from flows.report import console
from flows.steps import Ending
from schemas.errors import ConfigurationError
from schemas.load import load_workload
from tests.support.documents import rows, write
from tests.support.workloads import EMBEDDER, write_workload
from tests.transforms.embed.test_device_plan import EIGHT_BILLION
from tests.transforms.embed.tiny_model import REAL_MODEL, write_json
from transforms.embed.chips import GIB
from transforms.embed.libtpu import find_libtpu
from transforms.output import open_output
from transforms.store import LocalStore

GOLDEN = Path(__file__).parent / "embed_plan.txt"
ANSWERS = {
    "v5e:2x2": {"bytes": 11.0e9, "flops": 1.56e12, "temporaries": 340_000_000},
    "v6e:2x2": {"bytes": 11.0e9, "flops": 1.56e12, "temporaries": 340_000_000},
    "tpu7x:2x2x1": {"bytes": 10.2e9, "flops": 1.56e12, "temporaries": 430_000_000},
    "v5e:1x1": {"temporaries": 20 * GIB, "limit": int(15.75 * GIB)},
}
COMMON = {
    "kernel": "mosaic",
    "seconds": 9.0,
    "arguments": 70_000_000,
    "outputs": 12_000_000,
    "code": 15_000_000,
}
Plan = Callable[..., tuple[str, list[Any]]]


def compiler(request: dict[str, Any]) -> list[dict[str, Any]]:
    """What libtpu 0.0.42.1 said of all-MiniLM-L6-v2, rounded; of v5e:1x1 that memory is short."""
    answer = ANSWERS[request["topology"]]
    return [answer if "limit" in answer else {**COMMON, **answer} for _ in request["shapes"]]


def _no_run(*_: Any) -> Ending:
    raise AssertionError("a plan runs nothing")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    def made(options: PlanOptions, **changes: Any) -> tuple[str, list[Any]]:
        emb = {**EMBEDDER, "model_path": REAL_MODEL, "compute_dtype": "auto"}
        route = {"name": "embed", "backends": ["emb"]}
        path = write_workload(
            tmp_path, **{"backends": {"emb": emb}, "routes": [route], "prompts": {}, **changes}
        )
        out = Console(width=170, highlight=False, color_system=None, record=True, quiet=False)
        real = Backstage.real()
        steps = replace(real.steps(), now=lambda: datetime(2026, 11, 22, tzinfo=UTC))
        backstage = replace(real, out=out, err=console(stderr=True), steps=lambda: steps, run_enrich=_no_run)
        plans = run_plan(backstage, path, options, compiler)
        return out.export_text(), plans

    return made


def test_it_prints_the_plan_as_it_always_did(plan: Plan) -> None:
    """If this fails on purpose, write what it prints now into embed_plan.txt."""
    text, _ = plan(PlanOptions(document_tokens=200))
    printed = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    assert printed == GOLDEN.read_text(encoding="utf-8")


def test_with_json_standard_output_holds_the_plans_and_nothing_else(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(PlanOptions(("v5e:2x2",), document_tokens=200, as_json=True))
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["fits"], found["backend"]) == ("estimate", True, "emb")
    (step,) = found["steps"]
    assert step["needed"] == 340_000_000 + 70_000_000 + 12_000_000 + 15_000_000
    assert step["bound"]["memory_seconds"] == pytest.approx(11.0e9 / 819e9)
    assert step["estimate"]["usd_per_million_tokens"][0].startswith("0.00007")


def test_a_plan_that_does_not_fit_says_so_last_and_prints_no_rates(plan: Plan) -> None:
    text, (made,) = plan(PlanOptions(("v5e:1x1",), document_tokens=200))
    assert made.refusals
    assert "does not fit: v5e:1x1: a step of 65,536 tokens" in text
    assert "step_tokens = 32768" in text
    assert "documents/s" not in text


def test_documents_are_measured_where_their_tokens_are_not_given(plan: Plan, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.parquet", rows(range(10)))
    text, (made,) = plan(PlanOptions(("v5e:2x2",)))
    assert made.document_basis == "of 10 sampled"
    assert f"documents of {made.document_tokens:,.0f} tokens (of 10 sampled)" in text
    assert 3 <= made.document_tokens <= 40
    (mix,) = made.mixes
    printed = " ".join(text.split())
    assert f"v5e:2x2 256 (100%) {mix.filled:.1%} " in printed
    assert mix.filled < 0.9  # such short texts leave slots empty, which nobody has to assume
    assert "97% of the slots filled where the texts' lengths are not known" in printed


def test_a_plan_takes_the_lengths_that_the_runs_of_its_output_have(plan: Plan, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.parquet", rows(range(10)))
    known = {"emb": {"counts": [[30, 100], [250, 100]], "sampled": 200, "documents": 200}}
    LocalStore(str(tmp_path / "out")).create("lengths/run-1.json", json.dumps(known).encode())
    _, (made,) = plan(PlanOptions(("v5e:2x2",)))
    assert made.document_basis == "of 10 sampled"  # the folder is no output of this workload
    shutil.rmtree(tmp_path / "out")
    with open_output(load_workload(tmp_path / "w.toml"), rehearsal=False):
        LocalStore(str(tmp_path / "out")).create("lengths/run-1.json", json.dumps(known).encode())
    _, (made,) = plan(PlanOptions(("v5e:2x2",)))
    assert (made.document_tokens, made.document_basis) == (140, "of 200 sampled")


def test_only_the_embedder_that_is_asked_for_is_planned(plan: Plan) -> None:
    options = PlanOptions(("v5e:2x2",), backend="other", document_tokens=200)
    with pytest.raises(ConfigurationError, match="no embedder of the workload; choose: emb"):
        plan(options)


def invoke(tmp_path: Path, *arguments: str, **environment: str) -> Any:
    path = write_workload(tmp_path)
    backstage = replace(Backstage.real(), run_enrich=_no_run)
    return CliRunner().invoke(app, ["embed", "plan", str(path), *arguments], obj=backstage, env=environment)


def test_a_workload_without_an_embedder_is_refused(tmp_path: Path) -> None:
    result = invoke(tmp_path)
    assert result.exit_code == 2
    assert "the workload has no embedder that runs here" in result.output


@pytest.mark.slow
@pytest.mark.peer
def test_a_model_too_large_for_a_chip_ends_with_exit_code_2_and_what_would_hold_it(
    tmp_path: Path,
) -> None:
    try:
        find_libtpu()
    except ConfigurationError:
        pytest.skip("libtpu is not installed: make tpu")
    write_json(tmp_path / "model" / "config.json", EIGHT_BILLION)
    settings = {"model_path": "model", "pooling": "lasttoken", "max_length": 512, "compute_dtype": "bfloat16"}
    path = write_workload(
        tmp_path,
        backends={"emb": {**EMBEDDER, **settings}},
        routes=[{"name": "embed", "backends": ["emb"]}],
        prompts={},
    )
    options = ["--topology", "v5e:2x4", "--document-tokens", "200"]
    result = CliRunner().invoke(app, ["embed", "plan", str(path), *options])
    assert result.exit_code == 2
    printed = " ".join(result.output.split())
    assert "does not fit: v5e:2x4: a step of 65,536 tokens in rows of 512 needs " in printed
    assert "would fit: tensor_parallel = 2 with step_tokens = 16384" in printed


def test_a_topology_that_is_not_known_is_refused_before_anything_is_compiled(tmp_path: Path) -> None:
    result = invoke(tmp_path, "--topology", "v4:2x2")
    assert result.exit_code == 2
    assert "topology 'v4:2x2' is not known" in result.output
