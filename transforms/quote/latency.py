"""How long one call of a hosted model takes: measured in this output, or assumed.

A call's time is that until its first token and that of each token after it. Measured times are those of
single calls as the ledger has them, from sending to the last byte; waits for a place and calls that are
made again are no part of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from schemas.backends import HostedBackend
from schemas.batches import CommitRecord
from schemas.errors import LedgerError
from transforms.call.ledger import fold, scan
from transforms.call.ledgers import read_ledger
from transforms.quote.history import LEAST_ANSWERS, AnswerLength
from transforms.quote.values import Seconds
from transforms.store import Store

_LEDGERS = 4
"""Ledgers of committed batches that are read for one backend: some thousands of calls."""
_TAIL = 0.05


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds until a call's first token, seconds of each output token after it, and where that is from."""

    first: Seconds
    token: Seconds
    basis: str

    def milliseconds(self, answer: AnswerLength, longest_s: float) -> tuple[int, int, int]:
        """Likely least, expected and likely most of one call, which is broken off after `longest_s`."""
        lengths = (answer.low, answer.expected, answer.high)
        firsts = (self.first.low, self.first.expected, self.first.high)
        tokens = (self.token.low, self.token.expected, self.token.high)
        low, expected, high = (
            max(1, round(1000 * min(longest_s, first + length * token)))
            for first, token, length in zip(firsts, tokens, lengths, strict=True)
        )
        return low, expected, high


_SMALL = re.compile(r"nano|mini|lite|flash|haiku|small|luna", re.IGNORECASE)
_ASSUMED = {
    # provider, whether the model is one of its small ones: to the first token, and each one after it
    ("anthropic", True): (Seconds(0.3, 0.7, 5.0), Seconds(1 / 250, 1 / 120, 1 / 30)),
    ("anthropic", False): (Seconds(0.5, 1.5, 10.0), Seconds(1 / 150, 1 / 60, 1 / 20)),
    ("openai", True): (Seconds(0.3, 0.7, 5.0), Seconds(1 / 250, 1 / 120, 1 / 30)),
    ("openai", False): (Seconds(0.4, 1.2, 10.0), Seconds(1 / 200, 1 / 70, 1 / 20)),
    ("gemini", True): (Seconds(0.2, 0.6, 5.0), Seconds(1 / 350, 1 / 150, 1 / 40)),
    ("gemini", False): (Seconds(0.5, 1.5, 10.0), Seconds(1 / 200, 1 / 90, 1 / 20)),
}
"""Nothing that a provider promises, and no measurement: wide on purpose. Short texts answered by a model that
is not busy come near the low end; long texts, thinking and busy hours near the high one."""
_EMBEDDING = Seconds(0.05, 0.3, 3.0)
_NO_TOKENS = Seconds(0.0, 0.0, 0.0)


def assumed_latency(backend: HostedBackend) -> Latency:
    """What is assumed of a backend of which nothing is measured."""
    if backend.operation == "embeddings":
        first, token = _EMBEDDING, _NO_TOKENS
    else:
        first, token = _ASSUMED[backend.provider, _SMALL.search(backend.model) is not None]
    until = f"{first.low:g} to {first.high:g} s ({first.expected:g} expected)"
    speeds = f"{1 / token.high:.0f} to {1 / token.low:.0f}" if token.low else ""
    rate = f" to the first token, then {speeds} a second" if speeds else ""
    return Latency(first, token, f"assumed, not measured: a call takes {until}{rate}")


def measured_latency(
    store: Store | None, commits: Iterable[CommitRecord], route: str, backend: str
) -> Latency | None:
    """What calls of this backend on this route have taken in this output; None with too few of them.

    Expected is their mean, the interval their 5 and 95 %: so that of single calls, not of the mean, for a
    provider's pace is another one on another day. Reads some ledgers, no more than a few.
    """
    if store is None:
        return None
    asked = [c.batch_id for c in commits if not c.rehearsal and _calls(c, route, backend)]
    step = max(1, len(asked) // _LEDGERS)
    found: list[float] = []
    for batch_id in asked[::step][:_LEDGERS]:
        found += _latencies(store, batch_id, route, backend)
    if len(found) < LEAST_ANSWERS:
        return None
    found.sort()
    mean = sum(found) / len(found)
    low, high = found[int(_TAIL * len(found))], found[int((1 - _TAIL) * len(found))]
    basis = f"measured: {len(found):,} calls of {backend} in this output took {mean:.2f} s on average"
    return Latency(Seconds(min(low, mean), mean, max(high, mean)), _NO_TOKENS, basis)


def _calls(record: CommitRecord, route: str, backend: str) -> bool:
    totals = record.totals.get(route, {}).get(backend)
    return totals is not None and totals.calls > 0


def _latencies(store: Store, batch_id: str, route: str, backend: str) -> list[float]:
    """Seconds of the answered calls of a batch that went out one by one."""
    try:
        calls = fold(scan(read_ledger(store, batch_id) or b"")[0], batch_id).calls.values()
    except LedgerError:  # a quote is none the worse without
        return []
    return [
        call.final["latency_ms"] / 1000
        for call in calls
        if (call.route, call.backend, call.end, call.via) == (route, backend, "answered", None)
    ]
