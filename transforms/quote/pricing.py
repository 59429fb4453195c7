"""Prices of a route's documents: from measured sizes to tokens, to money, to totals with their interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from schemas.backends import HostedBackend
from schemas.outcomes import MONEY_SCALE, Charge, Usage
from transforms.call.discount import BATCH_CONTEXT, batch_charge
from transforms.call.site import OVERHEAD_TOKENS, Site
from transforms.call.wire import Answer
from transforms.price import asked_context
from transforms.quote.estimate import Cluster, Estimate, Number, estimate_total
from transforms.quote.history import AnswerLength
from transforms.quote.latency import Latency
from transforms.quote.population import Frame
from transforms.quote.sampling import Measured, Observed
from transforms.quote.tokens import RATIOS, TokenRatio, answer_bytes
from transforms.quote.values import Price, Quantiles, Range

_ZERO = Decimal(0)
_PROBE = 1000  # tokens: below every price tier


@dataclass(frozen=True, slots=True)
class BackendModel:
    """What is assumed of one hosted backend on one route: price, tokens of a text, length of an answer.

    Prices are those that the call engine will charge: `site` is the engine's own view of the backend.
    """

    name: str
    site: Site
    at: datetime
    ratio: TokenRatio
    answer: AnswerLength
    latency: Latency
    longest_call_s: float

    def milliseconds(self) -> tuple[int, int, int]:
        """Likely least, expected and likely most of one call; nothing of one that goes with a batch."""
        if self.backend.mode == "batch":
            return 0, 0, 0
        return self.latency.milliseconds(self.answer, self.longest_call_s)

    @property
    def backend(self) -> HostedBackend:
        """The backend as the workload has it."""
        return self.site.backend

    def charge(self, usage: Usage) -> Charge:
        """What one call costs online at the prices in force."""
        return self.site.charge(self._answer(usage), self.at)

    def online_amount(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """The same as an amount; None when there is no price."""
        return self.charge(Usage(input_tokens, output_tokens)).list_amount

    def batch_amount(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """What it costs with the provider's batches; None when there is no price."""
        answer = self._answer(Usage(input_tokens, output_tokens))
        return batch_charge(self.site, answer, self.at).list_amount

    def amount(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """What one call costs as the backend will be asked: online, or with `mode = "batch"` in batches."""
        way = self.batch_amount if self.backend.mode == "batch" else self.online_amount
        return way(input_tokens, output_tokens)

    def knows_batch_price(self, input_tokens: int, output_tokens: int) -> bool:
        """Whether the price book has a batch price; else it gives the full one without a word."""
        online = self.online_amount(input_tokens, output_tokens)
        answer = self._answer(Usage(input_tokens, output_tokens))
        batch = self.site.charge(
            replace(answer, price_context=answer.price_context + BATCH_CONTEXT), self.at
        ).list_amount
        return batch is not None and online is not None and batch < online

    @property
    def source(self) -> str | None:
        """Where the price comes from; None without one."""
        known = self.charge(Usage(1, 0)).price_source
        return self.batch_source if known and self.backend.mode == "batch" else known

    @property
    def batch_source(self) -> str:
        """Where the price of the provider's batches comes from."""
        known = self.charge(Usage(1, 0)).price_source
        if self.knows_batch_price(_PROBE, _PROBE):
            return f"{known}, its batch price"
        return f"half of the online price ({known}), which the provider publishes for its batches"

    def _answer(self, usage: Usage) -> Answer:
        return Answer(None, usage, price_context=asked_context(self.backend))


@dataclass(frozen=True, slots=True)
class Costs:
    """One document in numbers; all zero for one that will not be sent. Amounts are None without a price.

    `first` is the backend that is asked first, `busy` the milliseconds that its call keeps a place.
    """

    documents: int = 0
    text_bytes: int = 0
    input_low: int = 0
    input_expected: int = 0
    input_high: int = 0
    input_bound: int = 0
    output_low: int = 0
    output_expected: int = 0
    output_high: int = 0
    low: Decimal | None = _ZERO
    expected: Decimal | None = _ZERO
    high: Decimal | None = _ZERO
    worst: Decimal | None = _ZERO
    first: str = ""
    busy_low: int = 0
    busy_expected: int = 0
    busy_high: int = 0


def ratio_of(provider: str) -> TokenRatio:
    """The assumed bytes per token of a provider's models, and of those of compatible servers."""
    return RATIOS[provider]


def assumed_answers(schema: Mapping[str, Any] | None, most: int, ratio: TokenRatio) -> AnswerLength:
    """Output tokens of a call of which nothing is known yet but its JSON Schema and `max_output_tokens`."""
    if schema is None:
        basis = f"free text: 1 to max_output_tokens = {most:,}, the middle of that expected"
        return AnswerLength(1, -(-most // 2), most, basis)
    least, typical = answer_bytes(dict(schema))
    low, expected = max(1, int(least / ratio.most)), max(1, round(typical / ratio.expected))
    return AnswerLength(
        min(low, most),
        min(expected, most),
        most,
        f"from the JSON Schema: {least:,} bytes at least, {typical:,} typically; at most max_output_tokens = "
        f"{most:,}. Thinking is billed as output and is only in the upper figure",
    )


def cost_of(measured: Measured | None, models: Mapping[str, BackendModel]) -> Costs:
    """What one document costs: answered by the first backend of its chain, or at the most by the dearest."""
    if measured is None:
        return Costs()
    chain = [models[name] for name in measured.chain]
    first, size = chain[0], measured.text_bytes
    tokens = (first.ratio.low(size), first.ratio.expected_tokens(size))
    bound = measured.body_bytes[0] + OVERHEAD_TOKENS
    busy = [m.milliseconds() for m in chain]
    return Costs(
        documents=1,
        text_bytes=size,
        input_low=tokens[0],
        input_expected=min(tokens[1], bound),
        input_high=min(first.ratio.high(size), bound),
        input_bound=bound,
        output_low=first.answer.low,
        output_expected=first.answer.expected,
        output_high=first.answer.high,
        low=first.amount(tokens[0], first.answer.low),
        expected=first.amount(min(tokens[1], bound), first.answer.expected),
        high=dearest([m.online_amount(m.ratio.high(size), m.answer.high) for m in chain]),
        worst=dearest(measured.worst),
        first=first.name,
        busy_low=busy[0][0],
        busy_expected=busy[0][1],
        busy_high=max(high for _, _, high in busy),
    )


def dearest(amounts: Sequence[Decimal | None]) -> Decimal | None:
    """The largest amount; None if one of them is unknown."""
    known = [amount for amount in amounts if amount is not None]
    return max(known) if len(known) == len(amounts) else None


@dataclass(frozen=True, slots=True)
class RouteTotals:
    """A route's costs, document by document as sampled, and their totals over all that is due."""

    frame: Frame
    observed: Sequence[Observed]
    costs: Sequence[Sequence[Costs]]

    def estimate(self, value: Callable[[Costs], Number | None]) -> Estimate | None:
        """The total of something over all documents; None when it is unknown for one of the sample."""
        clusters = []
        for observed, costs in zip(self.observed, self.costs, strict=True):
            values = [value(cost) for cost in costs]
            known = tuple(v for v in values if v is not None)
            if len(known) < len(values):
                return None
            clusters.append(Cluster(observed.size, observed.members, known))
        return estimate_total(self.frame.size, self.frame.batches, clusters)

    def total(self, value: Callable[[Costs], Number]) -> Estimate:
        """The same of something that is always known."""
        found = self.estimate(value)
        assert found is not None
        return found

    @property
    def flat(self) -> list[Costs]:
        """The costs of all documents of the sample that will be sent."""
        return [cost for costs in self.costs for cost in costs if cost.documents]

    @property
    def is_unseen(self) -> bool:
        """Whether no document was found, and not every batch was read."""
        members = sum(observed.members for observed in self.observed)
        return members == 0 and len(self.observed) < self.frame.batches

    def documents(self) -> Range:
        """How many documents will be sent.

        Where the sample shows no exception (all rows are on the route, or none), one that it did not meet
        is bounded by the rule of three: a share of 3/n at most, at 95 %, with the batches as n
        (Hanley and Lippman-Hand, JAMA 1983).
        """
        found = self.total(lambda cost: cost.documents)
        if not found.is_exact or len(self.observed) == self.frame.batches:
            return span(found, found, found)
        unmet = min(self.frame.size, -(-3 * self.frame.size // len(self.observed)))
        expected = round(found.total)
        return Range(max(0, expected - unmet), expected, min(self.frame.size, expected + unmet))

    def price(self) -> Price:
        """What they cost. Of a route that was not met nothing is known but that it may be nothing."""
        if self.is_unseen:
            return Price(low=_ZERO, expected=_ZERO)
        low, expected, high, worst = (
            self.estimate(of)
            for of in (lambda c: c.low, lambda c: c.expected, lambda c: c.high, lambda c: c.worst)
        )
        return Price(
            low=None if low is None else to_money(low.low),
            expected=None if expected is None else to_money(expected.total),
            high=None if high is None else to_money(high.high),
            worst=None if worst is None else to_money(worst.high, up=True),
            sampling_low=None if expected is None else to_money(expected.low),
            sampling_high=None if expected is None else to_money(expected.high),
        )

    def quantiles(self) -> Quantiles | None:
        """How the sampled documents lie by expected input tokens."""
        tokens = sorted(cost.input_expected for cost in self.flat)
        if not tokens:
            return None
        p5, p50, p95 = (tokens[min(len(tokens) - 1, int(len(tokens) * q))] for q in (0.05, 0.5, 0.95))
        return Quantiles(p5, p50, p95, tokens[-1])


def span(low: Estimate, expected: Estimate, high: Estimate) -> Range:
    """Whole numbers around three totals: rounded outwards, the middle one to the nearest."""
    return Range(int(low.low), round(expected.total), -int(-high.high // 1))


def to_money(value: Fraction, *, up: bool = False) -> Decimal:
    """A fraction as an amount of money, rounded half even or up."""
    scaled = value * 10**MONEY_SCALE
    return Decimal(-int(-scaled // 1) if up else round(scaled)).scaleb(-MONEY_SCALE)
