"""The demo: what it decides, and (slow) the whole of it on the documentation of a few packages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.demo import _place_workload, _refuse_other_kind, decide_rehearsal, find_example
from flows.searching import Found, _embed_route
from schemas.errors import ConfigurationError, OutputError
from schemas.load import LoadedWorkload, load_workload

KEYS = {"ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": "o"}


@pytest.fixture(scope="module")
def example() -> LoadedWorkload:
    return load_workload(find_example())


def test_without_any_key_the_demo_rehearses_and_names_what_is_missing(example: LoadedWorkload) -> None:
    rehearsal, why = decide_rehearsal(example, {})

    assert rehearsal
    assert why.startswith("Rehearsal: ANTHROPIC_API_KEY and OPENAI_API_KEY are not set")


def test_one_missing_key_is_enough_to_rehearse(example: LoadedWorkload) -> None:
    rehearsal, why = decide_rehearsal(example, {"OPENAI_API_KEY": "o", "ANTHROPIC_API_KEY": " "})

    assert rehearsal
    assert "ANTHROPIC_API_KEY is not set" in why


def test_with_all_keys_the_demo_is_real_and_says_what_it_may_cost(example: LoadedWorkload) -> None:
    assert decide_rehearsal(example, KEYS) == (
        False,
        "Real run: all keys are set, so hosted models are asked and paid for; the budget caps it at $5.00.",
    )


def test_outside_a_checkout_the_demo_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs a checkout of the repository"):
        find_example(tmp_path)


def test_the_workload_is_copied_once_and_changes_to_it_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "a folder with spaces"

    path = _place_workload(folder)
    assert path.read_bytes() == find_example().read_bytes()
    path.write_text("# mine")

    assert _place_workload(folder).read_text() == "# mine"


@pytest.mark.parametrize("held", [True, False])
def test_a_folder_with_results_of_the_other_kind_is_refused_before_anything_runs(
    held: bool, tmp_path: Path
) -> None:
    _refuse_other_kind(str(tmp_path), not held)
    (tmp_path / "switchgear.json").write_text(json.dumps({"rehearsal": held}))

    _refuse_other_kind(str(tmp_path), held)
    with pytest.raises(OutputError, match="give another one with --dir"):
        _refuse_other_kind(str(tmp_path), not held)


def test_the_only_embed_route_need_not_be_named(example: LoadedWorkload) -> None:
    assert _embed_route(example, None).name == "embed"
    assert _embed_route(example, "embed").name == "embed"


@pytest.mark.parametrize("name", ["classify", "nonsense"])
def test_a_route_that_does_not_embed_cannot_be_searched(name: str, example: LoadedWorkload) -> None:
    with pytest.raises(
        ConfigurationError, match=f"'{name}' is no embed route: choose with --route one of: embed"
    ):
        _embed_route(example, name)


def test_a_hit_is_one_line_for_people_and_whole_for_machines() -> None:
    found = Found("d" * 100, 0.98765, {"title": "a\nb"})

    assert found.row() == {"score": "0.988", "document": "d" * 59 + "…", "title": "a b"}
    assert found.to_dict() == {"document_id": "d" * 100, "score": 0.98765, "columns": {"title": "a\nb"}}
