"""One vector space per route of an output."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas.errors import OutputError
from transforms.space_guard import guard_space, space_path
from transforms.store import LocalStore


def test_the_first_space_of_a_route_is_kept_and_the_same_one_is_welcome(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    guard_space(store, "embed", "space/1:aa", "a model in float32")
    before = store.read(space_path("embed"))
    guard_space(store, "embed", "space/1:aa", "a model in float32, loaded from elsewhere")
    assert store.read(space_path("embed")) == before


def test_another_space_is_refused_with_both_named(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    guard_space(store, "embed", "space/1:aa", "a model in float32")
    with pytest.raises(OutputError, match=r"a model in float32.*a model in bfloat16.*compute_dtype"):
        guard_space(store, "embed", "space/1:bb", "a model in bfloat16")


def test_routes_have_spaces_of_their_own(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    guard_space(store, "small", "space/1:aa", "small")
    guard_space(store, "large", "space/1:bb", "large")
    with pytest.raises(OutputError, match="'small'"):
        guard_space(store, "small", "space/1:bb", "large")


def test_of_two_spaces_that_race_for_a_route_one_is_refused(tmp_path: Path) -> None:
    def claim(name: str) -> str:
        try:
            guard_space(LocalStore(str(tmp_path)), "embed", name, name)
        except OutputError:
            return "refused"
        return name

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(claim, ["space/1:aa", "space/1:bb"] * 8))
    winners = set(outcomes) - {"refused"}
    assert len(winners) == 1
    assert outcomes.count("refused") == 8
