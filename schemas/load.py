"""Reading a workload file: TOML in, a checked `Workload` out, or every problem at once."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, replace
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from schemas.arrow import RESERVED_COLUMNS
from schemas.backends import Backend, EmbedderBackend, HostedBackend
from schemas.errors import Problem, WorkloadError
from schemas.routes import Route
from schemas.workload import Workload

_MAX_SHOWN = 80


@dataclass(frozen=True, slots=True)
class LoadedWorkload:
    """A workload and where it came from. Relative addresses in it are relative to its folder."""

    workload: Workload
    path: Path
    source: bytes
    input_uri: str
    output_uri: str

    @property
    def base_dir(self) -> Path:
        """The folder that relative paths of the workload are relative to."""
        return self.path.parent


def load_workload(
    path: Path, *, input_uri: str | None = None, output_uri: str | None = None
) -> LoadedWorkload:
    """Read and check a workload file.

    `input_uri` and `output_uri` replace those of the file; they are relative to the current
    folder, as everything on a command line is.

    Raises:
        WorkloadError: the file can't be read, is not TOML or has problems; it lists all of them.
    """
    path = Path(os.path.abspath(path))
    source = _read(path)
    try:
        raw = tomllib.loads(source.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problem = Problem("file", "not TOML", str(error), "mend the file at the place that is named")
        raise WorkloadError(str(path), [problem]) from None
    try:
        workload = Workload.model_validate(raw)
    except ValidationError as error:
        raise WorkloadError(str(path), [_problem(e, raw) for e in _roots(error.errors())]) from None
    problems = _reference_problems(workload)
    if problems:
        raise WorkloadError(str(path), problems)
    return LoadedWorkload(
        workload=_with_absolute_folder(workload, path.parent),
        path=path,
        source=source,
        input_uri=_absolute(input_uri, Path.cwd()) or str(_absolute(workload.input.uri, path.parent)),
        output_uri=_absolute(output_uri, Path.cwd()) or str(_absolute(workload.output.uri, path.parent)),
    )


def _with_absolute_folder(workload: Workload, base: Path) -> Workload:
    folder = _absolute(workload.budget.cost_centre_folder, base)
    budget = workload.budget.model_copy(update={"cost_centre_folder": folder})
    return workload.model_copy(update={"budget": budget})


def with_budget(loaded: LoadedWorkload, amount: Decimal | None) -> LoadedWorkload:
    """The workload with another cap, which someone has approved for a run; None leaves it as it is."""
    if amount is None:
        return loaded
    budget = loaded.workload.budget.model_copy(update={"amount": amount})
    return replace(loaded, workload=loaded.workload.model_copy(update={"budget": budget}))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        problem = Problem("file", str(path), reason, "give the path of a workload file (TOML)")
        raise WorkloadError(str(path), [problem]) from None


def _absolute(uri: str | None, base: Path) -> str | None:
    if uri is None or "://" in uri:
        return uri
    return os.path.normpath(base / Path(uri).expanduser())


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


def _reference_problems(workload: Workload) -> list[Problem]:
    """What single values can't show: names that point nowhere, routes that don't add up."""
    problems = _duplicate_problems(workload)
    for index, route in enumerate(workload.routes):
        problems += _route_problems(workload, route, f"routes[{index}]")
    route_names = [r.name for r in workload.routes]
    for index, rule in enumerate(workload.policy.reject):
        for name in set(rule.routes) - set(route_names):
            problems.append(_unknown(f"policy.reject[{index}].routes", name, route_names))
    for name in sorted(set(workload.budget.routes) - set(route_names)):
        problems.append(_unknown("budget.routes", name, route_names))
    for index, name in enumerate(workload.review.routes):
        hosted = [r.name for r in workload.routes if r.name in route_names and _is_hosted(workload, r)]
        if name not in hosted:
            problems.append(_unknown(f"review.routes[{index}]", name, hosted))
    if workload.review.soft_budget and workload.budget.soft is None:
        hint = "give `budget.soft_amount` or `budget.soft_fraction`"
        problems.append(Problem("review.soft_budget", "true", "there is no soft budget to stop at", hint))
    for name in set(workload.policy.allowed_providers) - set(route_names):
        problems.append(_unknown("policy.allowed_providers", name, route_names))
    return problems + _output_problems(workload)


def _duplicate_problems(workload: Workload) -> list[Problem]:
    names = [r.name for r in workload.routes]
    return [
        Problem("routes", repr(name), "route names must be unique", "rename one of them")
        for name in sorted({n for n in names if names.count(n) > 1})
    ]


def _unknown(where: str, value: str, known: list[str]) -> Problem:
    return Problem(where, repr(value), f"must be one of: {', '.join(sorted(known)) or '(none)'}")


def _route_problems(workload: Workload, route: Route, where: str) -> list[Problem]:
    members = _members(route, where)
    unknown = [(path, name) for path, name in members if name not in workload.backends]
    if unknown:
        return [_unknown(path, name, list(workload.backends)) for path, name in unknown]
    problems = _policy_problems(workload, route, members)
    names = [name for _, name in members]
    kinds = {_kind(workload.backends[n]) for n in names}
    if len(kinds) == 2:
        hint = "use two"
        problems.append(
            Problem(f"{where}.backends", repr(names), "hosted models and embedders can't share a route", hint)
        )
    elif kinds == {"embeddings"}:
        problems += _embed_route_problems(route, where)
    elif route.prompt is None:
        problems.append(Problem(f"{where}.prompt", "(missing)", "a hosted route needs a prompt", "add one"))
    if route.prompt is not None and route.prompt not in workload.prompts:
        problems.append(_unknown(f"{where}.prompt", route.prompt, list(workload.prompts)))
    return problems


def _kind(backend: Backend) -> str:
    """What comes of a route with this backend."""
    return "embeddings" if isinstance(backend, EmbedderBackend) else backend.operation


def _members(route: Route, where: str) -> list[tuple[str, str]]:
    """Key path and name of every backend that the route names."""
    chains = (
        [(f"{where}.split[{i}]", arm.backends) for i, arm in enumerate(route.split)]
        if route.split
        else [(where, route.backends)]
    )
    return [(f"{path}.backends[{i}]", name) for path, names in chains for i, name in enumerate(names)]


def _embed_route_problems(route: Route, where: str) -> list[Problem]:
    problems = []
    if route.prompt is not None:
        problems.append(Problem(f"{where}.prompt", repr(route.prompt), "an embed route takes no prompt"))
    names = {name for chain in route.chains for name in chain.backends}
    if len(names) > 1:
        hint = "another model's vectors are another space: use a route of its own"
        problems.append(Problem(f"{where}.backends", repr(sorted(names)), "one embedder per route", hint))
    return problems


def _policy_problems(workload: Workload, route: Route, members: list[tuple[str, str]]) -> list[Problem]:
    allowed = workload.policy.allowed_providers.get(route.name)
    if allowed is None:
        return []
    return [
        Problem(
            path,
            repr(name),
            f"its provider {workload.backends[name].provider!r} is not in policy.allowed_providers"
            f".{route.name} ({', '.join(allowed)})",
            "take the backend out of the chain, or allow its provider",
        )
        for path, name in members
        if workload.backends[name].provider not in allowed
    ]


def _is_hosted(workload: Workload, route: Route) -> bool:
    backends = [workload.backends.get(name) for chain in route.chains for name in chain.backends]
    return not any(isinstance(backend, EmbedderBackend) for backend in backends)


def _output_problems(workload: Workload) -> list[Problem]:
    problems = []
    columns = workload.output.columns
    for column in dict.fromkeys(c for c in columns if columns.count(c) > 1):
        problems.append(Problem("output.columns", repr(column), "stands more than once", "name it once"))
    for column in dict.fromkeys(columns):
        if column in RESERVED_COLUMNS:
            hint = "rename the column in the input"
            problems.append(Problem("output.columns", repr(column), "is a column of the results", hint))
        elif column not in workload.input.needed_columns:
            problems.append(_unknown("output.columns", column, list(workload.input.needed_columns)))
    return problems
