"""Decisions for one run: what they change in the workload, and what can't be decided so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schemas.changes import with_changes
from schemas.errors import WorkloadError
from schemas.load import LoadedWorkload
from schemas.run import RunContext
from tests.support import workloads
from tests.support.workloads import EMBEDDER, HOSTED
from transforms.call.caps import cap_specs

TWO_ROUTES: dict[str, Any] = {
    "routes": [
        {"name": "ask", "backends": ["mini"], "prompt": "topic"},
        {"name": "embed", "backends": ["minilm"]},
    ],
    "backends": {"mini": HOSTED, "other": {**HOSTED, "provider": "anthropic"}, "minilm": EMBEDDER},
}


def loaded(folder: Path, **changes: Any) -> LoadedWorkload:
    return workloads.load(folder, **{**TWO_ROUTES, **changes})


def context(**changes: Any) -> RunContext:
    return RunContext("r", "/out", "w" * 64, False, 8, **changes)


def test_without_decisions_it_is_the_very_same_workload(tmp_path: Path) -> None:
    made = loaded(tmp_path)

    assert with_changes(made, context()) is made


def test_a_skipped_route_may_take_no_tokens_and_other_caps_stay(tmp_path: Path) -> None:
    made = loaded(tmp_path, budget={"routes": {"ask": {"amount": "2"}}})

    changed = with_changes(made, context(skip_routes=("ask",))).workload

    caps = {spec.name: spec.limit for spec in cap_specs(changed)}
    assert caps == {"route:ask:amount": 2, "route:ask:tokens": 0}
    assert made.workload.budget.routes["ask"].tokens is None


def test_another_backend_takes_the_place_of_the_whole_chain(tmp_path: Path) -> None:
    changed = with_changes(loaded(tmp_path), context(reroute={"ask": "other"})).workload

    assert changed.route("ask").chains[0].backends == ("other",)
    assert changed.route("embed").backends == ("minilm",)


def test_an_approved_cap_is_the_budget_of_the_run(tmp_path: Path) -> None:
    assert str(with_changes(loaded(tmp_path), context(budget_amount="7")).workload.budget.amount) == "7"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"skip_routes": ("nowhere",)}, "'nowhere': must be one of: ask"),
        ({"skip_routes": ("embed",)}, "'embed': must be one of: ask"),
        ({"reroute": {"embed": "other"}}, "'embed': must be one of: ask"),
        ({"reroute": {"ask": "nobody"}}, "'nobody': must be one of: mini, other"),
        ({"reroute": {"ask": "minilm"}}, "'minilm': must be one of: mini, other"),
    ],
)
def test_what_is_not_there_or_can_not_be_is_named_with_what_is_allowed(
    changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(WorkloadError, match=what):
        with_changes(loaded(tmp_path), context(**changes))


def test_no_decision_sends_documents_past_the_policy(tmp_path: Path) -> None:
    made = loaded(tmp_path, policy={"allowed_providers": {"ask": ["openai"]}})

    with pytest.raises(WorkloadError, match=r"'anthropic' is not in policy\.allowed_providers\.ask"):
        with_changes(made, context(reroute={"ask": "other"}))
