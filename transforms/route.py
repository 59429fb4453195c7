"""Deciding, for every row of a batch, which routes it takes, through which backends, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from schemas.failures import FailureClass
from schemas.ids import stable_fraction
from schemas.outcomes import Assignment, Outcome
from schemas.routes import Route, Split
from schemas.workload import Workload
from transforms.expressions import Condition, compile_condition, evaluate
from transforms.intake import Intake

PASSED = "passed"


@dataclass(frozen=True, slots=True)
class Rules:
    """A workload's expressions, compiled: once per worker, used for every batch."""

    workload: Workload
    row_filter: Condition | None
    routes: tuple[Condition, ...]
    rejections: tuple[Condition, ...]


def compile_rules(workload: Workload) -> Rules:
    """Compile the workload's expressions.

    Raises:
        ExpressionError: one of them does not parse.
    """
    sql = workload.input.filter
    return Rules(
        workload,
        compile_condition("input.filter", sql) if sql else None,
        tuple(compile_condition(f"routes[{i}].when", r.when) for i, r in enumerate(workload.routes)),
        tuple(
            compile_condition(f"policy.reject[{i}].when", r.when)
            for i, r in enumerate(workload.policy.reject)
        ),
    )


@dataclass(frozen=True, slots=True)
class Decisions:
    """What is to be done for a batch's rows, and what can't be.

    `todo` are the assignments by position in the batch's table; `done` are the failures that are
    decided already: nothing of them leaves the process.
    """

    todo: list[tuple[int, Assignment]]
    done: list[Outcome]


def choose_routes(rules: Rules, intake: Intake, first_row: int) -> Decisions:
    """Route a batch: faults first, then the routes' conditions, then the policy.

    The same row of the same workload is always routed the same way, whatever its neighbours are.
    """
    conditions = [*rules.routes, *rules.rejections]
    evaluation = evaluate(conditions, intake.table)
    masks, count = evaluation.masks, len(rules.routes)
    faults = intake.faults | {
        p: (FailureClass.EXPRESSION_ERROR, message)
        for p, message in evaluation.errors.items()
        if p not in intake.faults
    }
    decisions = Decisions([], [])
    routes, rejections = rules.workload.routes, rules.workload.policy.reject
    takes_all = rules.workload.match == "all"
    # Decisions of most batches are the same for all rows: nothing is made anew for each.
    chains = {route.name: None if route.split else (route.backends, route.when) for route in routes}
    for position, document_id in enumerate(intake.ids):
        if position in intake.skipped:
            continue
        row = first_row + position
        if position in faults:
            decisions.done.append(_failed(Assignment(row, "", "", (), document_id), *faults[position]))
            continue
        assert document_id is not None  # a row without an id is a fault
        matched = [route for route, mask in zip(routes, masks, strict=False) if mask[position]]
        if not matched:
            message = "no route's `when` is true for this row"
            nowhere = Assignment(row, "", "", (), document_id)
            decisions.done.append(_failed(nowhere, FailureClass.NO_ROUTE, message))
        rejected = [r for r, mask in zip(rejections, masks[count:], strict=True) if mask[position]]
        for route in matched if takes_all else matched[:1]:
            chain, rule = chains[route.name] or _split_chain(route, document_id)
            assignment = Assignment(row, route.name, rule, chain, document_id)
            verdict = next((r for r in rejected if not r.routes or route.name in r.routes), None)
            if verdict is None:
                decisions.todo.append((position, assignment))
            else:
                message = f"policy rule {verdict.name!r}: {verdict.reason}"
                decisions.done.append(_failed(assignment, FailureClass.POLICY_REJECTED, message))
    return decisions


def _split_chain(route: Route, document_id: str) -> tuple[tuple[str, ...], str]:
    arm, label = choose_arm(route, document_id)
    return arm.backends, f"{route.when}{label}"


def choose_arm(route: Route, document_id: str) -> tuple[Split, str]:
    """The arm of the route's split that a document takes, by a stable hash of its id, with a label.

    Each arm gets its weight's share of the ids; which ids does not change between runs.
    """
    arms = route.chains
    if len(arms) == 1:
        return arms[0], ""
    total = sum(arm.weight for arm in arms)
    mark = stable_fraction(document_id, route.name) * total
    for index, end in enumerate(accumulate(arm.weight for arm in arms)):
        if mark < end:
            return arms[index], f" [split {index + 1} of {len(arms)}]"
    raise AssertionError("a fraction below 1 always falls into an arm")


def _failed(assignment: Assignment, failure: FailureClass, message: str) -> Outcome:
    return Outcome(assignment=assignment, failure=failure, message=message)


def only_pairs(decisions: Decisions, pairs: Iterable[tuple[int, str]]) -> Decisions:
    """The decisions for some (row, route) pairs alone: those that a further attempt works on."""
    wanted = set(pairs)
    return Decisions(
        [(p, a) for p, a in decisions.todo if (a.row, a.route) in wanted],
        [o for o in decisions.done if (o.assignment.row, o.assignment.route) in wanted],
    )
