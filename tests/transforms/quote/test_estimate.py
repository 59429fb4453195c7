"""Totals from samples: exact where everything was seen, and intervals that hold what they promise."""

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.quote.estimate import Cluster, Estimate, estimate_total, t_quantile
from transforms.quote.population import choose

COUNTS = st.integers(0, 10_000)


def test_a_hand_computed_sample_of_two_batches_of_four() -> None:
    """Sizes 10 each; batch totals 20 and 40: mean 30 a batch, so 120, and residuals of 10 either way.

    Variance: 4² · (1 - 2/4) / 2 · (10² + 10²) / 1 = 800, t with 1 degree 12.706: 120 ± 359.4.
    """
    clusters = [Cluster(10, 10, (2,) * 10), Cluster(10, 10, (4,) * 10)]
    found = estimate_total(40, 4, clusters)
    assert found.total == 120
    assert float(found.high) == pytest.approx(120 + 12.706 * 800**0.5)
    assert found.low == 60  # what the sample itself holds: it can't be less


def test_a_hand_computed_sample_inside_one_batch() -> None:
    """Two of ten documents seen, 1 and 3: mean 2, total 20, variance 10² · (1 - 2/10) · 2 / 2 = 80."""
    found = estimate_total(10, 1, [Cluster(10, 10, (1, 3))])
    assert found.total == 20
    assert float(found.high) == pytest.approx(20 + 12.706 * 80**0.5)


def test_the_ratio_to_sizes_takes_batches_of_unequal_size() -> None:
    found = estimate_total(1000, 3, [Cluster(10, 10, (5,) * 10), Cluster(90, 90, (5,) * 90)])
    assert (found.total, found.low, found.high) == (5000, 5000, 5000)  # five each, without exception


def test_documents_that_are_not_on_the_route_count_for_nothing() -> None:
    found = estimate_total(20, 2, [Cluster(10, 2, (7, 7)), Cluster(10, 0, ())])
    assert found.total == 14
    assert found.is_exact


def test_an_empty_frame_has_the_total_zero() -> None:
    assert estimate_total(0, 0, []) == Estimate(Fraction(0), Fraction(0), Fraction(0))
    assert estimate_total(0, 2, [Cluster(0, 0, ())]).total == 0


def test_nothing_is_made_up_when_no_batch_was_read() -> None:
    with pytest.raises(ValueError, match="no batch of 3 was read"):
        estimate_total(10, 3, [])


def test_one_batch_of_many_says_little_and_the_interval_says_so() -> None:
    found = estimate_total(100, 10, [Cluster(10, 10, (1,) * 10)])
    assert found.total == 100
    assert found.high > 1000


def test_one_value_of_a_batch_borrows_the_spread_of_the_others() -> None:
    alone = estimate_total(20, 2, [Cluster(10, 10, (5,)), Cluster(10, 10, (1, 9))])
    assert alone.total == 100
    assert alone.high > 130


def test_money_stays_exact() -> None:
    cent = Decimal("0.000000000001")
    found = estimate_total(3, 1, [Cluster(3, 3, (cent, cent, cent))])
    assert found.total == Fraction(3, 10**12)


@given(st.lists(st.lists(COUNTS, max_size=6), min_size=1, max_size=6))
def test_a_census_is_the_plain_sum(batches: list[list[int]]) -> None:
    clusters = [Cluster(max(1, len(values)), len(values), tuple(values)) for values in batches]
    found = estimate_total(sum(c.size for c in clusters), len(clusters), clusters)
    assert found.total == sum(map(sum, batches))
    assert found.is_exact


@given(
    st.lists(st.tuples(st.integers(1, 50), st.lists(COUNTS, min_size=1, max_size=5)), min_size=1, max_size=6),
    st.integers(0, 20),
    st.integers(1, 1000),
)
def test_the_estimate_lies_in_its_interval_and_never_below_what_was_seen(
    batches: list[tuple[int, list[int]]], unread: int, factor: int
) -> None:
    clusters = [Cluster(m + len(v), min(m + len(v), len(v) + m // 2), tuple(v)) for m, v in batches]
    read = sum(c.size for c in clusters)
    found = estimate_total(read + unread * 10, len(clusters) + unread, clusters)
    seen = sum(sum(c.values) for c in clusters)
    assert seen <= found.low <= found.total <= found.high
    scaled = [Cluster(c.size, c.members, tuple(v * factor for v in c.values)) for c in clusters]
    assert estimate_total(read + unread * 10, len(clusters) + unread, scaled).total == factor * found.total


@pytest.mark.parametrize(
    ("degrees", "tabulated"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_students_t_is_that_of_the_tables(degrees: int, tabulated: float) -> None:
    assert t_quantile(degrees) == pytest.approx(tabulated, rel=0.002)


def test_students_t_goes_over_into_the_normal_distribution() -> None:
    assert t_quantile(10**9) == pytest.approx(NormalDist().inv_cdf(0.975))


class Corpus:
    """A synthetic input: batches of unequal size, whose documents are alike inside and skewed overall."""

    def __init__(self, seed: int, batches: int, skew: float, alike: float, share: float = 1.0) -> None:
        draw = random.Random(seed)
        self.batches: list[list[int | None]] = []
        for _ in range(batches):
            level = draw.lognormvariate(5, alike)
            rows = draw.choice((40, 60, 60, 60))
            self.batches.append(
                [
                    round(level * draw.lognormvariate(0, skew)) if draw.random() < share else None
                    for _ in range(rows)
                ]
            )

    @property
    def truth(self) -> int:
        return sum(value for batch in self.batches for value in batch if value is not None)

    def estimate(self, most: int, each: int, seed: int) -> Estimate:
        draw = random.Random(seed)
        clusters = []
        for index in choose(len(self.batches), most, seed):
            batch = self.batches[index]
            members = [value for value in batch if value is not None]
            picked = draw.sample(members, min(each, len(members)))
            clusters.append(Cluster(len(batch), len(members), tuple(picked)))
        return estimate_total(sum(map(len, self.batches)), len(self.batches), clusters)


@pytest.mark.parametrize(
    ("batches", "most", "each", "skew", "alike", "share"),
    [
        pytest.param(300, 64, 16, 0.8, 0.0, 1.0, id="documents as they come"),
        pytest.param(300, 64, 16, 0.8, 0.5, 1.0, id="files of their own kind"),
        pytest.param(300, 64, 16, 0.8, 0.3, 0.3, id="a third is on the route"),
        pytest.param(20, 64, 10, 0.8, 0.5, 1.0, id="every batch read"),
    ],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(
    batches: int, most: int, each: int, skew: float, alike: float, share: float
) -> None:
    """200 populations, each sampled once: 95 % nominal. With 200 draws 91 % is 2.6 standard errors below."""
    covered = 0
    for seed in range(200):
        corpus = Corpus(seed, batches, skew, alike, share)
        found = corpus.estimate(most, each, seed)
        covered += found.low <= corpus.truth <= found.high
    assert 0.91 <= covered / 200 <= 0.995


def test_estimates_are_right_on_average() -> None:
    corpus = Corpus(1, 200, 0.8, 0.5)
    mean = sum(corpus.estimate(64, 8, seed).total for seed in range(150)) / 150
    assert float(mean / corpus.truth) == pytest.approx(1, abs=0.02)


def test_a_sorted_input_is_no_trouble_because_each_stretch_is_met() -> None:
    corpus = Corpus(3, 300, 0.5, 0.8)
    corpus.batches.sort(key=lambda batch: sum(v or 0 for v in batch))
    found = [corpus.estimate(64, 16, seed) for seed in range(100)]
    assert sum(f.low <= corpus.truth <= f.high for f in found) >= 95
    assert max(abs(float(f.total / corpus.truth) - 1) for f in found) < 0.1
