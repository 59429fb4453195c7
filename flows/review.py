"""A person's approval: when a run needs one, the form that asks for it, and what the answer changes.

A run that waits is suspended: its process ends, its output is unlocked, no worker is held and nothing is
paid. The answer starts it again, and it plans anew, so it goes on where it stood. The key of a question is
what Prefect knows its answer by: an answered question is not asked again when the run is retried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment
from pydantic import ConfigDict, Field

from flows.orders import Approval, Order
from flows.parameters import Usd
from flows.planning import PlannedRun
from flows.quote_tables import time_sentence
from flows.words import count, usd
from schemas.errors import ReviewNeededError
from schemas.run import Manifest
from transforms.quote.values import Quote

_MOST_QUESTIONS = 20


@dataclass(frozen=True, slots=True)
class Need:
    """Why a run waits: before it sends anything (`quote`), or at its soft budget (`soft`)."""

    kind: Literal["quote", "soft"]
    what: str
    facts: tuple[str, ...]
    suggested: Decimal | None
    routes: tuple[str, ...]


class ReviewForm(RunInput):
    """Whether this run may go on, and who says so."""

    model_config = ConfigDict(extra="forbid")

    decision: Literal["approve", "skip routes", "stop"] = Field(
        title="Decision",
        description="approve: go on up to the amount; skip routes: go on without them; stop: end the run",
    )
    up_to: Usd | None = Field(
        None,
        title="Approve up to (USD)",
        description="for the whole output, with what it has cost already; empty: as the workload says",
    )
    skip: list[str] = Field(
        default_factory=list, title="Skip routes", description="their documents stay due for a later run"
    )
    by: str = Field(min_length=1, max_length=200, title="Your name", description="stands in the manifest")
    reason: str = Field(min_length=1, max_length=2000, title="Reason", description="stands in the manifest")


@dataclass(frozen=True, slots=True)
class Decided:
    """The answer: the order as it now is (None: the run is to stop), and what the manifest says of it."""

    order: Order | None
    approval: Approval


Ask = Callable[[str, str, Need, float], ReviewForm]


def need_before(run: PlannedRun, order: Order) -> Need | None:
    """Why the run may not send anything yet; None if it may."""
    review = run.loaded.workload.review
    if order.is_approved or run.context.rehearsal or "quote" in order.reviewed or not run.plan.refs:
        return None
    whys = [why for why in (_dear(run.quote, review.quote_above), _named(run, review.routes)) if why]
    return _need("quote", " and ".join(whys), run, order) if whys else None


def need_after(run: PlannedRun, order: Order, manifest: Manifest) -> Need | None:
    """Why the run waits at its soft budget; None if it has not come to it, or may pass it."""
    budget = run.loaded.workload.budget
    if not order.asks_at_soft_budget(run.loaded.workload) or manifest.reason_class != "budget":
        return None
    soft = usd(run.context.budget_amount)
    return _need("soft", f"the soft budget of {soft} is used up", run, order, manifest, budget.amount)


def has_form() -> bool:
    """Whether this flow run can ask with a form: it was started from a deployment."""
    return bool(deployment.id)


def ask_for(need: Need, order: Order, wait_h: float, ask: Ask | None = None, about: str = "") -> Decided:
    """Ask a person, which ends this process unless the question is answered already; the decision.

    An answer that can't be followed is asked for again, with what is wrong with it. `about` tells
    questions apart where one flow run asks for several runs.

    Raises:
        ReviewNeededError: the run was not started from a deployment, so it has no form.
    """
    if ask is None and not has_form():
        raise ReviewNeededError(
            f"This run needs an approval: {need.what}. {' '.join(need.facts)} Nothing more was sent. Approve "
            'it with `switchgear run WORKLOAD --budget USD --approved-by NAME --because "REASON"`, or start '
            "it from the deployment `enrich` in Prefect's UI, which asks with a form"
        )
    asking, wrong = ask or _ask_by_suspending, ""
    for number in range(1, _MOST_QUESTIONS):
        form = asking(f"{about}{'-' if about else ''}{need.kind}-{number}", wrong, need, wait_h)
        wrong = _mistake(form, need)
        if not wrong:
            return _decide(form, need, order)
    raise ReviewNeededError(f"{need.what}, and no answer could be followed. Start the run again")


def describe(need: Need, wrong: str = "") -> str:
    """The text above the form."""
    lines = [f"**This run waits for you: {need.what}.**", *need.facts]
    lines += [f"Routes that can be skipped: {', '.join(need.routes)}."] if need.routes else []
    lines += ["While it waits no worker is held and nothing is paid."]
    return "\n\n".join([f"**{wrong}**", *lines] if wrong else lines)


def _ask_by_suspending(key: str, wrong: str, need: Need, wait_h: float) -> ReviewForm:
    initial: dict[str, Any] = {"description": describe(need, wrong)}
    if need.suggested is not None:
        initial["up_to"] = need.suggested
    form = ReviewForm.with_initial_data(**initial)
    return suspend_flow_run(wait_for_input=form, key=key, timeout=round(wait_h * 3600))


def _mistake(form: ReviewForm, need: Need) -> str:
    unknown = [name for name in form.skip if name not in need.routes]
    if unknown:
        return f"There is no route {unknown[0]!r} to skip. Choose from: {', '.join(need.routes)}"
    if form.decision == "skip routes" and not form.skip:
        return "Name the routes to skip"
    if form.decision == "approve" and form.skip:
        return "To skip routes, choose the decision `skip routes`"
    return ""


def _decide(form: ReviewForm, need: Need, order: Order) -> Decided:
    up_to = form.up_to
    if form.decision == "stop":
        decision, cap = "stop", ""
    else:
        decision = "approve" if not form.skip else f"skip {', '.join(form.skip)}"
        cap = "" if up_to is None else f"{up_to.normalize():f}"
    at = datetime.now(UTC).isoformat(timespec="seconds")
    approval = Approval(decision, need.what, form.by, form.reason, at, cap)
    if form.decision == "stop":
        return Decided(None, approval)
    return Decided(order.decided(need.kind, approval, up_to, tuple(form.skip)), approval)


def _dear(quote: Quote | None, limit: Decimal | None) -> str:
    if limit is None:
        return ""
    high = None if quote is None else quote.total.high
    if high is None:
        return f"its price is not known, and a quote above {usd(limit)} needs an approval"
    return f"its quote of likely up to {usd(high)} is above {usd(limit)}" if high > limit else ""


def _named(run: PlannedRun, names: tuple[str, ...]) -> str:
    quoted = () if run.quote is None else run.quote.routes
    sent = [r.route for r in quoted if r.route in names and r.documents.high != 0]
    return f"the workload asks for an approval of what goes to {', '.join(sent)}" if sent else ""


def _need(
    kind: Literal["quote", "soft"],
    what: str,
    run: PlannedRun,
    order: Order,
    manifest: Manifest | None = None,
    cap: Decimal | None = None,
) -> Need:
    workload = run.loaded.workload
    facts = [_due_fact(run)] if manifest is None else [_left_fact(manifest)]
    skippable = tuple(
        r.name for r in workload.routes if not workload.is_local_route(r) and r.name not in order.skip_routes
    )
    return Need(kind, what, tuple(facts), cap if cap is not None else workload.budget.amount, skippable)


def _due_fact(run: PlannedRun) -> str:
    due = f"{count(run.plan.rows_due, 'document')} of {run.plan.rows_total:,} are due."
    if run.quote is None or run.quote.total.expected is None:
        return f"{due} Their price is not known."
    price = run.quote.total
    return (
        f"{due} Quote: {usd(price.expected)}, likely {usd(price.low)} to {usd(price.high)}, at most "
        f"{usd(price.worst)}. {run.quote.budget.sentence} {time_sentence(run.quote)}".rstrip()
    )


def _left_fact(manifest: Manifest) -> str:
    left = sum(g.count for g in manifest.failure_groups if g.error_class == "budget_exhausted")
    return f"Spent so far: {usd(manifest.amount)}. {count(left, 'document')} are left."
