"""A manifest in words and tables, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.tables import (
    Row,
    cost_rows,
    device_rows,
    failure_rows,
    quote_rows,
    recompiled,
    route_rows,
    time_against_quote,
)
from flows.words import batches as batches_text
from flows.words import count, usd
from schemas.run import Manifest

_AMBIGUOUS_SHOWN = 20
NUMBERS = frozenset(
    {
        *("rows", "results", "failures", "documents", "calls", "replayed", "input tokens", "output tokens"),
        *("texts", "tokens", "steps", "padding", "idle", "warm-up seconds", "programs", "compiled late"),
        *("device seconds", "cost", "list price", "quoted", "actual", "off by", "at most"),
        *("attempt", "row", "row group", "first row"),
    }
)
"""Columns that stand on the right."""
NOTHING_DUE = "Nothing was due: no call was made and no result was rewritten."


def end_sentence(manifest: Manifest, *, nothing_due: bool = False) -> str:
    """How the run ended, in one plain sentence (and a second one when there was nothing to do)."""
    prefix = "Rehearsal: " if manifest.rehearsal else ""
    if manifest.state != "complete":
        return f"{prefix}Incomplete: {manifest.reason}"
    done = (
        f"Complete: {count(manifest.results, 'result')} and {count(manifest.failures, 'final failure')} "
        f"from {count(manifest.rows_in, 'document')} in {batches_text(manifest.batches_committed)}."
    )
    return f"{prefix}{NOTHING_DUE} {done}" if nothing_due else f"{prefix}{done}"


def report(manifest: Manifest, output: str, *, nothing_due: bool = False) -> RenderableType:
    """The whole report: rows by route, failures by reason, cost by backend, calls of unknown end, the end."""
    label = " (rehearsal: hosted models were answered by a stand-in)" if manifest.rehearsal else ""
    parts: list[RenderableType] = [
        Text(f"Run {manifest.run_id} of workload {manifest.workload}{label}", style="bold"),
        table("Rows by route", route_rows(manifest)),
    ]
    if manifest.failure_groups:
        parts.append(table("Failures by reason", [_brief(row) for row in failure_rows(manifest)]))
    costs = cost_rows(manifest)
    if costs:
        parts.append(table("Cost by backend", costs))
    devices = device_rows(manifest)
    if devices:
        parts.append(table("Devices, in this run", devices))
    if recompiled(manifest):
        parts.append(Text(recompiled(manifest)))
    quoted = quote_rows(manifest, output)
    if quoted:
        parts.append(table("Quote against actual, at list price", quoted))
    parts.append(Text(cost_sentence(manifest)))
    timed = time_against_quote(manifest, output)
    if timed:
        parts.append(Text(timed))
    if manifest.skipped_files:
        parts.append(Text(f"Skipped files: {', '.join(manifest.skipped_files[:5])}"))
    if manifest.ambiguous:
        parts.append(_ambiguous_table(manifest))
    style = "bold green" if manifest.state == "complete" else "bold yellow"
    parts.append(Text(end_sentence(manifest, nothing_due=nothing_due), style=style))
    parts.append(Text(f"Output: {output}", overflow="fold"))
    return Group(*parts)


def cost_sentence(manifest: Manifest) -> str:
    """What was billed, what is unknown, what remains of the budget. An unknown price is never a zero."""
    text = f"Cost so far: {usd(manifest.amount)}"
    if manifest.rehearsal:
        text = (
            f"Cost: {usd(manifest.amount)} (rehearsal: nothing was paid to a provider); "
            f"at list price it would have been {usd(manifest.list_amount)}"
        )
    if manifest.unknown_prices:
        text += f", and {count(manifest.unknown_prices, 'document')} of unknown price"
    if manifest.budget_amount is not None:
        text += f"; budget {usd(manifest.budget_amount)}"
    if manifest.budget_soft_passed:
        text += f" (warning: above the soft budget of {usd(manifest.budget_soft_amount)})"
    lost, worst = unknown_ends(manifest)
    if lost:
        text += f"; {count(lost, 'call')} of unknown end may have cost up to {worst} more"
    return f"{text}. Calls made by this run: {manifest.calls_by_this_run:,}."


def unknown_ends(manifest: Manifest) -> tuple[int, str]:
    """How many calls have no known end, and the most that they can have cost: the listed ones and the others.

    Unknown if one that is listed has no price.
    """
    listed = [call.worst_amount for call in manifest.ambiguous]
    every = [totals for backends in manifest.totals.values() for totals in backends.values()]
    number = max(len(listed), sum(totals.ambiguous for totals in every))
    if None in listed:
        return number, "an unknown amount"
    amounts = listed if number == len(listed) else [totals.ambiguous_amount for totals in every]
    return number, usd(sum((Decimal(amount) for amount in amounts if amount is not None), Decimal(0)))


def _ambiguous_table(manifest: Manifest) -> Table:
    """The calls that were sent and whose end is not known, as far as they fit."""
    number, _ = unknown_ends(manifest)
    shown: list[Row] = [
        {
            "batch": call.batch_id[:12],
            "row": call.row,
            "route": call.route,
            "backend": call.backend,
            "cause": call.cause,
            "at most": usd(call.worst_amount),
            "sent at": call.sent_at,
        }
        for call in manifest.ambiguous[:_AMBIGUOUS_SHOWN]
    ]
    more = f", {_AMBIGUOUS_SHOWN} of {number:,} shown" if number > _AMBIGUOUS_SHOWN else ""
    return table(f"Calls of unknown end (they may have been billed){more}", shown)


def table(title: str, rows: Sequence[Row]) -> Table:
    """Rows with the same keys as a table for a terminal."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None)
    for name in rows[0] if rows else ():
        made.add_column(name, justify="right" if name in NUMBERS else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(f"{v:,}" if isinstance(v, int) else v) for v in row.values()))
    return made


def console(*, stderr: bool = False) -> Console:
    """Where the command line writes; where it is no terminal plain, tables wide and sentences on one line."""
    made = Console(stderr=stderr, highlight=False)
    if made.is_terminal:
        return made
    return Console(stderr=stderr, highlight=False, width=160, soft_wrap=True, color_system=None)


def _brief(row: Row) -> Row:
    """A failure row without the texts that are too long for a terminal."""
    return {
        k: v for k, v in row.items() if k in ("reason", "documents", "tried again by itself", "what to do")
    }
