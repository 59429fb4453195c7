"""What single values of a workload can't show: names that point nowhere, routes that don't add up."""

from __future__ import annotations

from schemas.arrow import RESERVED_COLUMNS
from schemas.backends import Backend, EmbedderBackend
from schemas.errors import Problem
from schemas.routes import Route
from schemas.workload import Workload


def reference_problems(workload: Workload) -> list[Problem]:
    """Everything in a workload that does not fit something else in it."""
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
