"""Prices: one small seam over the dated price book `genai-prices`. Decimal throughout, offline.

A backend's own `price` wins. An unknown model has no price: amount None, certainty `unknown`, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from importlib.metadata import version
from typing import Any

import genai_prices
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelPrice, StartDateConstraint

from schemas.backends import HostedBackend, TokenPrice
from schemas.outcomes import MONEY_SCALE, Charge, Usage, money

PRICE_SOURCE = f"genai-prices {version('genai-prices')}"
_MILLION = Decimal(1_000_000)
_MOST_KEPT = 4096
_QUANTUM = Decimal(1).scaleb(-MONEY_SCALE)
_BOOK_NAMES = {"gemini": "google"}  # where the price book calls a provider otherwise than we do
_Context = tuple[tuple[str, str], ...]
# Units that a chat call of ours can be billed by; a price for anything else concerns tools.
_CONTEXT_KEYS = ("service_tier", "speed")


@dataclass(frozen=True, slots=True)
class _Rates:
    """Prices per token of a model without tiers."""

    plain: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal

    def total(self, usage: Usage) -> Decimal:
        read, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
        plain = max(0, (usage.input_tokens or 0) - read - written)
        tokens_in = plain * self.plain + read * self.cache_read + written * self.cache_write
        return tokens_in + (usage.output_tokens or 0) * self.output


class PriceBook:
    """Prices of hosted models, looked up by the instant of the call."""

    def __init__(self) -> None:
        self._rates: dict[tuple[Any, ...], _Rates | None] = {}
        self._own: dict[int, tuple[TokenPrice, _Rates]] = {}  # by identity, like the worst cases
        # By identity of the backend, which is kept alive: equal bounds are common among short documents.
        self._worst_cases: dict[tuple[Any, ...], tuple[HostedBackend, Decimal | None]] = {}

    def price(
        self,
        provider: str,
        model: str,
        usage: Usage,
        at: datetime,
        *,
        context: _Context = (),
        own: TokenPrice | None = None,
        estimated: bool = False,
    ) -> Charge:
        """What `usage` costs at the prices in force at `at`.

        `context` are the response's service tier and speed where they are not the default; `estimated`
        says that the book's price may not be this server's (an address of the workload's own). Without
        token counts, or without a price, amount is None and certainty `unknown`.
        """
        if usage.input_tokens is None or usage.output_tokens is None:
            return _unknown()
        total = self._own_total(own, usage) if own else self._book_total(provider, model, usage, at, context)
        if total is None:
            return _unknown()
        amount = money(total)
        return Charge(
            amount=amount,
            list_amount=amount,
            basis="tokens",
            certainty="estimated" if estimated and own is None else "exact",
            price_source="workload" if own else PRICE_SOURCE,
            price_as_of=at.date().isoformat(),
        )

    def worst_case(
        self, backend: HostedBackend, input_token_bound: int, max_output_tokens: int, at: datetime
    ) -> Decimal | None:
        """The most that one call can cost, rounded up; None when the model has no price.

        Takes the dearest reading of the input tokens (plain, or all written to the cache) and the
        service tier or speed that `parameters` ask for.
        """
        key = (id(backend), input_token_bound, max_output_tokens, at.date())
        kept = self._worst_cases.get(key)
        if kept is not None and kept[0] is backend:
            return kept[1]
        worst = self._worst_case(backend, input_token_bound, max_output_tokens, at)
        if backend.price is not None or self._is_flat(backend, at):  # other prices may change by the hour
            if len(self._worst_cases) >= _MOST_KEPT:
                self._worst_cases.clear()
            self._worst_cases[key] = (backend, worst)
        return worst

    def _is_flat(self, backend: HostedBackend, at: datetime) -> bool:
        provider = _BOOK_NAMES.get(backend.provider, backend.provider)
        return self._rates.get((provider, backend.model, at.date(), asked_context(backend))) is not None

    def _worst_case(
        self, backend: HostedBackend, input_token_bound: int, max_output_tokens: int, at: datetime
    ) -> Decimal | None:
        context = asked_context(backend)
        plain = Usage(input_token_bound, max_output_tokens)
        written = Usage(input_token_bound, max_output_tokens, 0, input_token_bound)
        totals = [
            self._own_total(backend.price, usage)
            if backend.price
            else self._book_total(backend.provider, backend.model, usage, at, context)
            for usage in (plain, written)
        ]
        known = [total for total in totals if total is not None]
        return max(known).quantize(_QUANTUM, rounding=ROUND_CEILING) if known else None

    def _own_total(self, price: TokenPrice, usage: Usage) -> Decimal:
        known = self._own.get(id(price))
        if known is None or known[0] is not price:
            known = self._own[id(price)] = (price, _own_rates(price))
        return known[1].total(usage) / _MILLION

    def _book_total(
        self, provider: str, model: str, usage: Usage, at: datetime, context: _Context
    ) -> Decimal | None:
        provider = _BOOK_NAMES.get(provider, provider)
        key = (provider, model, at.date(), context)
        if key not in self._rates:
            self._rates[key] = _flat_rates(provider, model, at, dict(context))
        rates = self._rates[key]
        if rates is not None:
            return rates.total(usage)
        return _calculated(provider, model, usage, at, dict(context))


def asked_context(backend: HostedBackend) -> _Context:
    """The service tier and speed that a backend's parameters ask for: they decide the price."""
    return tuple((k, v) for k, v in backend.parameters.items() if k in _CONTEXT_KEYS and isinstance(v, str))


def _own_rates(price: TokenPrice) -> _Rates:
    """Per million tokens."""
    plain, read, write = (
        price.input_per_million,
        price.cache_read_per_million,
        price.cache_write_per_million,
    )
    return _Rates(
        plain, price.output_per_million, plain if read is None else read, plain if write is None else write
    )


def _unknown() -> Charge:
    return Charge(amount=None, list_amount=None, basis="tokens", certainty="unknown")


def _flat_rates(provider: str, model: str, at: datetime, context: Mapping[str, str]) -> _Rates | None:
    """The model's rates where a multiplication is all there is to it; None leaves it to the library.

    The library takes 80 µs a call, as much as the rest of the engine.
    """
    try:
        _, info = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    conditions = [] if isinstance(info.prices, ModelPrice) else [price.constraint for price in info.prices]
    conditions += [variant.constraint for variant in info.price_variants or ()]
    if not all(condition is None or isinstance(condition, StartDateConstraint) for condition in conditions):
        return None
    price = info.get_prices(at, dict(context) or None)
    plain, output = price.input_mtok, price.output_mtok
    read = plain if price.cache_read_mtok is None else price.cache_read_mtok
    written = plain if price.cache_write_mtok is None else price.cache_write_mtok
    rates = (plain, Decimal(0) if output is None else output, read, written)  # embeddings have no output
    if price.requests_kcount is not None or not all(isinstance(rate, Decimal) for rate in rates):
        return None
    return _Rates(*(rate / _MILLION for rate in rates))


def _calculated(
    provider: str, model: str, usage: Usage, at: datetime, context: Mapping[str, str]
) -> Decimal | None:
    try:
        calculation = genai_prices.calc_price(
            genai_prices.Usage(
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cache_read_tokens=usage.cache_read_input_tokens or 0,
                cache_write_tokens=usage.cache_creation_input_tokens or 0,
            ),
            model,
            provider_id=provider,
            genai_request_timestamp=at,
            price_context=dict(context) or None,
        )
    except LookupError:
        return None
    # a total of zero is a model that the book knows without a price for its tokens
    return calculation.total_price or None
