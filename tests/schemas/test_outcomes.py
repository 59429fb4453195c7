from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.failures import FailureClass
from schemas.outcomes import FREE, Assignment, Charge, Outcome, Usage, money, money_text

COUNTS = st.none() | st.integers(0, 10**9)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS)
AMOUNTS = st.none() | st.decimals(0, 1000, places=12)
CHARGES = st.builds(
    Charge,
    amount=AMOUNTS,
    list_amount=AMOUNTS,
    basis=st.sampled_from(["tokens", "device_seconds", "replayed", "rehearsal"]),
    certainty=st.sampled_from(["exact", "estimated", "unknown"]),
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0.0000000000005", "0.000000000000"),
        ("0.0000000000015", "0.000000000002"),
        ("1E+3", "1000.000000000000"),
        (7, "7.000000000000"),
    ],
)
def test_money_is_rounded_half_even_to_twelve_decimals(value: str | int, text: str) -> None:
    assert money_text(money(value)) == text


def test_money_text_has_no_exponent() -> None:
    assert money_text(Decimal("1E-12")) == "0.000000000001"
    assert money_text(Decimal("1E+3")) == "1000"


@given(USAGES, USAGES, USAGES)
def test_usage_adds_up_in_any_grouping(a: Usage, b: Usage, c: Usage) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + Usage() == a


def test_a_count_that_one_side_does_not_report_is_the_other_sides() -> None:
    assert Usage(1, None, 3) + Usage(None, 2, 4) == Usage(1, 2, 7)


@given(CHARGES, CHARGES)
def test_an_unknown_part_makes_the_whole_unknown_and_never_zero(a: Charge, b: Charge) -> None:
    total = a + b
    known = a.amount is not None and b.amount is not None
    assert total.amount == (a.amount + b.amount if known else None)  # type: ignore[operator]
    assert total.certainty in (a.certainty, b.certainty)
    if "unknown" in (a.certainty, b.certainty):
        assert total.certainty == "unknown"


@given(CHARGES)
def test_what_was_free_changes_no_charge(charge: Charge) -> None:
    assert charge + FREE == charge
    assert FREE + charge == charge


def test_a_sum_of_charges_names_the_newest_price() -> None:
    old = Charge(money(1), money(1), "tokens", "exact", "book 1", "2026-01-01", device_seconds=1.5)
    new = replace(old, price_source="book 2", price_as_of="2026-02-01", device_seconds=None)
    total = old + new
    assert (total.amount, total.price_source, total.price_as_of) == (money(2), "book 2", "2026-02-01")
    assert total.device_seconds == 1.5


def test_an_outcome_without_a_failure_is_a_result() -> None:
    outcome = Outcome(Assignment(0, "ask", "TRUE", ("mini",), "d"))
    assert outcome.is_result
    assert not replace(outcome, failure=FailureClass.REFUSED).is_result
