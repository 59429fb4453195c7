"""Will it fit? The quote against what the budget has left."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from schemas.workload import Workload
from transforms.quote.values import BudgetQuote, Fits, Price, RouteQuote


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
    return sum(known, Decimal(0)) if len(known) == len(amounts) else None


def judge_budget(workload: Workload, routes: Sequence[RouteQuote], spent: Decimal) -> BudgetQuote:
    """Whether the hosted routes fit into the cap; device time of embedders is not held by the budget."""
    cap = workload.budget.amount
    price = add_prices([route.price for route in routes])
    if cap is None:
        worst = "unknown" if price.worst is None else f"{_usd(price.worst)} at the very worst"
        return BudgetQuote("no cap", f"No budget is set; the price is {worst}.", spent=spent)
    left = max(Decimal(0), cap - spent)
    fits, sentence = _verdict(price, left, workload)
    return BudgetQuote(fits, sentence, cap, spent, left)


def _verdict(price: Price, left: Decimal, workload: Workload) -> tuple[Fits, str]:
    have = f"{_usd(left)} {'are' if left == workload.budget.amount else 'of the budget are'} left"
    if price.expected is None:
        refused = workload.budget.on_unknown_price == "refuse"
        what = "refuses documents without a price" if refused else "can't hold what has no price"
        return "unknown", f"Whether it fits is unknown: a price is missing, and the budget {what}."
    if price.worst is not None and price.worst <= left:
        return "yes", f"It fits: {_usd(price.worst)} at the very worst, and {have}."
    if price.high is not None and price.high <= left:
        return "yes", f"It fits: likely {_usd(price.high)} at most, and {have}."
    if price.expected <= left:
        most = "unknown" if price.high is None else _usd(price.high)
        return (
            "probably",
            f"It probably fits: {_usd(price.expected)} expected, likely {most} at most; {have}.",
        )
    advice = "the run would stop at the cap, deliver what it paid for, and go on when the cap is raised"
    return "no", f"It does not fit: {_usd(price.expected)} expected, and only {have}; {advice}."


def _usd(amount: Decimal) -> str:
    """An amount for a sentence: cents from a dollar up, else three significant digits."""
    if amount >= 1 or amount == 0:
        return f"{amount:,.2f} USD"
    return f"{Decimal(f'{amount:.3g}'):f} USD"
