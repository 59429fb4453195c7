"""What somebody has decided for one run, applied to its workload: cap, skipped routes, other backend.

A decision holds for the run it was made for. It is no other version of the workload: the answers of other
runs stand beside its own, and each row's lineage names the backend that answered it.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from schemas.backends import EmbedderBackend
from schemas.budget import RouteBudget
from schemas.errors import Problem, WorkloadError
from schemas.load import LoadedWorkload, with_budget
from schemas.routes import Route
from schemas.run import RunContext
from schemas.workload import Workload


def with_changes(loaded: LoadedWorkload, run: RunContext) -> LoadedWorkload:
    """The workload as this run works with it; the one that was loaded where nothing was decided.

    A skipped route gets a cap of no tokens: its documents are failures that a later run tries again.

    Raises:
        WorkloadError: a route or backend that isn't there or can't be used so.
    """
    loaded = with_budget(loaded, None if run.budget_amount is None else Decimal(run.budget_amount))
    if not run.skip_routes and not run.reroute:
        return loaded
    workload = loaded.workload
    problems = [*_skip_problems(workload, run), *_reroute_problems(workload, run)]
    if problems:
        raise WorkloadError(str(loaded.path), problems)
    return replace(loaded, workload=_changed(workload, run))


def hosted_chat_routes(workload: Workload) -> list[str]:
    """Names of the routes whose documents hosted models answer."""
    return [r.name for r in workload.routes if not workload.is_embed_route(r)]


def _changed(workload: Workload, run: RunContext) -> Workload:
    caps = dict(workload.budget.routes)
    for name in run.skip_routes:
        caps[name] = caps.get(name, RouteBudget()).model_copy(update={"tokens": 0})
    routes = [_rerouted(route, run.reroute.get(route.name)) for route in workload.routes]
    budget = workload.budget.model_copy(update={"routes": caps})
    return workload.model_copy(update={"budget": budget, "routes": tuple(routes)})


def _rerouted(route: Route, backend: str | None) -> Route:
    return route if backend is None else route.model_copy(update={"backends": (backend,), "split": ()})


def _skip_problems(workload: Workload, run: RunContext) -> list[Problem]:
    allowed = [r.name for r in workload.routes if not workload.is_local_route(r)]
    return [
        Problem("skipped route", repr(name), f"must be one of: {', '.join(allowed) or '(none is hosted)'}")
        for name in run.skip_routes
        if name not in allowed
    ]


def _reroute_problems(workload: Workload, run: RunContext) -> list[Problem]:
    routes = hosted_chat_routes(workload)
    problems = []
    for name, backend in run.reroute.items():
        if name not in routes:
            allowed = ", ".join(routes) or "(none takes another model)"
            problems.append(Problem("route for another backend", repr(name), f"must be one of: {allowed}"))
        elif problem := _backend_problem(workload, name, backend):
            problems.append(problem)
    return problems


def _backend_problem(workload: Workload, route: str, name: str) -> Problem | None:
    usable = [n for n, b in workload.hosted_backends().items() if b.operation == "chat"]
    backend = workload.backends.get(name)
    if backend is None or isinstance(backend, EmbedderBackend) or name not in usable:
        return Problem("other backend", repr(name), f"must be one of: {', '.join(usable)}")
    allowed = workload.policy.allowed_providers.get(route)
    if allowed is not None and backend.provider not in allowed:
        return Problem(
            "other backend",
            repr(name),
            f"its provider {backend.provider!r} is not in policy.allowed_providers.{route} "
            f"({', '.join(allowed)})",
            "take a backend of an allowed provider, or change the policy",
        )
    return None
