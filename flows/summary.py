"""A settled run on one page, for whoever was woken by it: what failed, whether a retry helps, what next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flows.report import end_sentence, unknown_ends
from flows.tables import Row, budget_text, route_rows
from flows.words import batches as batches_text
from flows.words import count, usd
from schemas.run import Manifest
from transforms.layout import run_path

_GROUPS_SHOWN = 10
_REASONS_SHOWN = 10
_ESCAPED = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]()<>#+!|~"})


@dataclass(frozen=True, slots=True)
class Shown:
    """The rows of the tables, and where things are. `repair` is empty where nothing repairs the run."""

    groups: Sequence[Row]
    failures: Sequence[Row]
    spend: Sequence[Row]
    output: str
    repair: str = ""
    batch_file: str = ""
    time: str = ""


def summary_markdown(manifest: Manifest, shown: Shown) -> str:
    """The run on one page, in Markdown. Texts from data are escaped, so they stay texts."""
    free = " Nothing was sent to a provider." if manifest.rehearsal else ""
    parts = [
        f"# {'Rehearsal' if manifest.rehearsal else 'Run'} {manifest.state}",
        f"Run `{manifest.run_id}` of workload `{manifest.workload}`.{free}",
        plain(end_sentence(manifest)),
        *_what_next(manifest, shown),
        *_failed_groups(shown.groups),
        *_reasons(shown.failures),
        *_costs(manifest, shown.spend),
        *([plain(shown.time)] if shown.time else []),
        *_routes(manifest),
        *_places(manifest, shown),
    ]
    return "\n\n".join(parts) + "\n"


def plain(text: str | int) -> str:
    """A text that Markdown shows as it is."""
    return str(text).translate(_ESCAPED)


def markdown_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Some columns of rows as a Markdown table; numbers to the right."""
    head = f"| {' | '.join(columns)} |"
    rule = "|".join("---:" if rows and isinstance(rows[0].get(name), int) else "---" for name in columns)
    lines = [f"| {' | '.join(_cell(row[name]) for name in columns)} |" for row in rows]
    return "\n".join([head, f"|{rule}|", *lines])


def _cell(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else plain(value)


def _what_next(manifest: Manifest, shown: Shown) -> list[str]:
    if manifest.state == "complete":
        return []
    form = f"[**the repair form, filled in for this run**]({shown.repair})"
    if manifest.reason_class == "budget":
        return [
            f"**What to do:** have the cap raised, in {form if shown.repair else 'the workload'}. A retry at "
            "the same cap tries nothing that it can't afford."
        ]
    retry = (
        "**What to do:** press *Retry* (the menu ⋮ of this flow run, at the top right): it does what is "
        "missing and nothing else, and nothing that was answered is paid again."
    )
    if not shown.repair:
        return [retry]
    return [f"{retry} To choose failed batches, another backend or a raised cap, use {form}."]


def _failed_groups(groups: Sequence[Row]) -> list[str]:
    bad = [row for row in groups if row["state"] != "ended" or row["retryable"]]
    if not bad:
        return []
    more = (
        f" The first {_GROUPS_SHOWN} of {len(bad)}; all are in the table *enrich-groups*."
        if len(bad) > _GROUPS_SHOWN
        else ""
    )
    columns = ("group", "not committed", "retryable", "in a sentence")
    return [
        f"## Groups with something left to do\n\n{len(bad)} of {len(groups)}.{more}",
        markdown_table(bad[:_GROUPS_SHOWN], columns),
    ]


def _reasons(failures: Sequence[Row]) -> list[str]:
    if not failures:
        return []
    columns = ("reason", "documents", "tried again by itself", "what to do", "for example")
    return ["## Documents without a result", markdown_table(failures[:_REASONS_SHOWN], columns)]


def _costs(manifest: Manifest, spend: Sequence[Row]) -> list[str]:
    if not spend:
        return []
    columns = ("route", "backend", "calls", "cost", "list price", "quoted", "this run", "verdict")
    unknown = (
        f" {manifest.unknown_prices:,} documents are of unknown price." if manifest.unknown_prices else ""
    )
    return [
        "## Cost",
        f"{usd(manifest.amount)} (list price {usd(manifest.list_amount)}).{unknown} "
        f"Budget: {plain(budget_text(manifest))}. Calls of unknown end: {unknown_ends(manifest)[0]:,}.",
        markdown_table(spend, columns),
    ]


def _routes(manifest: Manifest) -> list[str]:
    rows = route_rows(manifest)
    if not rows:
        return []
    return ["## Documents by route", markdown_table(rows, ("route", "results", "failures"))]


def _places(manifest: Manifest, shown: Shown) -> list[str]:
    batches = f"- every batch: `{shown.batch_file}`\n" if shown.batch_file else ""
    return [
        "## Where it is",
        f"- output: `{shown.output}`\n"
        f"- report: `{shown.output}/{run_path(manifest.run_id, 'report.html')}`\n{batches}"
        f"- workload `{manifest.workload}`, version `{manifest.workload_sha256[:12]}`\n"
        f"- {count(manifest.rows_in, 'document')} in {count(manifest.input_files, 'file')}, "
        f"{batches_text(manifest.batches_committed)} of {manifest.batches:,} committed",
    ]
