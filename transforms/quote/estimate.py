"""From a sample of batches and of documents in them to a total, with its error.

Two-stage sampling: batches first (the clusters), then documents inside each. Batches of one size are
not needed: totals are estimated by their ratio to the batches' sizes, which are known for all. Sources of
the formulas: W. G. Cochran, Sampling Techniques, 3rd edition, 1977, chapters 6 (ratio estimates),
10 and 11 (subsampling, units of unequal size). With every batch read the first stage adds no error; with
every document of them, there is none at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import sqrt
from statistics import NormalDist

CONFIDENCE = 0.95
METHOD = (
    "two-stage sample: batches drawn at random, one from each equal stretch of the input, then documents "
    "drawn at random inside each; totals by ratio to the batches' known sizes; 95 % intervals by Student's "
    "t with the finite-population correction (Cochran 1977, chapters 6, 10 and 11)"
)
_SMALL_DEGREES = {1: 12.706, 2: 4.303}  # the expansion below is no good there
Number = int | Decimal | Fraction


@dataclass(frozen=True, slots=True)
class Cluster:
    """One batch that was read: its size in the frame, its documents on the route, a sample's values.

    `size` is what is known of every batch of the frame (rows, or documents that the conditions send
    here); `members` counts the documents of the route in this one; `values` has one number for each
    member that was looked at (at least one where there are members).
    """

    size: int
    members: int
    values: tuple[Number, ...]

    @property
    def mean(self) -> Fraction:
        """Mean of the values; zero without any."""
        return self.seen / max(1, len(self.values))

    @property
    def seen(self) -> Fraction:
        """Sum of the values. Exact: amounts have 12 decimals, and Decimal keeps 28 digits."""
        return Fraction(sum(self.values))

    @property
    def total(self) -> Fraction:
        """The batch's estimated total."""
        return self.members * self.mean


@dataclass(frozen=True, slots=True)
class Estimate:
    """A total: the point estimate, and its interval at CONFIDENCE."""

    total: Fraction
    low: Fraction
    high: Fraction

    @property
    def is_exact(self) -> bool:
        """Whether everything was looked at."""
        return self.low == self.high


def estimate_total(frame_size: int, frame_batches: int, clusters: Sequence[Cluster]) -> Estimate:
    """The total over all batches of the frame, from those that were read.

    `frame_size` is the sum of the sizes of all `frame_batches` batches. The interval never goes below
    what the sample itself holds. A frame without rows has the total 0.

    Raises:
        ValueError: there are batches in the frame, and none of them was read.
    """
    if frame_batches == 0 or frame_size == 0:
        return Estimate(Fraction(0), Fraction(0), Fraction(0))
    if not clusters:
        raise ValueError(f"no batch of {frame_batches} was read: nothing can be estimated")
    read_size = sum(cluster.size for cluster in clusters)
    if read_size == 0:
        return Estimate(Fraction(0), Fraction(0), Fraction(0))
    scale = Fraction(frame_size, read_size)
    totals = [cluster.total for cluster in clusters]
    total = scale * sum(totals, Fraction(0))
    between = _between(frame_batches, clusters, [float(value) for value in totals], float(scale))
    within = float(scale) ** 2 * len(clusters) / frame_batches * sum(_within(clusters))
    margin = Fraction(t_quantile(_degrees(frame_batches, clusters)) * sqrt(between + within))
    seen = sum((cluster.seen for cluster in clusters), Fraction(0))
    return Estimate(total, max(total - margin, min(seen, total)), total + margin)


def _between(frame_batches: int, clusters: Sequence[Cluster], totals: Sequence[float], scale: float) -> float:
    """Variance of the total that comes from reading some batches only."""
    read = len(clusters)
    if read == frame_batches:
        return 0.0
    if read < 2:
        return totals[0] ** 2 * scale**2  # one batch says nothing of the others
    ratio = sum(totals) / sum(c.size for c in clusters)
    residuals = [(total - ratio * c.size) ** 2 for total, c in zip(totals, clusters, strict=True)]
    return scale**2 * read * (1 - read / frame_batches) * sum(residuals) / (read - 1)


def _within(clusters: Sequence[Cluster]) -> list[float]:
    """For each batch, the variance of its total that comes from looking at some of its documents only."""
    pooled = _pooled_variance(clusters) if any(len(c.values) == 1 < c.members for c in clusters) else 0.0
    return [
        cluster.members**2
        * (1 - len(cluster.values) / cluster.members)
        * (_variance(cluster.values) if len(cluster.values) > 1 else pooled)
        / len(cluster.values)
        for cluster in clusters
        if cluster.values and len(cluster.values) < cluster.members
    ]


def _variance(values: Sequence[Number]) -> float:
    numbers = [float(value) for value in values]
    mean = sum(numbers) / len(numbers)
    return sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1)


def _pooled_variance(clusters: Sequence[Cluster]) -> float:
    """Variance over the values of all batches, for those of which one value is all there is."""
    values = [value for cluster in clusters for value in cluster.values]
    return _variance(values) if len(values) > 1 else float(values[0]) ** 2 if values else 0.0


def _degrees(frame_batches: int, clusters: Sequence[Cluster]) -> int:
    if len(clusters) < frame_batches:
        return max(1, len(clusters) - 1)
    return max(1, sum(len(c.values) - 1 for c in clusters if 0 < len(c.values) < c.members))


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Two-sided quantile of Student's t: four terms of its expansion around the normal distribution.

    Within 0.5 % from 3 degrees of freedom up. Source: Abramowitz and Stegun, 26.7.5. Below that the
    tabulated values at 95 % are given.
    """
    if degrees in _SMALL_DEGREES:
        return _SMALL_DEGREES[degrees]
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))
