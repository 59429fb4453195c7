from pathlib import Path
from typing import Any

import pytest

from flows import searching
from schemas.errors import ConfigurationError
from tests.support.workloads import EMBEDDER, load

FAR = {"provider": "openai", "model": "m", "operation": "embeddings", "dimensions": 8}
ROUTES = [{"name": "near", "backends": ["emb"]}, {"name": "far", "backends": ["far"]}]


def chosen(folder: Path, name: str | None, routes: list[dict[str, Any]] = ROUTES) -> str:
    loaded = load(folder, backends={"emb": EMBEDDER, "far": FAR}, routes=routes, prompts={}, match="all")
    return searching._embed_route(loaded, name).name


def test_the_one_route_whose_model_runs_here_is_searched_when_none_is_named(tmp_path: Path) -> None:
    assert chosen(tmp_path, None) == "near"
    assert chosen(tmp_path, None, ROUTES[1:]) == "far"
    assert chosen(tmp_path, "far") == "far"
    with pytest.raises(ConfigurationError, match="choose with --route one of: near, far"):
        chosen(tmp_path, "other")


def test_vectors_of_a_hosted_model_are_not_searched_and_why(tmp_path: Path) -> None:
    loaded = load(tmp_path, backends={"far": FAR}, routes=ROUTES[1:], prompts={})
    with pytest.raises(ConfigurationError, match="those of openai m: a query would"):
        searching.local_backend(loaded, loaded.workload.routes[0])
