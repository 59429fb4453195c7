"""What pydantic refuses in a workload file, in the words of the file: key path, value, what is allowed."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from schemas.backends import EmbedderBackend, HostedBackend
from schemas.errors import Problem
from schemas.workload import Workload

_MAX_SHOWN = 80


def refused_values(error: ValidationError, raw: dict[str, Any]) -> list[Problem]:
    """Every problem that pydantic found in `raw`, the file as it was parsed."""
    return [_problem(found, raw) for found in _roots(error.errors())]


def _roots(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without what only follows: an array whose items were refused is not "too short" besides."""
    places = [error["loc"] for error in errors]
    return [e for e in errors if e["type"] != "too_short" or not any(_is_inside(p, e["loc"]) for p in places)]


def _is_inside(place: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def _problem(error: ErrorDetails, raw: dict[str, Any]) -> Problem:
    """What pydantic found, as key path, value, what is allowed and what to do next."""
    location = _location(error["loc"])
    where, kind = _key_path(location), error["type"]
    if kind == "extra_forbidden":
        shown = "(not shown)" if _may_be_secret(location[-1]) else _shown(error["input"])
        return Problem(where, shown, "unknown key", _did_you_mean(location, raw))
    if kind == "missing":
        return Problem(where, "(missing)", "this key is required", "add it")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _provider_problem(where, error["input"])
    allowed = _IN_TOML_WORDS.get(kind) or error["msg"].removeprefix("Value error, ")
    return Problem(where, _shown(error["input"]), allowed[:1].lower() + allowed[1:])


def _may_be_secret(key: int | str) -> bool:
    """Whether what stands under an unknown key may be a secret, which no message may repeat."""
    return any(word in str(key).lower() for word in ("key", "secret", "token", "password", "credential"))


def _location(location: tuple[int | str, ...]) -> list[int | str]:
    """Pydantic's location without the arm of the union that it chose, which is no key of the file."""
    parts = list(location)
    if len(parts) > 2 and parts[0] == "backends" and parts[2] in _PROVIDERS:
        del parts[2]
    return parts


def _provider_problem(where: str, backend: Any) -> Problem:
    given = backend.get("provider") if isinstance(backend, dict) else None
    shown = "(missing)" if given is None else _shown(given)
    return Problem(f"{where}.provider", shown, f"must be one of: {', '.join(_PROVIDERS)}")


_PROVIDERS = ("anthropic", "openai", "gemini", "jax")
_IN_TOML_WORDS = {
    "tuple_type": "must be an array",
    "too_short": "needs at least one item",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
}


def _key_path(location: list[int | str]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]":
            text += f".{part}" if text else part
    return text or "file"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _did_you_mean(location: list[int | str], raw: dict[str, Any]) -> str:
    known, given = _known_keys(location, raw), str(location[-1])
    swapped = [key for key in known if sorted(key) == sorted(given)]  # letters in another order
    close = swapped or get_close_matches(given, known, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"Known keys: {', '.join(known)}"


def _known_keys(location: list[int | str], raw: dict[str, Any]) -> list[str]:
    """The keys that the section at `location` knows, found by walking the models' annotations."""
    annotation: Any = Workload
    value: Any = raw
    for part in location[:-1]:
        annotation = _under(annotation, value, part)
        value = value[part]
    return sorted(_section_of(annotation, value).model_fields)


def _under(annotation: Any, value: Any, part: int | str) -> Any:
    """The annotation of what stands under a key or an index of a section."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    return _section_of(annotation, value).model_fields[part].annotation


def _section_of(annotation: Any, value: Any) -> Any:
    """The model inside an annotation such as `TokenPrice | None` or the union of backends."""
    models = _models_in(annotation)
    if len(models) == 1:
        return models[0]
    return EmbedderBackend if value.get("provider") == "jax" else HostedBackend


def _models_in(annotation: Any) -> list[Any]:
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
