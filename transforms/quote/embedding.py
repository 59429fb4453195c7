"""Embed routes: tokens by the model's own tokenizer, device time by measurement or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from schemas.backends import EmbedderBackend
from schemas.lengths import TextLengths
from transforms.embed.charge import device_charge
from transforms.quote.estimate import Cluster, Estimate, estimate_total
from transforms.quote.population import Frame
from transforms.quote.sampling import Measured, Observed
from transforms.quote.values import Price, Quantiles, Range, RouteQuote, Seconds

PASSES = 3
NO_THROUGHPUT = (
    "device seconds are unknown: this output holds no embeddings of the route yet. --calibrate measures them "
    "on this machine"
)


@dataclass(frozen=True, slots=True)
class Throughput:
    """Device seconds of one token: likely least, expected, likely most, and where that comes from."""

    seconds: Seconds
    basis: str


Embed = Callable[[Sequence[str]], tuple[int, float]]
"""Embeds texts; gives their tokens and the device seconds that they took."""
Calibrate = Callable[[EmbedderBackend, Sequence[str]], Throughput | None]
"""Measures a backend's throughput on some texts; takes a device, so it is done only when asked for."""


def calibrate(embed: Embed, texts: Sequence[str]) -> Throughput | None:
    """Measure device seconds a token: one pass to warm up, then the fastest, median and slowest of PASSES.

    None without texts.
    """
    if not texts:
        return None
    embed(texts)
    passes = sorted(seconds / tokens for tokens, seconds in (embed(texts) for _ in range(PASSES)) if tokens)
    if not passes:
        return None
    seconds = Seconds(passes[0], passes[len(passes) // 2], passes[-1])
    return Throughput(
        seconds, f"device seconds measured now on this machine with {len(texts):,} sampled texts"
    )


def quote_embed_route(
    route: str,
    name: str,
    backend: EmbedderBackend,
    frame: Frame,
    observed: Sequence[Observed],
    throughput: Throughput | None,
    lengths: Mapping[int, int],
) -> RouteQuote:
    """The quote of an embed route; without a throughput its time and price are unknown.

    `lengths` says how many texts (chunks) of the sample have how many tokens.
    """
    tokens = _total(frame, observed, lambda m: m.tokens)
    documents = _total(frame, observed, lambda _: 1)
    seconds = None if throughput is None else _seconds(tokens, throughput.seconds)
    price = Price() if seconds is None else _price(backend, tokens, seconds, throughput)
    counts = sorted(m.tokens for o in observed for m in o.measured if m is not None)
    notes = () if backend.price_per_device_hour is not None else ("no price_per_device_hour is set",)
    return RouteQuote(
        route=route,
        kind="embed",
        backends=(name,),
        model=backend.model_path,
        documents=_range(documents),
        sampled=len(counts),
        input_tokens=_range(tokens),
        input_bound=None,
        output_tokens=Range(0, 0, 0),
        per_document=_quantiles(counts),
        price=price,
        certainty="unknown" if price.expected is None else "estimated",
        price_source=None if price.expected is None else "workload",
        input_basis="counted with the model's own tokenizer, cut at its maximum length",
        output_basis="vectors have no output tokens",
        device_seconds=seconds,
        wall_basis="device seconds on one device; several are faster" if seconds else "",
        notes=(*notes, NO_THROUGHPUT if throughput is None else throughput.basis),
        lengths=TextLengths.of(lengths, len(counts), round(documents.total)),
    )


def _total(frame: Frame, observed: Sequence[Observed], value: Callable[[Measured], int]) -> Estimate:
    clusters = [
        Cluster(o.size, o.members, tuple(0 if m is None else value(m) for m in o.measured)) for o in observed
    ]
    return estimate_total(frame.size, frame.batches, clusters)


def _range(total: Estimate) -> Range:
    return Range(int(total.low), round(total.total), -int(-total.high // 1))


def _seconds(tokens: Estimate, each: Seconds) -> Seconds:
    return Seconds(
        float(tokens.low) * each.low, float(tokens.total) * each.expected, float(tokens.high) * each.high
    )


def _price(
    backend: EmbedderBackend, tokens: Estimate, seconds: Seconds, throughput: Throughput | None
) -> Price:
    """Device time at the backend's price; no hard worst case, because the budget doesn't hold it."""
    each = 0.0 if throughput is None else throughput.seconds.expected

    def amount(value: float) -> Decimal | None:
        return device_charge(backend, value).amount

    return Price(
        low=amount(seconds.low),
        expected=amount(seconds.expected),
        high=amount(seconds.high),
        sampling_low=amount(float(tokens.low) * each),
        sampling_high=amount(float(tokens.high) * each),
    )


def _quantiles(counts: Sequence[int]) -> Quantiles | None:
    if not counts:
        return None
    p5, p50, p95 = (counts[min(len(counts) - 1, int(len(counts) * q))] for q in (0.05, 0.5, 0.95))
    return Quantiles(p5, p50, p95, counts[-1])
