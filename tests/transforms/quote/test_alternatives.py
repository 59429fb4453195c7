"""The same documents another way: every price with its source, and none made up."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.outcomes import Usage
from tests.support.workloads import HOSTED, workload
from tests.transforms.quote.bench import NOW, Bench
from transforms.price import PRICE_SOURCE, PriceBook
from transforms.quote.history import AnswerLength
from transforms.quote.latency import assumed_latency
from transforms.quote.measure import RequestSizes, keyless_sites, measure_for
from transforms.quote.pricing import BackendModel, dearest
from transforms.quote.tokens import RATIOS
from transforms.quote.values import Alternative

ANSWER = AnswerLength(1, 50, 100, "stated")
ANTHROPIC = {"provider": "anthropic", "model": "claude-haiku-4-5"}  # 1 and 5 USD a million
WITHOUT_BATCH_PRICE = "claude-opus-4-1"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    found = Bench(tmp_path, backends__mini=ANTHROPIC)
    found.documents(10, text="x" * 283)  # 290 bytes: 100 tokens and a frame of 8
    return found


def ways(bench: Bench, kind: str) -> list[Alternative]:
    return [a for a in bench.route().alternatives if a.kind == kind]


def model(provider: str = "anthropic", model: str = "claude-haiku-4-5", **changes: Any) -> BackendModel:
    backend = {"provider": provider, "model": model, **changes}
    site = keyless_sites(workload(backends__mini=backend), PriceBook())["mini"]
    return BackendModel("mini", site, NOW, RATIOS["openai"], ANSWER, assumed_latency(site.backend), 60.0)


def test_a_batch_is_half_the_price_and_says_whose_price_it_is(bench: Bench) -> None:
    route = bench.route()
    (batch,) = ways(bench, "batch")
    assert route.price.expected is not None
    assert batch.expected == route.price.expected / 2 == 10 * Decimal("0.002668") / 2
    assert (batch.certainty, batch.source) == ("estimated", f"{PRICE_SOURCE}, its batch price")


def test_a_batch_price_that_the_book_does_not_know_is_half_and_says_so(bench: Bench) -> None:
    """The price book gives the full price without a word there."""
    book, batch = PriceBook(), (("processing", "batch"),)
    prices = [
        book.price("anthropic", WITHOUT_BATCH_PRICE, Usage(1000, 10), NOW, context=c).amount
        for c in ((), batch)
    ]
    assert prices[0] == prices[1] is not None
    bench.load(backends__mini={**ANTHROPIC, "model": WITHOUT_BATCH_PRICE})
    (found,) = ways(bench, "batch")
    price = bench.route().price.expected
    assert price is not None
    assert found.expected == price / 2
    assert (found.certainty, found.source.startswith("half of the online price")) == ("estimated", True)


@pytest.mark.parametrize(
    "backend",
    [
        {**HOSTED, "base_url": "https://llm.example.org/v1"},
        {**ANTHROPIC, "platform": "vertex", "project": "my-project", "location": "global"},
        HOSTED,
    ],
)
def test_where_no_batch_price_is_known_none_is_shown_and_a_remark_says_so(backend: dict[str, Any]) -> None:
    from transforms.quote.alternatives import Sums, _batch
    from transforms.quote.estimate import estimate_total

    nothing = estimate_total(0, 0, [])
    made = model(**backend)
    assert "batch" in str(_batch(made, Sums(nothing, nothing, 0)))
    assert not isinstance(_batch(made, Sums(nothing, nothing, 0)), Alternative)


@pytest.mark.parametrize(
    "backend",
    [
        {"provider": "gemini", "model": "gemini-2.5-flash"},
        {"provider": "openai", "model": "text-embedding-3-small", "operation": "embeddings", "dimensions": 4},
    ],
)
def test_batches_are_an_alternative_for_gemini_and_for_embeddings(
    bench: Bench, backend: dict[str, Any]
) -> None:
    route: dict[str, Any] = {"name": "ask", "backends": ["mini"]}
    if "operation" not in backend:
        route["prompt"] = "topic"
    bench.load(backends__mini=backend, routes=[route])
    (found,) = ways(bench, "batch")
    price = bench.route().price.expected
    assert price is not None
    assert found.expected == pytest.approx(price / 2, rel=Decimal("0.05"))


def test_other_models_are_the_provider_s_next_cheaper_and_dearer_ones(bench: Bench) -> None:
    price = bench.route().price.expected
    assert price is not None
    found = ways(bench, "model")
    assert 2 <= len(found) <= 5
    costs = [a.expected for a in found]
    assert None not in costs
    assert costs == sorted(costs)  # type: ignore[type-var]
    assert min(costs) < price < max(costs)  # type: ignore[type-var, operator]
    assert {a.provider for a in found} == {"anthropic"}
    assert all(a.source == PRICE_SOURCE and a.certainty == "estimated" for a in found)
    assert len({a.model for a in found} | {"claude-haiku-4-5"}) == len(found) + 1


def test_another_model_s_price_is_that_of_the_same_tokens(bench: Bench) -> None:
    for way in ways(bench, "model"):
        charge = PriceBook().price("anthropic", way.model, Usage(108, 512), NOW)
        assert charge.amount is not None
        assert way.expected == 10 * charge.amount


def test_models_of_other_trades_are_not_offered() -> None:
    from transforms.quote.alternatives import _chat_models

    for provider in ("openai", "anthropic", "gemini"):
        names = _chat_models(provider)
        assert len(names) >= 3
        assert not [n for n in names if "image" in n or "audio" in n or "realtime" in n or "embed" in n]
    assert _chat_models("nobody") == []


def test_a_server_of_one_s_own_has_no_models_of_the_book_beside_it(bench: Bench) -> None:
    bench.load(backends__mini={**HOSTED, "base_url": "https://llm.example.org/v1"})
    assert not ways(bench, "model")


def test_a_short_prefix_is_not_cached_and_the_remark_says_from_where_on(bench: Bench) -> None:
    assert not ways(bench, "cache")
    assert any("caches from" in note for note in bench.route().notes)


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_a_long_prefix_is_written_once_and_read_by_the_others(bench: Bench, provider: str) -> None:
    name = {"anthropic": "claude-haiku-4-5", "openai": "gpt-5-mini"}[provider]
    bytes_shared = round(20_000 * RATIOS[provider].expected)
    bench.load(
        backends__mini={"provider": provider, "model": name},
        prompts__topic={"template": "About: {{ text }}", "system": "s" * (bytes_shared - len("About: "))},
    )
    (cached,) = ways(bench, "cache")
    price, book = bench.route().price.expected, PriceBook()
    plain, read, written = (
        book.price(provider, name, Usage(20_000, 0, *c), NOW).amount
        for c in ((0, 0), (20_000, 0), (0, 20_000))
    )
    assert price is not None
    assert plain is not None
    assert read is not None
    assert written is not None
    assert read < plain <= written
    whole = price - 9 * (plain - read) + (written - plain)
    # tokens are rounded once there, and for each of ten documents here
    assert cached.expected == pytest.approx(whole, rel=Decimal("1e-3"))
    assert cached.certainty == "estimated"


def test_a_template_s_head_is_shared_and_what_depends_on_the_row_is_not(bench: Bench) -> None:
    for template, shared in [
        ("About: {{ text }}", 7),
        ("{{ text }} tail", 0),
        ("{# a remark #}head {% if size %}x{% endif %}", 5),
        ("größer {{ text }}", 9),
    ]:
        bench.load(prompts__topic__template=template)
        workload, sites = bench.loaded.workload, keyless_sites(bench.loaded.workload, PriceBook())
        measure = measure_for(workload, workload.routes[0], bench.folder, sites, NOW)
        assert isinstance(measure, RequestSizes)
        assert measure.shared_bytes == shared


def test_long_requests_that_cost_more_are_remarked_on(bench: Bench) -> None:
    bench.load(backends__mini={"provider": "openai", "model": "gpt-4o"}, input__max_text_chars=5_000_000)
    bench.documents(1, text="x" * 2_000_000)  # 500,000 tokens: some models have a price for that
    notes = {a.model: a.note for a in ways(bench, "model")}
    tiered = {
        m.id for p in get_snapshot().providers if p.id == "openai" for m in p.models if "tier" in repr(m)
    }
    remarked = {name for name, note in notes.items() if "higher price for long requests" in note}
    assert remarked <= tiered


def test_nothing_to_send_has_no_alternatives(bench: Bench) -> None:
    bench.documents(0)
    assert bench.route().alternatives == ()


@settings(deadline=None)  # the first look into the price book takes long
@given(tokens_in=st.integers(0, 10**6), tokens_out=st.integers(0, 10**5))
def test_a_batch_never_costs_more_than_the_same_online(tokens_in: int, tokens_out: int) -> None:
    for name in ("claude-haiku-4-5", WITHOUT_BATCH_PRICE, "claude-haiku-5-5"):
        made = model(model=name)
        online, batch = made.online_amount(tokens_in, tokens_out), made.batch_amount(tokens_in, tokens_out)
        if online is None:
            assert batch is None
        else:
            assert batch is not None
            assert batch <= online


def test_the_dearest_of_prices_with_an_unknown_one_is_unknown() -> None:
    assert dearest([Decimal(1), Decimal(3), Decimal(2)]) == 3
    assert dearest([Decimal(1), None]) is None
