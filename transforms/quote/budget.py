"""Will it fit? The quote against what each cap of the budget has left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from schemas.workload import Workload
from transforms.call.caps import cap_specs
from transforms.quote.values import BudgetQuote, CapQuote, Fits, Price, RouteQuote
from transforms.spend import Spending

_ZERO = Decimal(0)
_BY_TROUBLE: tuple[Fits, ...] = ("yes", "probably", "unknown", "no")


@dataclass(frozen=True, slots=True)
class _Need:
    """What the hosted routes under a cap would take of it, in its unit; None is unknown."""

    expected: Decimal | None
    high: Decimal | None
    worst: Decimal | None


def add_prices(prices: Sequence[Price]) -> Price:
    """The sum of some prices, bound by bound; what is unknown in one of them is unknown in the sum."""
    return Price(
        low=_sum([p.low for p in prices]),
        expected=_sum([p.expected for p in prices]),
        high=_sum([p.high for p in prices]),
        worst=_sum([p.worst for p in prices]),
        sampling_low=_sum([p.sampling_low for p in prices]),
        sampling_high=_sum([p.sampling_high for p in prices]),
    )


def _sum(amounts: Sequence[Decimal | None]) -> Decimal | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known, _ZERO) if len(known) == len(amounts) else None


def judge_budget(workload: Workload, routes: Sequence[RouteQuote], spending: Spending) -> BudgetQuote:
    """Whether the hosted routes fit under every cap; the sentence is of the cap that is hardest to keep.

    Device time of embedders is not held by the budget. A cost centre's cap depends on other workloads'
    runs, so it is named and not judged.
    """
    caps = tuple(_caps(workload, routes, spending))
    if not caps:
        worst = add_prices([route.price for route in routes]).worst
        price = "unknown" if worst is None else f"{_text(worst, 'amount')} at the very worst"
        return BudgetQuote("no cap", f"No budget is set; the price is {price}{_centre(workload)}.")
    hardest = max(caps, key=lambda cap: _BY_TROUBLE.index(cap.fits))
    return BudgetQuote(hardest.fits, f"{hardest.sentence}{_centre(workload)}.", caps)


def _caps(workload: Workload, routes: Sequence[RouteQuote], spending: Spending) -> Iterator[CapQuote]:
    if workload.budget.amount is not None:
        yield _judge(workload, "", "amount", workload.budget.amount, spending.amount, _money(routes))
    for spec in cap_specs(workload):
        under = [route for route in routes if spec.route in (None, route.route)]
        need = _money(under) if spec.unit == "amount" else _tokens(under)
        yield _judge(workload, spec.route or "", spec.unit, spec.limit, spending.of(spec), need)


def _money(routes: Sequence[RouteQuote]) -> _Need:
    price = add_prices([route.price for route in routes])
    return _Need(price.expected, price.high, price.worst)


def _tokens(routes: Sequence[RouteQuote]) -> _Need:
    """Input and output tokens together. The worst case has no repair in it."""

    def total(values: Sequence[int | None]) -> Decimal | None:
        return _sum([None if value is None else Decimal(value) for value in values])

    ranges = [each for route in routes for each in (route.input_tokens, route.output_tokens)]
    bounds = [each for route in routes for each in (route.input_bound, route.output_tokens.high)]
    return _Need(total([r.expected for r in ranges]), total([r.high for r in ranges]), total(bounds))


def _judge(
    workload: Workload,
    route: str,
    unit: Literal["amount", "tokens"],
    limit: Decimal,
    spent: Decimal,
    need: _Need,
) -> CapQuote:
    left = max(_ZERO, limit - spent)
    subject = f"Route {route!r}" if route else "It"
    have = f"{_text(left, unit)} {'of the cap ' if spent else ''}are left"
    fits, words = _verdict(need, left, unit, workload.budget.on_unknown_price == "refuse")
    return CapQuote(route, unit, limit, spent, left, fits, f"{subject} {words.format(have=have)}")


_AT_THE_CAP = "the run would stop at the cap, deliver what it paid for, and go on when the cap is raised"


def _verdict(
    need: _Need, left: Decimal, unit: Literal["amount", "tokens"], refuses: bool
) -> tuple[Fits, str]:
    if need.expected is None:
        what = "refuses documents without one" if refuses else "can't hold what has none"
        return "unknown", f"may or may not fit: a price is missing, and the budget {what}; {{have}}"
    if need.worst is not None and need.worst <= left:
        return "yes", f"fits: {_text(need.worst, unit)} at the very worst, and {{have}}"
    if need.high is not None and need.high <= left:
        return "yes", f"fits: likely {_text(need.high, unit)} at most, and {{have}}"
    expected = _text(need.expected, unit)
    if need.expected <= left:
        most = "unknown" if need.high is None else _text(need.high, unit)
        return "probably", f"probably fits: {expected} expected, likely {most} at most; {{have}}"
    return "no", f"does not fit: {expected} expected, and only {{have}}; {_AT_THE_CAP}"


def _centre(workload: Workload) -> str:
    name = workload.budget.cost_centre
    return f"; what cost centre {name!r} has left this month is not looked at" if name else ""


def _text(value: Decimal, unit: Literal["amount", "tokens"]) -> str:
    """A figure for a sentence; tokens whole."""
    return f"{value:,.0f} tokens" if unit == "tokens" else money_words(value)


def money_words(value: Decimal) -> str:
    """An amount for a sentence: with cents from a dollar up, else three digits."""
    if value >= 1 or value == 0:
        return f"{value:,.2f} USD"
    return f"{Decimal(f'{value:.3g}'):f} USD"
