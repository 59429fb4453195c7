from __future__ import annotations

import pytest

from flows.words import batches, count, duration, shortened, span, usd


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "unknown"),
        ("0", "$0"),
        ("0E-12", "$0"),
        ("1234.5", "$1,234.50"),
        ("1", "$1.00"),
        ("0.25", "$0.25"),
        ("0.001500", "$0.0015"),
        ("0.000001", "$0.000001"),
        ("0.0000004", "< $0.000001"),
        ("0.999999999", "$1"),
    ],
)
def test_money_shows_the_digits_that_matter_and_unknown_is_never_zero(amount: str | None, text: str) -> None:
    assert usd(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7_900, "2 h 11 min"),
    ],
)
def test_durations_are_in_the_two_units_that_matter(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_one_is_not_a_plural() -> None:
    assert [count(1, "call"), count(0, "call"), batches(1), batches(12_345)] == [
        "1 call",
        "0 calls",
        "1 batch",
        "12,345 batches",
    ]


def test_long_texts_are_cut_to_one_line_of_the_limit() -> None:
    assert shortened("a\n b\t c", 10) == "a b c"
    assert shortened("x" * 11, 10) == "x" * 9 + "…"
    assert len(shortened("word " * 100, 30)) == 30


def test_a_span_of_time_names_both_ends_unless_they_read_alike() -> None:
    assert span(40, 185) == "40 s to 3 min 05 s"
    assert span(40.2, 40.4) == "40 s"
