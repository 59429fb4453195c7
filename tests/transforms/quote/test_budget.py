"""Will it fit? Yes, probably, no, unknown: each in one sentence."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.workloads import workload
from transforms.quote.budget import add_prices, judge_budget
from transforms.quote.values import BudgetQuote, Price, Range, RouteQuote
from transforms.spend import Spending

ZERO = Decimal(0)


def route(price: Price) -> RouteQuote:
    some = Range(1, 1, 1)
    return RouteQuote(
        "ask", "hosted", ("mini",), "m", some, 1, some, 1, some, None, price, "estimated", None, "", ""
    )


def price(low: Any, expected: Any, high: Any, worst: Any) -> Price:
    values = [None if v is None else Decimal(v) for v in (low, expected, high, worst)]
    return Price(*values, values[1], values[1])


def judge(found: Price, cap: str | None, spent: str = "0", **changes: Any) -> BudgetQuote:
    budget = {**({} if cap is None else {"amount": cap}), **changes}
    return judge_budget(workload(budget=budget), [route(found)], Spending(Decimal(spent)))


@pytest.mark.parametrize(
    ("cap", "spent", "fits", "words"),
    [
        ("10", "0", "yes", "It fits: 10.00 USD at the very worst, and 10.00 USD are left"),
        ("10", "1", "yes", "likely 5.00 USD at most, and 9.00 USD of the cap are left"),
        ("5", "0", "yes", "likely 5.00 USD at most"),
        ("4", "0", "probably", "2.00 USD expected, likely 5.00 USD at most"),
        ("2", "0", "probably", "2.00 USD expected"),
        ("1.99", "0", "no", "stop at the cap, deliver what it paid for, and go on when the cap is raised"),
        ("5", "7", "no", "only 0.00 USD of the cap are left"),
        ("0.01234", "0", "no", "0.0123 USD are left"),
    ],
)
def test_each_verdict_has_its_sentence(cap: str, spent: str, fits: str, words: str) -> None:
    found = judge(price(1, 2, 5, 10), cap, spent)
    assert (found.fits, words in found.sentence) == (fits, True), found.sentence
    assert found.sentence.endswith(".")
    assert found.sentence.count(". ") == 0


def test_without_a_cap_the_worst_case_is_told() -> None:
    found = judge(price(1, 2, 5, 10), None)
    assert (found.fits, found.caps) == ("no cap", ())
    assert "10.00 USD at the very worst" in found.sentence
    assert "unknown" in judge(Price(), None).sentence


def test_an_unknown_price_can_t_be_judged_and_the_sentence_says_what_the_budget_does() -> None:
    assert "refuses documents without one" in judge(Price(), "5").sentence
    allowed = judge(Price(), "5", on_unknown_price="allow")
    assert (allowed.fits, "can't hold" in allowed.sentence) == ("unknown", True)


def test_an_unknown_upper_end_is_no_more_than_probable() -> None:
    found = judge(price(1, 2, None, None), "100")
    assert (found.fits, "likely unknown at most" in found.sentence) == ("probably", True)


AMOUNTS = st.decimals(0, 1000, places=6)


@given(st.lists(st.lists(AMOUNTS, min_size=4, max_size=4).map(sorted), max_size=4), AMOUNTS, AMOUNTS)
def test_the_verdict_agrees_with_the_figures(
    prices: list[list[Decimal]], cap: Decimal, spent: Decimal
) -> None:
    found = [price(*values) for values in prices]
    routes = [route(p) for p in found]
    judged = judge_budget(workload(budget={"amount": str(cap)}), routes, Spending(spent))
    expected, high = (sum((p[i] for p in prices), ZERO) for i in (1, 2))
    left = max(ZERO, cap - spent)
    assert judged.caps[0].left == left
    assert judged.fits == ("yes" if high <= left else "probably" if expected <= left else "no")


def test_every_cap_is_judged_and_the_hardest_to_keep_speaks() -> None:
    some = replace(
        route(price(1, 2, 5, 10)),
        input_tokens=Range(10, 20, 30),
        input_bound=1000,
        output_tokens=Range(1, 50, 100),
    )
    budget = {"amount": "100", "tokens": 200, "routes": {"ask": {"amount": "3", "tokens": 60}}}
    spending = Spending(Decimal(1), {"ask": Decimal("0.5")}, {"ask": 20})
    found = judge_budget(workload(budget=budget), [some], spending)
    assert [(c.route, c.unit, c.left, c.fits) for c in found.caps] == [
        ("", "amount", 99, "yes"),
        ("", "tokens", 180, "yes"),  # 130 likely at most
        ("ask", "amount", Decimal("2.5"), "probably"),
        ("ask", "tokens", 40, "no"),  # 70 expected
    ]
    assert found.fits == "no"
    assert found.sentence.startswith(
        "Route 'ask' does not fit: 70 tokens expected, and only 40 tokens of the cap are left"
    )


def test_another_route_s_cap_is_no_matter() -> None:
    budget = {"routes": {"other": {"amount": "0"}}}
    found = judge_budget(workload(budget=budget), [route(price(1, 2, 5, 10))], Spending())
    assert [(c.route, c.fits) for c in found.caps] == [("other", "yes")]


def test_a_cost_centre_is_named_and_not_judged() -> None:
    centre = {"cost_centre": "team", "cost_centre_amount": "1", "cost_centre_folder": "shared"}
    found = judge_budget(workload(budget=centre), [route(price(1, 2, 5, 10))], Spending())
    assert found.fits == "no cap"
    assert "what cost centre 'team' has left this month is not looked at" in found.sentence


def test_prices_add_up_bound_by_bound_and_what_is_unknown_stays_unknown() -> None:
    total = add_prices([price(1, 2, 3, 4), price(10, 20, None, 40)])
    assert (total.low, total.expected, total.high, total.worst) == (11, 22, None, 44)
    assert add_prices([]) == Price(ZERO, ZERO, ZERO, ZERO, ZERO, ZERO)
