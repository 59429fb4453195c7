"""A manifest as one HTML file that needs nothing else: no script, no font, no address.

Texts from data (ids, messages) are escaped by the template engine, so they stay texts.
"""

from __future__ import annotations

from jinja2 import Environment, StrictUndefined

from flows.report import NUMBERS, cost_sentence, end_sentence, unknown_ends
from flows.tables import Row, cost_rows, device_rows, failure_rows, quote_rows, route_rows, time_against_quote
from flows.words import batches as batches_text
from flows.words import count, usd
from schemas.run import Manifest

_TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
h1 { overflow-wrap: anywhere } .wide { overflow-x: auto }
table { border-collapse: collapse; margin: .5rem 0 2rem } caption { text-align: left; font-weight: 600 }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #d8d8d8; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere } .wide td { overflow-wrap: break-word; max-width: 16rem }
.number { text-align: right; font-variant-numeric: tabular-nums }
.end { padding: .75rem 1rem; border-left: .4rem solid #b26a00; background: #fff7e8 }
.end.complete { border-color: #1f7a3d; background: #eef8f0 }
.rehearsal { font-weight: 600 }
</style>
<h1>{{ title }}</h1>
{% if manifest.rehearsal %}<p class="rehearsal">Rehearsal: every hosted model was answered by a
stand-in on the machine itself; nothing was sent to a provider and nothing was paid.</p>{% endif %}
<p class="end {{ manifest.state }}">{{ end }}</p>
<p>{{ cost }}</p>
<table><caption>Run</caption>
{% for name, value in facts %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
{% for caption, rows in tables if rows %}<div class="wide"><table><caption>{{ caption }}</caption>
<tr>{% for name in rows[0] -%}
<th{% if name in numbers %} class="number"{% endif %}>{{ name }}</th>
{%- endfor %}</tr>
{% for row in rows %}<tr>{% for name, value in row.items() -%}
<td{% if name in numbers %} class="number"{% endif %}>
{{- "{:,}".format(value) if value is number else value }}</td>
{%- endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}</html>
"""


def report_html(manifest: Manifest, output: str) -> str:
    """The report of a run as a self-contained HTML page."""
    kind = "Rehearsal" if manifest.rehearsal else "Run"
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_TEMPLATE)
    tables: list[tuple[str, list[Row]]] = [
        ("Rows by route", route_rows(manifest)),
        ("Failures by reason", failure_rows(manifest)),
        ("Cost by route and backend", cost_rows(manifest)),
        ("Devices, in this run", device_rows(manifest)),
        ("Quote against actual, at list price", quote_rows(manifest, output)),
        (_failed_batches_caption(manifest), _failed_batch_rows(manifest)),
        (_ambiguous_caption(manifest), _ambiguous_rows(manifest)),
    ]
    return template.render(
        title=f"{kind} {manifest.run_id} of {manifest.workload}",
        manifest=manifest,
        end=end_sentence(manifest),
        cost=cost_sentence(manifest),
        facts=_facts(manifest, output),
        tables=tables,
        numbers=NUMBERS,
    )


def _facts(manifest: Manifest, output: str) -> list[tuple[str, str]]:
    return [
        ("workload", f"{manifest.workload}, version {manifest.workload_sha256[:12]}"),
        ("output", output),
        ("started", manifest.started_at),
        ("ended", manifest.ended_at),
        ("time", time_against_quote(manifest, output) or "not quoted"),
        (
            "documents",
            f"{manifest.rows_in:,} in {count(manifest.input_files, 'file')}, "
            f"{manifest.rows_skipped:,} skipped",
        ),
        ("batches", f"{batches_text(manifest.batches_committed)} of {manifest.batches:,} committed"),
        ("skipped files", "; ".join(manifest.skipped_files) or "none"),
        ("budget", "none" if manifest.budget_amount is None else usd(manifest.budget_amount)),
    ]


def _failed_batches_caption(manifest: Manifest) -> str:
    caption = "Batches that were not finished"
    if not manifest.failed_batches_file:
        return caption
    shown, every = len(manifest.failed_batches), manifest.failed_batches_count
    return f"{caption}, the first {shown:,} of {every:,}; all of them: {manifest.failed_batches_file}"


def _failed_batch_rows(manifest: Manifest) -> list[Row]:
    return [
        {
            "batch": b.batch_id,
            "file": b.uri,
            "row group": b.row_group,
            "first row": b.first_row,
            "rows": b.row_count,
            "error": b.error,
        }
        for b in manifest.failed_batches
    ]


def _ambiguous_caption(manifest: Manifest) -> str:
    listed, (number, _) = len(manifest.ambiguous), unknown_ends(manifest)
    return "Calls of unknown end" + (f", {listed:,} of {number:,}" if listed < number else "")


def _ambiguous_rows(manifest: Manifest) -> list[Row]:
    return [
        {
            "batch": a.batch_id,
            "row": a.row,
            "route": a.route,
            "backend": a.backend,
            "cause": a.cause,
            "at most": usd(a.worst_amount),
            "sent at": a.sent_at,
        }
        for a in manifest.ambiguous
    ]
