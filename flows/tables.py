"""The tables of a run, as plain rows: batches, costs, failures, routes.

Every row of a table has the same keys (Prefect takes the columns from the first), and a table is
short enough to be read: what failed comes first, and what was left out is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from flows.groups import BatchLine
from flows.words import shortened, usd
from schemas.batches import BackendTotals, BatchReport
from schemas.run import Manifest
from transforms.quote.compare import compare, read_quote
from transforms.store import open_store

MAX_ROWS = 200
_MAX_TEXT = 300
_SHORT_ID = 12

Row = dict[str, str | int]


def batch_rows(lines: Sequence[BatchLine], failed: Sequence[BatchReport]) -> list[Row]:
    """This run's batches, the failed ones first; at most `MAX_ROWS` of them."""
    silent = [BatchLine(-1, f.batch_id, f.attempt, f.state, 0, 0, 0, 0, None, "", f.error) for f in failed]
    ordered = silent + sorted(
        (line for line in lines if not line.is_failed), key=lambda x: (-x.retryable, -x.failures, x.group)
    )
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
        for line in ordered[:MAX_ROWS]
    ]


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


def quote_rows(manifest: Manifest, output: str) -> list[Row]:
    """What was quoted when the run started against what it has cost, at list price; empty without quote."""
    quote = read_quote(open_store(output), manifest.run_id)
    if quote is None:
        return []
    return [
        {
            "route": line.route,
            "quoted": "" if line.quoted is None else usd(line.quoted.expected),
            "likely": "" if line.quoted is None else f"{usd(line.quoted.low)} to {usd(line.quoted.high)}",
            "actual": usd(line.amount),
            "off by": "" if line.off_by is None else f"{line.off_by:+.0%}",
            "verdict": line.verdict,
        }
        for line in compare(quote, manifest)
    ]


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
