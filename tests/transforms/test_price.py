"""Prices: dated, decimal, and never zero because they are unknown."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import Usage as BookUsage
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from schemas.backends import HostedBackend, TokenPrice
from schemas.outcomes import Charge, Usage, money
from transforms.price import PRICE_SOURCE, PriceBook

USAGE = Usage(1000, 100)
AT = datetime(2026, 11, 22, tzinfo=UTC)
OWN = TokenPrice(input_per_million=Decimal(2), output_per_million=Decimal(8))
MODELS = [
    (provider.id, model.id)
    for provider in get_snapshot().providers
    if provider.id in ("anthropic", "openai")
    for model in provider.models
    if model.is_match(model.id)  # a family such as fine-tuned models is found by its members' names only
]


def price(model: str = "claude-haiku-4-5", usage: Usage = USAGE, at: datetime = AT, **more: Any) -> Charge:
    provider = "anthropic" if model.startswith("claude") else "openai"
    return PriceBook().price(provider, model, usage, at, **more)


def test_a_known_model_has_an_exact_dated_decimal_price() -> None:
    charge = price()
    assert charge.amount == charge.list_amount == money("0.0015")  # 1 and 5 USD a million
    assert (charge.basis, charge.certainty, charge.currency) == ("tokens", "exact", "USD")
    assert (charge.price_source, charge.price_as_of) == (PRICE_SOURCE, "2026-11-22")
    assert PRICE_SOURCE.startswith("genai-prices ")


def test_an_unknown_model_has_no_price_and_not_zero() -> None:
    charge = price("claude-of-tomorrow")
    assert (charge.amount, charge.list_amount, charge.certainty) == (None, None, "unknown")
    assert charge.price_source is None


@pytest.mark.parametrize("usage", [Usage(), Usage(5), Usage(None, 5)])
def test_missing_token_counts_have_no_price(usage: Usage) -> None:
    assert price(usage=usage).certainty == "unknown"
    assert price(usage=usage, own=OWN).certainty == "unknown"


def test_the_workloads_own_price_wins() -> None:
    charge = price(own=OWN, estimated=True)
    assert (charge.amount, charge.price_source, charge.certainty) == (money("0.0028"), "workload", "exact")


def test_a_server_of_ones_own_is_priced_by_the_book_as_an_estimate() -> None:
    assert price(estimated=True).certainty == "estimated"


def test_cached_tokens_have_their_own_prices() -> None:
    # 700 plain at 1, 200 read at 0.1, 100 written at 1.25, 10 out at 5 USD a million
    assert price(usage=Usage(1000, 10, 200, 100)).amount == money("0.000895")


def test_the_price_is_that_of_the_day_of_the_call() -> None:
    before = price("o3", at=datetime(2025, 6, 1, tzinfo=UTC)).amount
    after = price("o3", at=datetime(2025, 6, 11, tzinfo=UTC)).amount
    assert before is not None
    assert after is not None
    assert before == 5 * after  # o3 became 80 % cheaper on 10 June 2025


def test_a_dearer_service_tier_is_billed_as_such() -> None:
    plain, priority = (
        price("gpt-4.1-mini").amount,
        price("gpt-4.1-mini", context=(("service_tier", "priority"),)).amount,
    )
    assert plain is not None
    assert priority is not None
    assert priority > plain


def test_a_price_tier_by_length_is_kept() -> None:
    short, long = (
        price("claude-sonnet-4-5", Usage(200_000, 0)).amount,
        price("claude-sonnet-4-5", Usage(200_001, 0)).amount,
    )
    assert short == money("0.6")
    assert long is not None
    assert long > money("1.2")


@pytest.mark.parametrize("context", [{}, {"service_tier": "priority"}, {"speed": "fast"}])
@pytest.mark.parametrize("counts", [(1000, 100, 0, 0), (1000, 100, 300, 200), (300_000, 7, 5, 6)])
def test_every_model_costs_what_the_price_book_itself_calculates(
    counts: tuple[int, int, int, int], context: dict[str, str]
) -> None:
    book = PriceBook()
    for provider, model in MODELS:
        tokens = dict(
            zip(
                ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"),
                counts,
                strict=True,
            )
        )
        theirs = calc_price(
            BookUsage(**tokens),
            model,
            provider_id=provider,
            genai_request_timestamp=AT,
            price_context=context or None,
        ).total_price
        ours = book.price(provider, model, Usage(*counts), AT, context=tuple(context.items())).amount
        assert ours == (money(theirs) if theirs else None), model


@given(
    st.sampled_from(MODELS),
    st.integers(0, 500_000),
    st.integers(0, 5_000),
    st.integers(0, 500_000),
    st.integers(0, 5_000),
    st.sampled_from(["read", "written", "plain"]),
)
def test_no_call_within_its_bounds_ever_costs_more_than_its_worst_case(
    model: tuple[str, str], bound: int, most: int, tokens: int, out: int, kind: str
) -> None:
    backend = HostedBackend(provider=model[0], model=model[1])  # type: ignore[arg-type]
    worst = BOOK.worst_case(backend, bound, most, AT)
    tokens, out = min(tokens, bound), min(out, most)
    usage = Usage(tokens, out, tokens if kind == "read" else 0, tokens if kind == "written" else 0)
    amount = BOOK.price(*model, usage, AT).amount
    if amount is not None:
        assert worst is not None
        assert amount <= worst


BOOK = PriceBook()


def test_the_worst_case_takes_the_workloads_price_and_the_tier_that_is_asked_for() -> None:
    own = HostedBackend(provider="openai", model="never heard of", price=OWN)
    assert BOOK.worst_case(own, 1_000_000, 1_000_000, AT) == money(10)
    plain = HostedBackend(provider="openai", model="gpt-4.1-mini")
    priority = plain.model_copy(update={"parameters": {"service_tier": "priority"}})
    assert (BOOK.worst_case(priority, 1000, 10, AT) or 0) > (BOOK.worst_case(plain, 1000, 10, AT) or 0)
    assert BOOK.worst_case(HostedBackend(provider="openai", model="never heard of"), 1, 1, AT) is None


def test_prices_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a price opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert price().amount is not None


def test_a_worst_case_that_was_asked_for_before_is_the_same_again_and_only_for_the_same_question() -> None:
    book, cheap = PriceBook(), HostedBackend(provider="openai", model="gpt-4.1-mini")
    dear = HostedBackend(provider="openai", model="gpt-4.1")
    first = book.worst_case(cheap, 1000, 100, AT)
    assert book.worst_case(cheap, 1000, 100, AT) == first
    assert book.worst_case(cheap, 1001, 100, AT) != first
    assert book.worst_case(dear, 1000, 100, AT) == PriceBook().worst_case(dear, 1000, 100, AT) != first
