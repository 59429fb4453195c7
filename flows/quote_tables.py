"""A quote in sentences and rows of tables, the same wherever it is shown."""

from __future__ import annotations

from flows.tables import Row
from flows.words import batches, count, duration, span, usd
from transforms.quote.values import Alternative, Price, Quote, Range, RouteQuote, Seconds

_WAYS = {
    "chain": "another backend of the chain",
    "model": "another model",
    "online": "online",
    "batch": "provider batches",
    "cache": "prompt cache",
}


def due_sentence(quote: Quote) -> str:
    """What is due, and how it was looked at."""
    if not quote.rows_due and quote.waiting:
        return f"Nothing is due now: {count(quote.waiting, 'request')} wait in provider batches."
    if not quote.rows_due:
        return f"Nothing is due: all of {count(quote.rows_total, 'row')} is done."
    done = quote.batches_total - quote.batches_due
    already = f" ({batches(done)} already done)" if done else ""
    due = (
        f"{count(quote.rows_due, 'row')} of {quote.rows_total:,} {'is' if quote.rows_due == 1 else 'are'} due"
    )
    return f"{due} in {batches(quote.batches_due)}{already}; {quote.routing_sentence}."


def basis_lines(quote: Quote) -> list[str]:
    """Where the figures come from: bases, remarks, method, assumptions."""
    lines = []
    for route in quote.routes:
        lines += [f"{route.route}: input tokens: {route.input_basis}"]
        lines += [f"{route.route}: output tokens: {route.output_basis}"] if route.kind == "hosted" else []
        lines += [f"{route.route}: time: {route.wall_basis}"] if route.wall_basis else []
        lines += [f"{route.route}: {note}" for note in route.notes]
    if quote.not_sent:
        kinds = ", ".join(f"{name} {number:,}" for name, number in quote.not_sent.items())
        about = "" if quote.routing == "every row" else "about "
        lines.append(f"will not be sent: {about}{kinds}")
    lines += [f"note: {note}" for note in quote.notes]
    lines.append(f"method: {quote.method} (seed {quote.seed}, {quote.sample:,} documents a route)")
    return [*lines, *(f"assumed: {assumption}" for assumption in quote.assumptions)]


def range_text(value: Range) -> str:
    """`12 … 15 … 20`, or one number where all are the same; no upper end is `?`."""
    if value.low == value.high:
        return f"{value.low:,}"
    high = "?" if value.high is None else f"{value.high:,}"
    return f"{value.low:,} … {value.expected:,} … {high}"


def size_row(route: RouteQuote) -> Row:
    """How much is due on a route, as a row of a table."""
    each = route.per_document
    seconds = route.device_seconds
    return {
        "route": route.route,
        "first choice": route.model,
        "documents": range_text(route.documents),
        "looked at": f"{route.sampled:,}",
        "input tokens": range_text(route.input_tokens),
        "of a document (5, 50, 95 %, most)": ""
        if each is None
        else f"{each.p5:,}, {each.p50:,}, {each.p95:,}, {each.most:,}",
        "output tokens": range_text(route.output_tokens),
        "device time": "" if seconds is None else f"{duration(seconds.low)} … {duration(seconds.high)}",
    }


def time_row(route: RouteQuote) -> Row:
    """How long a route takes if it runs alone, as a row of a table."""
    at_a_time = "" if route.calls_at_a_time is None else f"{route.calls_at_a_time:,}"
    calls = "" if route.calls is None else range_text(route.calls)
    return {
        "route": route.route,
        "calls": calls,
        "calls at a time": at_a_time,
        **_time_cells(route.wall_seconds),
    }


def run_time_rows(quote: Quote) -> list[Row]:
    """How long the run takes; and, with provider batches, how long it is until all answers are there."""
    nothing: Row = {"calls": "", "calls at a time": ""}
    rows: list[Row] = [{"route": "the run", **nothing, **_time_cells(quote.run_seconds)}]
    if quote.wall_seconds != quote.run_seconds:
        rows.append({"route": "all answers", **nothing, **_time_cells(quote.wall_seconds)})
    return rows


def time_sentence(quote: Quote) -> str:
    """`The run takes about 3 min 05 s (likely 40 s to 1 h 10 min).`; nothing where it is not known."""
    seconds = quote.run_seconds
    if seconds is None or not quote.rows_due:
        return ""
    text = f"The run takes about {duration(seconds.expected)} (likely {span(seconds.low, seconds.high)})."
    if quote.wall_seconds is None or quote.wall_seconds == seconds:
        return text
    return f"{text} Answers of provider batches come within {duration(quote.wall_seconds.high)}."


def _time_cells(seconds: Seconds | None) -> Row:
    names = ("likely least", "expected", "likely most")
    if seconds is None:
        return dict.fromkeys(names, "unknown")
    times = (seconds.low, seconds.expected, seconds.high)
    return {name: duration(value) for name, value in zip(names, times, strict=True)}


def price_row(route: RouteQuote) -> Row:
    """What a route would cost, as a row of a table."""
    return {"route": route.route, **_price_cells(route.price), "source": route.price_source or "unknown"}


def total_row(quote: Quote) -> list[Row]:
    """What all hosted routes would cost together; nothing when there is one."""
    hosted = [route for route in quote.routes if route.kind == "hosted"]
    return [{"route": "all hosted", **_price_cells(quote.total), "source": ""}] if len(hosted) > 1 else []


def _price_cells(price: Price) -> Row:
    sampling = f"{usd(price.sampling_low)} … {usd(price.sampling_high)}"
    if price.sampling_low == price.sampling_high:
        sampling = "unknown" if price.sampling_low is None else "none"
    return {
        "likely least": usd(price.low),
        "expected": usd(price.expected),
        "likely most": usd(price.high),
        "worst case": usd(price.worst),
        "sampling error (95 %)": sampling,
    }


def alternative_row(route: RouteQuote, way: Alternative) -> Row:
    """What the same documents would cost another way, as a row of a table."""
    return {
        "route": route.route,
        "way": _WAYS[way.kind],
        "model": f"{way.provider} {way.model}",
        "likely least": usd(way.low),
        "expected": usd(way.expected),
        "likely most": usd(way.high),
        "source": way.source,
        "note": way.note,
    }
