"""The tables of a run, as plain rows: batches, costs, failures, routes.

Every row of a table has the same keys (Prefect takes the columns from the first), and a table is
short enough to be read: what failed comes first, and what was left out is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import islice

import numpy as np

from flows.batch_lines import BatchLine, BatchLines
from flows.groups import GroupOutcome
from flows.words import duration, shortened, span, usd
from schemas.batches import BackendTotals, BatchReport
from schemas.run import Manifest
from transforms.attempt_keys import places_of
from transforms.batch_ids import ids_in
from transforms.quote.compare import Comparison, compare, compare_time, read_quote
from transforms.quote.values import Price
from transforms.settle import against_caps
from transforms.store import open_store
from transforms.unfinished import Unfinished

MAX_ROWS = 200
_MAX_TEXT = 300
_SHORT_ID = 12

Row = dict[str, str | int]


def batch_rows(ordered: Iterable[BatchLine]) -> list[Row]:
    """The first `MAX_ROWS` of a run's batches."""
    return [
        {
            "batch": line.batch_id[:_SHORT_ID],
            "attempt": line.attempt,
            "state": line.state,
            "rows": line.rows,
            "results": line.results,
            "failures": line.failures,
            "retryable": line.retryable,
            "cost": "" if line.is_failed else usd(line.amount),
            "file": line.uri.rsplit("/", 1)[-1],
            "error": shortened(line.error, _MAX_TEXT),
        }
        for line in islice(ordered, MAX_ROWS)
    ]


def group_rows(outcomes: Sequence[GroupOutcome], failed: Sequence[BatchReport]) -> list[Row]:
    """One row for each group, those that are not through first: what a task run of the flow stands for."""
    missing = _missing(outcomes, failed)
    return [
        {
            "group": f"group-{outcome.group:04d}",
            "state": "ended" if outcome.is_good else "not through",
            "not committed": missing[outcome.group],
            "retryable": _retryable(outcome),
            "cost": _cost_of(outcome.columns.committed()),
            "in a sentence": shortened(outcome.sentence(), _MAX_TEXT),
            "batches": len(outcome.columns),
            "documents": outcome.columns.total("rows"),
            "results": outcome.columns.total("results"),
            "failures": outcome.columns.total("failures"),
        }
        for outcome in sorted(outcomes, key=lambda o: (o.is_good, -_retryable(o), o.group))
    ]


def _missing(outcomes: Sequence[GroupOutcome], failed: Sequence[BatchReport]) -> dict[int, int]:
    """How many batches that each group spoke of are not committed."""
    if not outcomes:
        return {}
    every = BatchLines.joined(outcome.columns for outcome in outcomes)
    missing = np.sort(ids_in(Unfinished.of(failed).batches))
    ends = np.cumsum([len(outcome.columns) for outcome in outcomes])
    pieces = np.split(places_of(ids_in(every.batches), missing) >= 0, ends[:-1])
    return {outcome.group: int(piece.sum()) for outcome, piece in zip(outcomes, pieces, strict=True)}


def _retryable(outcome: GroupOutcome) -> int:
    return outcome.columns.total("retryable")


def _cost_of(lines: BatchLines) -> str:
    known, is_all = lines.amount()
    return usd(known) if is_all else f"{usd(known)} + unknown"


def route_rows(manifest: Manifest) -> list[Row]:
    """Results and failures by route."""
    names = sorted(set(manifest.results_by_route) | set(manifest.failures_by_route))
    return [
        {
            "route": name or "(none)",
            "results": manifest.results_by_route.get(name, 0),
            "failures": manifest.failures_by_route.get(name, 0),
        }
        for name in names
    ]


def compared(manifest: Manifest, output: str) -> list[Comparison]:
    """What a run has cost against its quote, route by route; empty without a quote."""
    quote = read_quote(open_store(output), manifest.run_id)
    return [] if quote is None else compare(quote, manifest)


def quote_rows(manifest: Manifest, output: str) -> list[Row]:
    """What was quoted when the run started against what it has cost, at list price; empty without quote."""
    return [
        {
            "route": line.route,
            "quoted": "" if line.quoted is None else usd(line.quoted.expected),
            "likely": "" if line.quoted is None else _likely(line.quoted),
            "actual": usd(line.amount),
            "off by": "" if line.off_by is None else f"{line.off_by:+.0%}",
            "verdict": line.verdict,
        }
        for line in compared(manifest, output)
    ]


def time_against_quote(manifest: Manifest, output: str) -> str:
    """How long the run took against its quote; nothing without one."""
    quote = read_quote(open_store(output), manifest.run_id)
    found = None if quote is None else compare_time(quote, manifest)
    if found is None:
        return ""
    quoted = f"{duration(found.quoted.expected)} (likely {span(found.quoted.low, found.quoted.high)})"
    real = " of a real run" if manifest.rehearsal else ""
    return f"It took {duration(found.seconds)}; the quote{real} said {quoted}: {found.verdict}."


def cost_rows(manifest: Manifest) -> list[Row]:
    """Calls, tokens and money by route and backend; an unknown price is said to be unknown."""
    return [
        {
            "route": route or "(none)",
            "backend": backend or "(none)",
            "documents": totals.documents,
            "calls": totals.calls,
            "replayed": totals.replayed,
            "input tokens": totals.input_tokens,
            "output tokens": totals.output_tokens,
            "device seconds": f"{totals.device_seconds:.1f}" if totals.device_seconds else "",
            "cost": _cost(totals, totals.amount),
            "list price": _cost(totals, totals.list_amount),
            "basis": totals.basis,
        }
        for route, backends in sorted(manifest.totals.items())
        for backend, totals in sorted(backends.items())
    ]


def device_rows(manifest: Manifest) -> list[Row]:
    """What this run's embedders did with their devices, by route."""
    return [
        {
            "route": route,
            "texts": use.texts,
            "tokens": use.tokens,
            "steps": use.steps,
            "device seconds": f"{use.device_seconds:.1f}",
            "padding": f"{use.padding_share:.1%}",
            "idle": f"{use.idle_share:.1%}",
            "warm-up seconds": f"{use.warm_up_seconds:.1f}",
            "programs": use.programs,
            "compiled late": use.late_programs,
        }
        for route, use in sorted(manifest.devices.items())
    ]


def recompiled(manifest: Manifest) -> str:
    """A sentence when an embedder compiled in steady state, else nothing."""
    found = [
        f"{use.steady_programs} for {r}" for r, use in sorted(manifest.devices.items()) if use.steady_programs
    ]
    if not found:
        return ""
    return (
        f"Programs were compiled in steady state ({', '.join(found)}), and documents waited for them: "
        "their lengths were not those of the first ones."
    )


def spend_rows(manifest: Manifest, comparisons: Sequence[Comparison]) -> list[Row]:
    """The cost by route and backend, each route's against its quote, and all of it against the budget.

    A quote is of what was due when the run started, at list price; costs are those of the whole output.
    """
    by_route = {line.route: line for line in comparisons}
    rows: list[Row] = []
    for row in cost_rows(manifest):
        line = by_route.pop(str(row["route"]), None)  # on the first backend of the route
        rows.append({**row, **_quoted(line), "budget": ""})
    total: Row = dict.fromkeys(rows[0], "") if rows else {}
    if total:
        cost = usd(manifest.amount) + (" + unknown" if manifest.unknown_prices else "")
        sums = {name: sum(int(row[name]) for row in rows) for name in ("documents", "calls", "replayed")}
        total |= {"route": "all", "cost": cost, "list price": usd(manifest.list_amount), **sums}
        rows.append({**total, "budget": budget_text(manifest)})
    return rows


def budget_text(manifest: Manifest) -> str:
    """`$1.25 of $5.00 (25 %)`: what counts against the cap, calls of unknown end at their worst."""
    if manifest.budget_amount is None:
        return "no cap"
    cap, spent = Decimal(manifest.budget_amount), against_caps(manifest.totals)
    share = f" ({spent / cap:.0%})".replace("%", " %") if cap else ""
    return f"{usd(spent)} of {usd(cap)}{share}"


def _likely(price: Price) -> str:
    """`$1.00 to $2.00`, or once where both ends are written alike."""
    return " to ".join(dict.fromkeys((usd(price.low), usd(price.high))))


def _quoted(line: Comparison | None) -> Row:
    if line is None:
        return {"quoted": "", "likely": "", "this run": "", "verdict": ""}
    price = line.quoted
    return {
        "quoted": "" if price is None else usd(price.expected),
        "likely": "" if price is None else _likely(price),
        "this run": usd(line.amount),
        "verdict": line.verdict,
    }


def failure_rows(manifest: Manifest) -> list[Row]:
    """Failures by reason, the most frequent first, with a remedy and a few document ids."""
    groups = sorted(manifest.failure_groups, key=lambda g: (-g.count, g.error_class))
    return [
        {
            "reason": group.error_class,
            "documents": group.count,
            "tried again by itself": "yes" if group.retryable else "no",
            "meaning": group.meaning,
            "what to do": group.remedy,
            "for example": shortened(", ".join(group.example_ids), _MAX_TEXT),
            "message": shortened(group.example_message, _MAX_TEXT),
        }
        for group in groups
    ]


def _cost(totals: BackendTotals, amount: str) -> str:
    """The amount; where some documents have no price it is said, and where none has one it is unknown."""
    if not totals.unknown:
        return usd(amount)
    if Decimal(amount) == 0:
        return "unknown"
    return f"{usd(amount)} + unknown for {totals.unknown:,}"
