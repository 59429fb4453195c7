"""Workloads for tests: plain TOML data with sensible rest, loaded the way users' files are."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from schemas.load import LoadedWorkload, load_workload
from schemas.workload import Workload

HOSTED: dict[str, Any] = {
    "provider": "openai",
    "model": "gpt-5-mini",
    "price": {"input_per_million": "1", "output_per_million": "10"},
}
EMBEDDER: dict[str, Any] = {"provider": "jax", "model_path": "package:some_model"}
TOPIC_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"topic": {"type": "string"}, "score": {"type": "integer"}},
    "required": ["topic", "score"],
}
MINIMAL: dict[str, Any] = {
    "name": "demo",
    "input": {"uri": "in", "id": "id", "text": "text", "columns": ["kind", "size"]},
    "routes": [{"name": "ask", "backends": ["mini"], "prompt": "topic"}],
    "backends": {"mini": HOSTED},
    "prompts": {"topic": {"template": "About: {{ text }}"}},
    "output": {"uri": "out"},
}
"""One hosted route over documents with the columns of `tests.support.documents`."""


def data(**changes: Any) -> dict[str, Any]:
    """A minimal workload with some sections replaced; `a__b=x` sets key `b` inside section `a`."""
    result = copy.deepcopy(MINIMAL)
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = copy.deepcopy(value)
    return result


def workload(**changes: Any) -> Workload:
    """A checked workload that stands in no file."""
    return Workload.model_validate(data(**changes))


def toml(values: dict[str, Any]) -> str:
    """Plain values as TOML: tables and arrays inline, which TOML allows everywhere."""
    return "".join(f"{_key(key)} = {_inline(value)}\n" for key, value in values.items())


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_inline(v) for v in value) + "]"
    return json.dumps(value)


def _key(name: str) -> str:
    return json.dumps(name)


def write_workload(folder: Path, **changes: Any) -> Path:
    """The file of a workload in a folder."""
    path = folder / "w.toml"
    path.write_text(toml(data(**changes)), "utf-8")
    return path


def load(folder: Path, **changes: Any) -> LoadedWorkload:
    """A workload, written and loaded."""
    return load_workload(write_workload(folder, **changes))
