from pathlib import Path
from typing import Any

import pytest

from schemas.errors import Problem, WorkloadError
from schemas.load import load_workload
from tests.support.workloads import EMBEDDER, HOSTED, TOPIC_SCHEMA, data, load, toml, write_workload


def problems(folder: Path, **changes: Any) -> list[Problem]:
    with pytest.raises(WorkloadError) as caught:
        load(folder, **changes)
    assert str(caught.value).startswith(f"{folder / 'w.toml'}: ")
    return caught.value.problems


def only(folder: Path, **changes: Any) -> Problem:
    (problem,) = problems(folder, **changes)
    return problem


def test_the_least_workload_loads(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.workload.name == "demo"
    assert loaded.base_dir == tmp_path
    assert loaded.source == (tmp_path / "w.toml").read_bytes()


@pytest.mark.parametrize(
    ("where", "hint", "changes"),
    [
        ("nam", "Did you mean `name`?", {"nam": "x"}),
        ("input.colums", "Did you mean `columns`?", {"input__colums": []}),
        ("routes[0].promt", "Did you mean `prompt`?", {"routes": [{"name": "a", "promt": "topic"}]}),
        (
            "routes[0].split[1].wait",
            "Did you mean `weight`?",
            {
                "routes": [
                    {
                        "name": "a",
                        "prompt": "topic",
                        "split": [
                            {"weight": 1, "backends": ["mini"]},
                            {"wait": 1, "weight": 1, "backends": ["mini"]},
                        ],
                    }
                ]
            },
        ),
        ("prompts.topic.templat", "Did you mean `template`?", {"prompts__topic__templat": "x"}),
        (
            "prompts.system.sistem",
            "Did you mean `system`?",
            {"prompts__system": {"template": "x", "sistem": "y"}},
        ),
        ("backends.mini.modle", "Did you mean `model`?", {"backends__mini__modle": "x"}),
        ("backends.openai.modle", "Did you mean `model`?", {"backends__openai": {**HOSTED, "modle": "x"}}),
        ("backends.e.model", "Did you mean `model_path`?", {"backends__e": {**EMBEDDER, "model": "x"}}),
        (
            "backends.mini.price.input_per_milion",
            "Did you mean `input_per_million`?",
            {"backends__mini__price__input_per_milion": 1},
        ),
        (
            "policy.reject[0].resaon",
            "Did you mean `reason`?",
            {"policy__reject": [{"name": "r", "when": "TRUE", "reason": "x", "resaon": 1}]},
        ),
        ("budget.amuont", "Did you mean `amount`?", {"budget__amuont": 1}),
        ("limits.batch_row", "Did you mean `batch_rows`?", {"limits__batch_row": 1}),
        ("rehearsal.faults.hangs", "Did you mean `hang`?", {"rehearsal__faults__hangs": 0.1}),
        ("output.zzz", "Known keys: columns, compression, uri", {"output__zzz": 1}),
    ],
)
def test_an_unknown_key_is_named_with_the_key_that_was_meant(
    tmp_path: Path, where: str, hint: str, changes: dict[str, Any]
) -> None:
    found = [p for p in problems(tmp_path, **changes) if p.allowed == "unknown key"]
    assert [(p.where, p.hint) for p in found] == [(where, hint)]


@pytest.mark.parametrize(
    ("where", "value", "allowed", "changes"),
    [
        ("limits.batch_rows", "'many'", "valid integer", {"limits__batch_rows": "many"}),
        ("limits.batch_rows", "0", "greater than or equal to 1", {"limits__batch_rows": 0}),
        ("budget.amount", "-1", "greater than or equal to 0", {"budget__amount": -1}),
        ("match", "'some'", "'first' or 'all'", {"match": "some"}),
        ("routes", "[]", "needs at least one item", {"routes": []}),
        ("routes", "5", "must be an array", {"routes": 5}),
        ("input", "'x'", "must be a table", {"input": "x"}),
        ("backends.mini", "5", "must be a table", {"backends__mini": 5}),
        ("backends.Mini", "'Mini'", "match pattern", {"backends__Mini": HOSTED}),
        ("backends.x.provider", "'gogle'", "anthropic, openai, ", {"backends__x": {"provider": "gogle"}}),
        ("backends.x.provider", "(missing)", "anthropic, openai, ", {"backends__x": {"model": "m"}}),
        ("backends.mini.api_key_env", "'sk-1'", "match pattern", {"backends__mini__api_key_env": "sk-1"}),
        ("rehearsal.faults", "{'hang': 0.6, 'refusal': 0.6}", "add up to more than 1",
         {"rehearsal__faults": {"hang": 0.6, "refusal": 0.6}}),
        ("routes[0]", "{'name': 'a', 'prompt': 'topic'}", "either `backends` or `split`",
         {"routes": [{"name": "a", "prompt": "topic"}]}),
    ],
)  # fmt: skip
def test_a_wrong_value_is_shown_with_its_key_and_what_is_allowed(
    tmp_path: Path, where: str, value: str, allowed: str, changes: dict[str, Any]
) -> None:
    problem = only(tmp_path, **changes)
    assert (problem.where, problem.value) == (where, value)
    assert allowed in problem.allowed


@pytest.mark.parametrize("key", ["input", "routes", "backends", "output", "name"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    values = data()
    del values[key]
    (tmp_path / "w.toml").write_text(toml(values))
    with pytest.raises(WorkloadError) as caught:
        load_workload(tmp_path / "w.toml")
    assert Problem(key, "(missing)", "this key is required", "add it") in caught.value.problems


def test_a_missing_key_inside_a_section_is_named_by_its_path(tmp_path: Path) -> None:
    assert only(tmp_path, backends__mini={"provider": "openai"}).where == "backends.mini.model"


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, nam="x", limits__batch_rows=0, budget__amount=-1)
    assert {p.where for p in found} == {"nam", "limits.batch_rows", "budget.amount"}


def test_refused_items_do_not_make_an_array_too_short_besides(tmp_path: Path) -> None:
    route = {"name": "a", "backends": ["mini"], "prompt": "topic", "whn": "TRUE"}
    assert only(tmp_path, routes=[route]).where == "routes[0].whn"


def test_a_secret_under_an_unknown_key_is_not_repeated(tmp_path: Path) -> None:
    problem = only(tmp_path, backends__mini__api_key="sk-live-canary")
    assert "canary" not in str(problem)
    assert problem.hint == "Did you mean `api_key_env`?"


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    assert len(only(tmp_path, match="x" * 10_000).value) < 100


ROUTE = {"name": "ask", "backends": ["mini"], "prompt": "topic"}


@pytest.mark.parametrize(
    ("where", "words", "changes"),
    [
        ("routes[0].backends[1]", ["'nope'", "mini"],
         {"routes": [{**ROUTE, "backends": ["mini", "nope"]}]}),
        ("routes[0].split[1].backends[0]", ["'nope'", "mini"],
         {"routes": [{"name": "a", "prompt": "topic", "split": [
             {"weight": 1, "backends": ["mini"]}, {"weight": 1, "backends": ["nope"]}]}]}),
        ("routes[0].prompt", ["'nope'", "topic"], {"routes": [{**ROUTE, "prompt": "nope"}]}),
        ("routes[0].prompt", ["a hosted route needs a prompt"],
         {"routes": [{"name": "a", "backends": ["mini"]}]}),
        ("routes[0].backends", ["can't share a route"],
         {"backends__e": EMBEDDER, "routes": [{**ROUTE, "backends": ["mini", "e"]}]}),
        ("routes[0].prompt", ["an embed route takes no prompt"],
         {"backends__e": EMBEDDER, "routes": [{**ROUTE, "backends": ["e"]}]}),
        ("routes[0].backends", ["one embedder per route", "another space"],
         {"backends__e": EMBEDDER, "backends__f": EMBEDDER,
          "routes": [{"name": "a", "backends": ["e", "f"]}]}),
        ("routes", ["'ask'", "must be unique"], {"routes": [ROUTE, ROUTE]}),
        ("policy.reject[0].routes", ["'nope'", "ask"],
         {"policy__reject": [{"name": "r", "when": "TRUE", "reason": "x", "routes": ["nope"]}]}),
        ("policy.allowed_providers", ["'nope'", "ask"],
         {"policy__allowed_providers": {"nope": ["openai"]}}),
        ("routes[0].backends[0]", ["'mini'", "'openai'", "anthropic", "allow its provider"],
         {"policy__allowed_providers": {"ask": ["anthropic"]}}),
        ("output.columns", ["'answer'", "is a column of the results", "Rename"],
         {"output__columns": ["answer"], "input__columns": ["answer"]}),
        ("output.columns", ["'nope'", "id, kind, size, text"], {"output__columns": ["nope"]}),
        ("output.columns", ["'kind'", "more than once"], {"output__columns": ["kind", "kind"]}),
    ],
)  # fmt: skip
def test_names_that_point_nowhere_and_routes_that_do_not_add_up_are_refused(
    tmp_path: Path, where: str, words: list[str], changes: dict[str, Any]
) -> None:
    problem = only(tmp_path, **changes)
    assert problem.where == where
    assert [w for w in words if w not in str(problem)] == []


def test_split_and_backends_exclude_each_other(tmp_path: Path) -> None:
    route = {**ROUTE, "split": [{"weight": 1, "backends": ["mini"]}]}
    assert "either `backends` or `split`" in only(tmp_path, routes=[route]).allowed


@pytest.mark.parametrize(
    ("source", "value"),
    [(b"name = ", "not TOML"), (b'name = "\xff"', "not TOML"), (b"a = 1\na = 2", "not TOML")],
)
def test_what_is_no_toml_is_refused_with_the_place(tmp_path: Path, source: bytes, value: str) -> None:
    path = tmp_path / "w.toml"
    path.write_bytes(source)
    with pytest.raises(WorkloadError, match="Mend the file") as caught:
        load_workload(path)
    assert caught.value.problems[0].value == value


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"none\.toml.*\n.*No such file"):
        load_workload(tmp_path / "none.toml")


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="directory"):
        load_workload(tmp_path)


def test_addresses_in_the_file_are_relative_to_its_folder(tmp_path: Path) -> None:
    loaded = load(tmp_path, input__uri="../docs/*.parquet", output__uri="/abs/out")
    assert loaded.input_uri == str(tmp_path.parent / "docs/*.parquet")
    assert loaded.output_uri == "/abs/out"


def test_addresses_on_the_command_line_are_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = write_workload(tmp_path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = load_workload(path, input_uri="docs", output_uri="gs://bucket/out")
    assert loaded.input_uri == str(tmp_path / "elsewhere" / "docs")
    assert loaded.output_uri == "gs://bucket/out"


def test_a_schema_and_a_split_survive_loading(tmp_path: Path) -> None:
    arms = [{"weight": 9, "backends": ["mini"]}, {"weight": 1, "backends": ["mini"]}]
    route = {"name": "ask", "prompt": "topic", "split": arms}
    loaded = load(tmp_path, routes=[route], prompts__topic__json_schema=TOPIC_SCHEMA).workload
    assert [arm.weight for arm in loaded.routes[0].chains] == [9, 1]
    assert loaded.prompts["topic"].json_schema == TOPIC_SCHEMA


HOSTED_VECTORS = {"provider": "openai", "model": "m", "operation": "embeddings", "dimensions": 8}


def test_a_route_of_hosted_embeddings_needs_no_prompt(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, backends={"far": HOSTED_VECTORS}, routes=[{"name": "vec", "backends": ["far"]}], prompts={}
    )
    assert loaded.workload.is_embed_route(loaded.workload.routes[0])


@pytest.mark.parametrize(
    ("backends", "more", "said"),
    [
        (["far"], {"prompt": "topic"}, "an embed route takes no prompt"),
        (["far", "farther"], {}, "one embedder per route"),
        (["far", "emb"], {}, "one embedder per route"),
        (["far", "mini"], {}, "hosted models and embedders can't share a route"),
    ],
)
def test_hosted_embeddings_keep_the_rules_of_embed_routes(
    tmp_path: Path, backends: list[str], more: dict[str, Any], said: str
) -> None:
    problem = only(
        tmp_path,
        backends={"far": HOSTED_VECTORS, "farther": HOSTED_VECTORS, "emb": EMBEDDER, "mini": HOSTED},
        routes=[{"name": "vec", "backends": backends, **more}],
    )
    assert problem.allowed == said
