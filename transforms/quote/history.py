"""What the answers that an output already holds say about those to come: measured instead of assumed.

The commit records have the sums of every batch, so most of it costs nothing to find out. Rehearsed
answers say nothing: their token counts are made up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import pyarrow as pa

from schemas.batches import BackendTotals, CommitRecord
from schemas.errors import BatchError
from transforms.commit_index import CommitIndex
from transforms.commit_totals import sum_totals
from transforms.decide import decide
from transforms.quote.estimate import Cluster, Estimate, estimate_total
from transforms.quote.sampling import Measure
from transforms.quote.tokens import TokenRatio
from transforms.quote.values import Baseline, Seconds
from transforms.read import BatchReader
from transforms.route import Rules

LEAST_ANSWERS = 20
"""Fewer answers than this are not taken as a measurement."""
_RATIO_BATCHES = 8


@dataclass(frozen=True, slots=True)
class AnswerLength:
    """Output tokens of one document: likely least, expected, likely most, and where that comes from."""

    low: int
    expected: int
    high: int
    basis: str


def measured_answers(
    commits: Iterable[CommitRecord], route: str, backend: str, most: int
) -> AnswerLength | None:
    """Mean output tokens of a document as billed so far, thinking tokens too; None with too few answers.

    The interval is that of the mean (batches as clusters, Student's t), not of a single answer; `most`
    bounds it.
    """
    found = [t for t in _totals(commits, route, backend) if t.basis == "tokens" and t.documents]
    documents = sum(t.documents for t in found)
    if documents < LEAST_ANSWERS:
        return None
    mean = _mean([(t.documents, t.output_tokens) for t in found])
    return AnswerLength(
        int(mean.low),
        min(most, round(mean.total)),
        min(most, -int(-mean.high // 1)),
        f"measured: {documents:,} documents of {backend} in this output took {float(mean.total):,.1f} output "
        "tokens each",
    )


def measured_seconds(commits: Iterable[CommitRecord], route: str, backend: str) -> Seconds | None:
    """Device seconds per token as embedded so far; None with too few documents."""
    found = [t for t in _totals(commits, route, backend) if t.device_seconds and t.input_tokens]
    if sum(t.documents for t in found) < LEAST_ANSWERS:
        return None
    mean = _mean([(t.input_tokens, Fraction(t.device_seconds)) for t in found])
    return Seconds(float(mean.low), float(mean.total), float(mean.high))


def _totals(commits: Iterable[CommitRecord], route: str, backend: str) -> list[BackendTotals]:
    totals = [c.totals.get(route, {}).get(backend) for c in commits if not c.rehearsal]
    return [t for t in totals if t is not None]


def _mean(pairs: Sequence[tuple[int, int | Fraction]]) -> Estimate:
    """Mean of the second per unit of the first, with its interval; pairs are clusters of many more."""
    clusters = [Cluster(units, 1, (Fraction(value),)) for units, value in pairs]
    if len(clusters) == 1:  # nothing says how batches differ: half and double
        value = clusters[0].total / clusters[0].size
        return Estimate(value, value / 2, value * 2)
    size = sum(cluster.size for cluster in clusters)
    many = estimate_total(size * 1000, len(clusters) * 1000, clusters)
    return Estimate(many.total / size / 1000, many.low / size / 1000, many.high / size / 1000)


def measured_ratio(
    commits: Sequence[CommitRecord],
    schema: pa.Schema,
    rules: Rules,
    route: str,
    backend: str,
    measure: Measure,
) -> TokenRatio | None:
    """Bytes per input token, from batches that were answered whole; None if there is no such batch.

    Renders the requests of a few committed batches again: those of which this backend answered every
    document of the route with one call. So bytes and billed tokens are of the same requests.
    """
    whole = [c for c in commits if _is_whole(c, route, backend)]
    step = max(1, len(whole) // _RATIO_BATCHES)
    reader = BatchReader(schema)
    try:
        pairs = [_sizes(c, reader, rules, route, measure) for c in whole[::step][:_RATIO_BATCHES]]
    finally:
        reader.close()
    known = [
        (size, c.totals[route][backend].input_tokens)
        for c, size in zip(whole[::step], pairs, strict=False)
        if size
    ]
    tokens = sum(count for _, count in known)
    if not tokens or sum(c.totals[route][backend].documents for c in whole) < LEAST_ANSWERS:
        return None
    mean = sum(size for size, _ in known) / tokens
    each = [size / count for size, count in known if count]
    basis = (
        f"measured: {tokens:,} input tokens billed by {backend} in this output, {mean:.2f} UTF-8 bytes each"
    )
    return TokenRatio(min(each) * 0.95, mean, max(each) * 1.05, basis, measured=True)


def _is_whole(record: CommitRecord, route: str, backend: str) -> bool:
    """Whether one attempt answered all it worked on; `_sizes` sees whether that was all of the route."""
    backends = record.totals.get(route, {})
    if record.rehearsal or set(backends) != {backend}:
        return False
    totals = backends[backend]
    in_results = record.results_by_route.get(route, 0)
    return (
        totals.calls == totals.documents == totals.results == in_results > 0
        and not record.failures_by_route.get(route, 0)
        and not totals.ambiguous
        and totals.input_tokens > 0
    )


def _sizes(
    record: CommitRecord, reader: BatchReader, rules: Rules, route: str, measure: Measure
) -> int | None:
    """Bytes of a committed batch's requests on the route; None if they can't be had any more."""
    try:
        batch = decide(rules, record.ref, reader.read(record.ref), None)
    except BatchError:
        return None
    taken = batch.take(frozenset({route}))
    measured = measure([a.chain for _, a in taken], batch.table, [position for position, _ in taken])
    if len(taken) != record.results_by_route[route] or None in measured:
        return None
    return sum(m.text_bytes for m in measured if m is not None)


def baseline_of(index: CommitIndex) -> dict[str, Baseline]:
    """What each route has cost so far, over all attempts."""
    sums: dict[str, Baseline] = {}
    for table in index.tables(("totals",)):
        for (route, backend), totals in sum_totals(table).items():
            sums[route] = add_baseline(sums.get(route, Baseline()), {backend: totals})
    return sums


def add_baseline(before: Baseline, backends: Mapping[str, BackendTotals]) -> Baseline:
    """`before` and some totals."""
    totals = list(backends.values())

    def added(of: Callable[[BackendTotals], int]) -> int:
        return sum(map(of, totals))

    return Baseline(
        before.documents + added(lambda t: t.documents),
        before.input_tokens + added(lambda t: t.input_tokens),
        before.output_tokens + added(lambda t: t.output_tokens),
        before.device_seconds + sum(t.device_seconds for t in totals),
        before.list_amount + sum((Decimal(t.list_amount) for t in totals), Decimal(0)),
        before.unknown + added(lambda t: t.unknown),
    )
