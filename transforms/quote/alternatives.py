"""The same documents another way, side by side: other models, provider batch prices, prompt caching.

Amounts are for all documents of the route, with the same assumptions on tokens and answers; only the
model, or the way it is asked, is another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from genai_prices.data_snapshot import get_snapshot

from schemas.outcomes import Usage
from transforms.call.caching import least_cached_tokens
from transforms.call.site import is_at_list_price
from transforms.price import PRICE_SOURCE
from transforms.quote.estimate import Estimate
from transforms.quote.pricing import BackendModel, RouteTotals, to_money
from transforms.quote.values import Alternative

OPENAI_LEAST_CACHED = 1024
"""Tokens from which on OpenAI caches what requests begin with; its prompt-caching guide."""
_BOOKED_AS = {"gemini": ("google", "gemini")}
_CHEAPER, _DEARER = 3, 2
_LEAST_CONTEXT = 100_000
_OTHER_TRADES = (
    *("audio", "image", "live", "realtime", "transcribe", "tts", "embedding", "moderation"),
    *("codex", "computer", "cyber", "deep-research", "rosalind", "search"),
    *("chat-latest", "ft", "instruct", "oss", "pro"),
)
_PROBE = 1000  # tokens: below every price tier
Kind = Literal["chain", "model", "online", "batch", "cache"]
Rates = tuple[Decimal, Decimal]
"""Price of an input and of an output token."""
Amounts = tuple[Decimal, Decimal, Decimal]
"""Low, expected and high."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What all documents of a route add up to, for pricing them another way.

    `longest` are the bytes of the longest request in the sample.
    """

    documents: Estimate
    text_bytes: Estimate
    longest: int

    def amounts(self, rates: Rates, model: BackendModel) -> Amounts:
        """What all documents cost at flat rates."""
        ratio, answer = model.ratio, model.answer
        cases: tuple[tuple[Fraction, Fraction, Callable[[int], int], int], ...] = (
            (self.documents.low, self.text_bytes.low, ratio.low, answer.low),
            (self.documents.total, self.text_bytes.total, ratio.expected_tokens, answer.expected),
            (self.documents.high, self.text_bytes.high, ratio.high, answer.high),
        )
        low, expected, high = (
            # each request has a frame; the tokens of all texts together have one of them already
            to_money(
                (tokens(int(size)) + max(Fraction(0), documents - 1) * tokens(0)) * Fraction(rates[0])
                + documents * longest_answer * Fraction(rates[1])
            )
            for documents, size, tokens, longest_answer in cases
        )
        return low, expected, high


def find_alternatives(
    totals: RouteTotals, main: BackendModel, others: Sequence[BackendModel], prefix_bytes: int
) -> tuple[tuple[Alternative, ...], tuple[str, ...]]:
    """Alternatives to sending all of a route to `main`, and remarks on those that there are not.

    `others` are the remaining backends of the route's chains; `prefix_bytes` is what all its requests share
    at their beginning. Other models of the book are of `main`'s provider, so the policy allows them.
    """
    if not totals.flat:
        return (), ()
    sums = Sums(
        totals.total(lambda cost: cost.documents),
        totals.total(lambda cost: cost.text_bytes),
        max(cost.text_bytes for cost in totals.flat),
    )
    found = [_online("chain", model, sums) for model in others]
    if main.backend.mode == "batch":
        found.append(_online("online", main, sums))
    if is_at_list_price(main.backend) and main.answer.high:
        found += _models_of_the_book(main, sums)
    notes = []
    for way in (_batch(main, sums), _cache(main, sums, prefix_bytes)):
        if isinstance(way, Alternative):
            found.append(way)
        elif way:
            notes.append(way)
    return tuple(found), tuple(notes)


def _rates(model: BackendModel, amount: Callable[[int, int], Decimal | None]) -> Rates | None:
    """Prices of single tokens below every tier; None where there is none. Vectors have no output price."""
    tokens_in = amount(_PROBE, 0)
    tokens_out = amount(0, _PROBE) if model.answer.high else Decimal(0)
    return None if tokens_in is None or tokens_out is None else (tokens_in / _PROBE, tokens_out / _PROBE)


def _alternative(
    kind: Kind, model: BackendModel, amounts: Amounts | None, source: str, note: str = ""
) -> Alternative:
    low, expected, high = amounts or (None, None, None)
    return Alternative(
        kind=kind,
        provider=model.backend.provider,
        model=model.backend.model,
        low=low,
        expected=expected,
        high=high,
        certainty="unknown" if amounts is None else "estimated",
        source=source,
        note=note,
    )


def _online(kind: Kind, model: BackendModel, sums: Sums) -> Alternative:
    """A model asked call by call."""
    rates = _rates(model, model.online_amount)
    if rates is None:
        return _alternative(kind, model, None, "no price is known")
    source = "workload" if model.backend.price is not None else PRICE_SOURCE
    return _alternative(kind, model, sums.amounts(rates, model), source, _tier_note(model, rates, sums))


def _tier_note(model: BackendModel, rates: Rates, sums: Sums) -> str:
    """A remark when the longest document would be billed at a long-context price."""
    tokens = model.ratio.expected_tokens(sums.longest)
    amount = model.online_amount(tokens, 0)
    if amount is None or amount <= rates[0] * tokens * Decimal("1.001"):
        return ""
    return "a higher price for long requests, which some of these are, is not counted"


def _models_of_the_book(main: BackendModel, sums: Sums) -> Iterator[Alternative]:
    """The provider's next cheaper and dearer models of today's price book, one for each price."""
    current = _rates(main, main.online_amount)
    if current is None:
        return
    by_price: dict[Rates, BackendModel] = {}
    for name in _chat_models(main.backend.provider):
        backend = main.backend.model_copy(update={"model": name, "price": None})
        model = replace(main, site=replace(main.site, backend=backend))
        rates = _rates(model, model.online_amount)
        if rates is not None and rates != current and all(rates):
            by_price[rates] = model  # of several at one price the last, which is the newest
    cost = {rates: sums.amounts(rates, main)[1] for rates in by_price}
    now = sums.amounts(current, main)[1]
    ranked = sorted(by_price, key=lambda rates: cost[rates])
    cheaper = [rates for rates in ranked if cost[rates] < now][-_CHEAPER:]
    dearer = [rates for rates in ranked if cost[rates] >= now][:_DEARER]
    for rates in cheaper + dearer:
        yield _online("model", by_price[rates], sums)


def _chat_models(provider: str) -> list[str]:
    """Names of a provider's general text models in the price book.

    Only those with a batch price, which the book gives to models that are still on the price list.
    """
    name, family = _BOOKED_AS.get(provider, (provider, ""))
    return [
        model.id
        for found in get_snapshot().providers
        if found.id == name
        for model in found.models
        if (model.context_window or 0) >= _LEAST_CONTEXT
        and model.id.startswith(family)
        and any((variant.when or {}).get("processing") == "batch" for variant in model.price_variants or ())
        and not any(trade in model.id for trade in _OTHER_TRADES)
    ]


def _batch(main: BackendModel, sums: Sums) -> Alternative | str:
    """The provider's batch API, or the reason why there is none."""
    backend = main.backend
    if backend.mode == "batch":
        return ""
    if not (backend.has_batches and is_at_list_price(backend)):
        return f"batch: no provider batches are known for backend {main.name!r}"
    if backend.price is not None:
        return f"batch: the workload's own price of backend {main.name!r} says nothing of batches"
    rates = _rates(main, main.batch_amount)
    if rates is None:
        return ""
    note = 'mode = "batch" of the backend: answers within 24 hours'
    return _alternative("batch", main, sums.amounts(rates, main), main.batch_source, note)


def _cache(main: BackendModel, sums: Sums, prefix_bytes: int) -> Alternative | str:
    """Prompt caching of what all requests share, if that is long enough: one write, then reads."""
    minimum = _least_cached(main)
    if minimum is None or not main.answer.high:
        return ""
    shared = int(prefix_bytes / main.ratio.expected)
    if shared < minimum:
        return (
            f"prompt caching: the requests share about {shared:,} tokens at their beginning; "
            f"{main.backend.model} caches from {minimum:,}"
        )
    rates = _rates(main, main.online_amount)
    if rates is None:
        return ""
    plain = sums.amounts(rates, main)
    counts = (sums.documents.low, sums.documents.total, sums.documents.high)
    saved = [_saving(main, shared, int(count)) for count in counts]
    low, expected, high = (a - min(a, s) for a, s in zip(plain, saved, strict=True))
    note = (
        f"about {shared:,} tokens begin every request: written to the cache once, then read from it; "
        "a run does so by itself"
    )
    return _alternative("cache", main, (low, expected, high), PRICE_SOURCE, note)


def _least_cached(main: BackendModel) -> int | None:
    """Tokens from which on the model's provider caches; None where that is not known, or it is off."""
    backend = main.backend
    if backend.provider == "anthropic":
        return None if backend.prompt_caching == "off" else least_cached_tokens(backend.model)
    known = backend.provider == "openai" and is_at_list_price(backend)
    return OPENAI_LEAST_CACHED if known else None


def _saving(main: BackendModel, shared: int, documents: int) -> Decimal:
    """What reading the shared beginning from the cache saves over all documents but the first."""

    def cost(read: int, written: int) -> Decimal:
        return main.charge(Usage(shared, 0, read, written)).list_amount or Decimal(0)

    plain, read, written = cost(0, 0), cost(shared, 0), cost(0, shared)
    return max(0, documents - 1) * (plain - read) - max(Decimal(0), written - plain)
