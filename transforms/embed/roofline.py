"""From what a compiler says of a program to documents a second, price and energy: arithmetic, no JAX."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from transforms.embed.chips import Chip

FLOAT32_PASSES = 6
"""Products of bfloat16 that a TPU makes of one exact product of float32 (`jax.lax.Precision.HIGHEST`)."""
LEAST_SHARE = 0.4
"""Share of the bound that is expected at least. Assumed, not measured: the compiler's own cycle counts for
all-MiniLM-L6-v2 on v5e come to somewhat less than half of it, see .github/adr/019-accelerators.md."""
FILLED = 0.97
"""Share of a step's slots that hold tokens, as the packing reaches it on skewed lengths."""
_HOUR, _MILLION = 3600, 1_000_000


@dataclass(frozen=True, slots=True)
class Program:
    """One compiled step on one device. `exchanged` are bytes that it sends to the devices of its copy."""

    length: int
    tokens: int
    flops: float
    bytes: float
    exchanged: float = 0.0


@dataclass(frozen=True, slots=True)
class Bound:
    """The least time of a step: the longest of what its parts take where nothing else is waited for."""

    compute_seconds: float
    memory_seconds: float
    exchange_seconds: float

    @property
    def seconds(self) -> float:
        """The least time; an exchange between devices waits for products and they wait for it."""
        return max(self.compute_seconds, self.memory_seconds) + self.exchange_seconds

    @property
    def by(self) -> str:
        """What the step waits for most."""
        parts = {
            "compute": self.compute_seconds,
            "memory": self.memory_seconds,
            "exchange": self.exchange_seconds,
        }
        return max(parts, key=lambda name: parts[name])


def bound_of(program: Program, chip: Chip, dtype: str) -> Bound:
    """The roofline (Williams et al. 2009, doi:10.1145/1498765.1498785) of a step on one device of a chip."""
    peak = chip.flops / chip.cores / (FLOAT32_PASSES if dtype == "float32" else 1)
    return Bound(
        program.flops / peak,
        program.bytes / (chip.bandwidth / chip.cores),
        program.exchanged / (chip.interconnect / chip.cores),
    )


def exchanged_bytes(layers: int, dim: int, tokens: int, parts: int) -> float:
    """Bytes that each device sends in a step: two sums of float32 a layer, and the token embeddings.

    A ring sends (parts - 1) / parts of the values twice for a sum and once for gathering them (Thakur et
    al. 2005, doi:10.1177/1094342005051521).
    """
    return (2 * 2 * layers + 1) * (parts - 1) / parts * tokens * dim * 4


@dataclass(frozen=True, slots=True)
class Interval:
    """A least and a most."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a topology does with a step, as intervals from `LEAST_SHARE` of the bound to all of it."""

    tokens_per_second: Interval
    documents_per_second: Interval
    usd_per_million_tokens: tuple[Decimal, Decimal] | None
    wh_per_million_tokens: Interval


def estimate(
    bound: Bound,
    program: Program,
    *,
    copies: int,
    chips: int,
    document_tokens: float,
    usd_per_chip_hour: Decimal | None,
    watts: tuple[float, float],
) -> Estimate:
    """Rates, price and energy of all chips together.

    Args:
        bound: the least time of `program`.
        program: a step of one copy of the model.
        copies: copies of the model that work side by side.
        chips: chips that are paid for and draw power.
        document_tokens: tokens of a document on average.
        usd_per_chip_hour: None: unknown.
        watts: of a chip, least and most.
    """
    return estimate_rate(
        copies * program.tokens * FILLED / bound.seconds,
        chips=chips,
        document_tokens=document_tokens,
        usd_per_chip_hour=usd_per_chip_hour,
        watts=watts,
    )


def estimate_rate(
    most: float,
    *,
    chips: int,
    document_tokens: float,
    usd_per_chip_hour: Decimal | None,
    watts: tuple[float, float],
) -> Estimate:
    """The same from the tokens a second that all chips together do at most, by their bounds."""
    rate = Interval(LEAST_SHARE * most, most)
    hours = Interval(_MILLION / rate.high / _HOUR, _MILLION / rate.low / _HOUR)
    dollars = None
    if usd_per_chip_hour is not None:
        hourly = usd_per_chip_hour * chips
        dollars = (_money(hourly, hours.low), _money(hourly, hours.high))
    return Estimate(
        tokens_per_second=rate,
        documents_per_second=Interval(rate.low / document_tokens, rate.high / document_tokens),
        usd_per_million_tokens=dollars,
        wh_per_million_tokens=Interval(watts[0] * chips * hours.low, watts[1] * chips * hours.high),
    )


def _money(hourly: Decimal, hours: float) -> Decimal:
    return (hourly * Decimal(repr(hours))).quantize(Decimal("0.00000001"))
