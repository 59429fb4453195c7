"""The quote that a run is held to, when it delivers what provider batches have answered meanwhile.

The run in which documents went out was quoted; the one that delivers their answers has nothing left to
pay for them. So it is held to the earlier quote, and to its own for batches of rows that are new.
"""

from __future__ import annotations

from dataclasses import replace

from transforms.quote.budget import add_prices
from transforms.quote.compare import QUOTE_FILE, read_quote
from transforms.quote.values import Quote, Range, RouteQuote, Seconds
from transforms.store import Store


def quote_to_hold(store: Store, run_id: str, quote: Quote) -> Quote:
    """`quote`, made when run `run_id` started, with what of an earlier quote the run is going to deliver."""
    earlier = _earlier(store, run_id, quote.workload_sha256) if quote.batches_collected else None
    if earlier is None:
        return quote
    # what was quoted for the answers was paid and waited for; the time is that of this run alone
    held = _merged(earlier, quote) if quote.batches_new else earlier
    return replace(held, run_seconds=quote.run_seconds, wall_seconds=quote.wall_seconds)


def _earlier(store: Store, run_id: str, workload_sha256: str) -> Quote | None:
    """The newest quote of the runs before; None when there is none of this workload."""
    names = [path.split("/")[1] for path in store.list("runs") if path.endswith(f"/{QUOTE_FILE}")]
    before = max((name for name in names if name < run_id), default=None)
    quote = None if before is None else read_quote(store, before)
    return quote if quote is not None and quote.workload_sha256 == workload_sha256 else None


def _merged(earlier: Quote, fresh: Quote) -> Quote:
    """Both together, since the earlier one was made."""
    before = {route.route: route for route in earlier.routes}
    routes = tuple(_sum(before[r.route], r) if r.route in before else r for r in fresh.routes)
    return replace(
        fresh,
        routes=routes,
        total=add_prices([route.price for route in routes if route.kind == "hosted"]),
        baseline=earlier.baseline,
        notes=(*fresh.notes, f"with the quote of {earlier.made_at}, whose documents are delivered now"),
    )


def _sum(one: RouteQuote, other: RouteQuote) -> RouteQuote:
    return replace(
        other,
        documents=_range(one.documents, other.documents),
        input_tokens=_range(one.input_tokens, other.input_tokens),
        output_tokens=_range(one.output_tokens, other.output_tokens),
        price=add_prices([one.price, other.price]),
        device_seconds=_seconds(one.device_seconds, other.device_seconds),
    )


def _range(one: Range, other: Range) -> Range:
    high = None if one.high is None or other.high is None else one.high + other.high
    return Range(one.low + other.low, one.expected + other.expected, high)


def _seconds(one: Seconds | None, other: Seconds | None) -> Seconds | None:
    if one is None or other is None:
        return None
    return Seconds(one.low + other.low, one.expected + other.expected, one.high + other.high)
