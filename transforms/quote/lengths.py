"""The lengths that a run's embedders choose their shapes by: of its own texts, as its quote has sampled them.

They are kept in the output, so that all processes of a run, its resumes and the runs after it compile the
same programs and find them in the cache. A run whose texts are of quite other lengths gets its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from schemas.ids import canonical_json
from schemas.lengths import TextLengths
from transforms.quote.values import Quote
from transforms.store import Store

FOLDER = "lengths"
ENOUGH = 256
"""Documents of a sample that may change what an earlier run has settled."""
ALIKE = 0.25
"""Samples of the same texts differ by less: two of 256 documents by 0.05 to 0.15."""


def settle_lengths(store: Store, run_id: str, quote: Quote) -> dict[str, TextLengths]:
    """The lengths of `known_lengths`; what is new is kept as `lengths/<run_id>.json`."""
    settled = known_lengths(store, quote)
    if settled != _newest(store):
        data = {name: lengths.to_dict() for name, lengths in settled.items()}
        store.create(f"{FOLDER}/{run_id}.json", canonical_json(data))
    return settled


def known_lengths(store: Store | None, quote: Quote) -> dict[str, TextLengths]:
    """The lengths by embedder's backend: those that the output has, unless the quote's texts are others.

    Without a store, the quote's own.
    """
    kept = {} if store is None else _newest(store)
    settled = dict(kept)
    for name, fresh in _sampled(quote).items():
        before = kept.get(name)
        if before is None or (fresh.sampled >= ENOUGH and fresh.distance(before) > ALIKE):
            settled[name] = fresh
    return settled


def _sampled(quote: Quote) -> dict[str, TextLengths]:
    found: dict[str, list[TextLengths]] = {}
    for route in quote.routes:
        if route.lengths is not None and route.lengths.counts:
            found.setdefault(route.backends[0], []).append(route.lengths)
    return {name: TextLengths.merged(parts) for name, parts in found.items()}


def _newest(store: Store) -> Mapping[str, TextLengths]:
    newest = max(store.list(FOLDER), default=None)  # run ids sort by their time
    if newest is None:
        return {}
    return {name: TextLengths.from_dict(data) for name, data in json.loads(store.read(newest)).items()}
