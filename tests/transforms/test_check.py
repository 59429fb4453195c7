import json
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import InputError, MissingSecretError, WorkloadError
from tests.support.documents import rows, write
from tests.support.workloads import EMBEDDER, HOSTED, load, workload
from tests.transforms.embed.tiny_model import tiny_tokenizer, write_tiny_model
from transforms.check import check_workload, key_variable, missing_key, require_keys, require_usable
from transforms.files import find_input

NO_PRICE = {"provider": "openai", "model": "model-of-nobody"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "in" / "a.parquet", rows(range(1500)))
    return tmp_path


def problems(folder: Path, **changes: Any) -> dict[str, str]:
    with pytest.raises(WorkloadError) as caught:
        check_workload(load(folder, **changes), environment={})
    return {problem.where: str(problem) for problem in caught.value.problems}


def test_a_sound_workload_is_described(folder: Path) -> None:
    report = check_workload(load(folder), environment={"OPENAI_API_KEY": "k"})
    assert (report.workload, report.files, report.rows, report.skipped_files) == ("demo", 1, 1500, ())
    assert report.columns == (("id", "string"), ("text", "string"), ("kind", "string"), ("size", "int64"))
    assert report.warnings == ()
    assert report.lines() == [
        f"workload demo, version {report.workload_sha256[:12]}",
        "input: 1 file, 1,500 rows; id string, text string, kind string, size int64",
        "backend mini: openai gpt-5-mini; "
        "1 USD a million input tokens, 10 a million output tokens (workload)",
    ]
    assert json.loads(json.dumps(report.to_dict()))["rows"] == 1500


def test_every_expression_and_prompt_is_checked_against_the_real_columns(folder: Path) -> None:
    route = {"name": "ask", "when": "sise > 1", "backends": ["mini"], "prompt": "topic"}
    found = problems(
        folder,
        routes=[route],
        input__filter="size >",
        policy__reject=[{"name": "r", "when": "COUNT(*) > 1", "reason": "x"}],
        prompts__topic={"template": "{{ titel }}", "json_schema": {"type": "string"}},
    )
    assert set(found) == {
        "routes[0].when", "input.filter", "policy.reject[0].when", "prompts.topic.template",
        "prompts.topic.json_schema",
    }  # fmt: skip
    assert "known: id, text, kind, size" in found["routes[0].when"]


def test_a_model_that_is_not_there_is_a_problem_of_its_backend(folder: Path) -> None:
    routes = [{"name": "vec", "backends": ["emb"]}]
    found = problems(folder, routes=routes, backends__emb={**EMBEDDER, "model_path": "nowhere"})
    assert list(found) == ["backends.emb.model_path"]
    said = f"backends.emb.model_path = 'nowhere': no folder {folder / 'nowhere'}. Give a folder with"
    assert found["backends.emb.model_path"].startswith(said)


def test_what_is_odd_about_a_model_that_can_be_used_is_a_warning(folder: Path) -> None:
    model = write_tiny_model(folder / "model")
    plain = tiny_tokenizer()
    plain.post_processor = None
    (model / "tokenizer.json").write_text(plain.to_str(), encoding="utf-8")
    loaded = load(
        folder,
        routes=[{"name": "vec", "backends": ["emb"]}],
        backends__emb={**EMBEDDER, "model_path": str(model)},
    )
    warnings = check_workload(loaded, environment={}).warnings
    assert warnings[-1].startswith(f"backend emb: {model}/tokenizer.json: adds no special tokens")


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.parquet", rows([]))
    with pytest.raises(InputError, match="1 file, but no row in any of them"):
        check_workload(load(tmp_path), environment={})


def test_an_output_inside_of_the_input_is_refused_once_there_are_results(folder: Path) -> None:
    write(folder / "in" / "out" / "results" / "a.parquet", rows([1]))
    with pytest.raises(InputError, match="results would be read as documents"):
        check_workload(load(folder, output__uri="in/out"), environment={})


def test_skipped_files_are_listed(folder: Path) -> None:
    (folder / "in" / "b.parquet").write_text("no")
    report = check_workload(load(folder, input__unreadable_files="skip"), environment={})
    assert len(report.skipped_files) == 1


def test_a_key_that_is_missing_is_a_warning(folder: Path) -> None:
    report = check_workload(load(folder), environment={})
    assert report.warnings == ("OPENAI_API_KEY is not set: backend mini can only be rehearsed",)


UNKNOWN = "backend mini (model-of-nobody) has no known price: "


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({}, ()),
        ({"budget__amount": "1"}, (f"{UNKNOWN}its documents will be refused",)),
        (
            {"budget__amount": "1", "budget__on_unknown_price": "allow"},
            (f"{UNKNOWN}its cost can't be held by the budget",),
        ),
    ],
)
def test_a_model_without_a_price_is_a_warning_where_there_is_a_budget(
    folder: Path, changes: dict[str, Any], warnings: tuple[str, ...]
) -> None:
    environment = {"OPENAI_API_KEY": "k"}
    report = check_workload(load(folder, backends__mini=NO_PRICE, **changes), environment=environment)
    assert report.backends[0].price == "no known price"
    assert report.warnings == warnings


def test_expressions_can_be_checked_without_models(folder: Path) -> None:
    loaded = load(folder, routes=[{"name": "vec", "backends": ["emb"]}], backends__emb=EMBEDDER)
    schema = find_input(loaded.input_uri, loaded.workload.input).schema
    require_usable(loaded, schema)
    with pytest.raises(WorkloadError):
        require_usable(load(folder, input__filter="x = 1"), schema)


# ---- keys


def test_every_missing_key_is_named_with_the_backends_that_need_it() -> None:
    claude = {"provider": "anthropic", "model": "claude"}
    found = workload(
        backends={
            "mini": HOSTED, "other": HOSTED, "claude": claude,
            "own": {**HOSTED, "api_key_env": "MY_KEY"}, "free": {**HOSTED, "requires_key": False},
        }
    )  # fmt: skip
    with pytest.raises(MissingSecretError) as caught:
        require_keys(found, {"MY_KEY": "k", "ANTHROPIC_API_KEY": "  "})
    said = str(caught.value)
    assert "OPENAI_API_KEY (backend mini, other); ANTHROPIC_API_KEY (backend claude)" in said
    assert "MY_KEY" not in said
    assert "--rehearsal" in said
    require_keys(found, {"MY_KEY": "k", "ANTHROPIC_API_KEY": "k", "OPENAI_API_KEY": "k"})


def test_a_backend_that_takes_no_key_misses_none() -> None:
    backend = workload(backends__mini__requires_key=False).hosted_backends()["mini"]
    assert missing_key(backend, {}) == ""
    assert key_variable(backend) == "OPENAI_API_KEY"


VERTEX = {"platform": "vertex", "project": "p-1", "location": "europe-west1"}
CLAUDE = {"provider": "anthropic", "model": "claude-haiku-4-5@20251001", **VERTEX}


def test_vertex_takes_credentials_instead_of_a_key() -> None:
    found = workload(backends__mini=CLAUDE)
    assert missing_key(found.hosted_backends()["mini"], {}) == ""
    asked: list[str] = []
    require_keys(found, {}, lambda: asked.append("credentials"))
    assert asked == ["credentials"]

    def none() -> object:
        raise MissingSecretError("there are no credentials")

    with pytest.raises(MissingSecretError, match="no credentials"):
        require_keys(found, {}, none)
    require_keys(workload(backends__mini__requires_key=False), {}, none)  # nobody needs them


@pytest.mark.parametrize(
    ("backend", "line"),
    [
        (
            {"provider": "gemini", "model": "gemini-2.5-flash"},
            "gemini gemini-2.5-flash; 0.3 USD a million input tokens, 2.5 a million output tokens",
        ),
        (
            CLAUDE,
            "anthropic on vertex claude-haiku-4-5@20251001; 1 USD a million input tokens, 5 a million output",
        ),
    ],
)
def test_each_backend_is_described_with_its_price(folder: Path, backend: dict[str, Any], line: str) -> None:
    lines = check_workload(load(folder, backends__mini=backend), environment={}).lines()
    assert any(line in found for found in lines)
    assert any("1.1 times that at europe-west1" in found for found in lines) == (backend is CLAUDE)


def test_an_embedder_at_a_provider_costs_its_input_alone(folder: Path) -> None:
    far = {
        "provider": "openai",
        "model": "text-embedding-3-small",
        "operation": "embeddings",
        "dimensions": 8,
    }
    report = check_workload(
        load(folder, backends={"far": far}, routes=[{"name": "vec", "backends": ["far"]}], prompts={}),
        environment={"OPENAI_API_KEY": "k"},
    )
    (backend,) = report.backends
    assert backend.price_known
    assert backend.price.startswith("0.02 USD a million input tokens (genai-prices")


def test_geminis_key_has_googles_usual_name(folder: Path) -> None:
    backend = {"provider": "gemini", "model": "gemini-2.5-flash"}
    report = check_workload(load(folder, backends__mini=backend), environment={})
    assert report.warnings == ("GEMINI_API_KEY is not set: backend mini can only be rehearsed",)
