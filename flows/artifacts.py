"""What an operator sees of a settled run in the Prefect UI: a page, and the tables behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.batch_file import write_batch_file
from flows.batch_lines import BatchLines
from flows.groups import GroupOutcome
from flows.links import output_url
from flows.summary import Shown, summary_markdown
from flows.tables import (
    MAX_ROWS,
    Row,
    batch_rows,
    compared,
    failure_rows,
    group_rows,
    spend_rows,
    time_against_quote,
)
from flows.words import batches as batches_text
from flows.worst_first import WorstFirst, worst_first
from schemas.batches import BatchReport
from schemas.run import Manifest


@contextmanager
def only_a_view(what: str) -> Iterator[None]:
    """Go on when Prefect can't show something: a run is not stopped because nobody can see it."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning(f"{what} could not be shown: {type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class Settled:
    """A run at its end. `repair` is the address of the form that repairs it; empty where there is none."""

    manifest: Manifest
    outcomes: Sequence[GroupOutcome]
    failed: Sequence[BatchReport]
    output: str
    repair: str = ""

    def lines(self) -> WorstFirst:
        """Its batches, the worst first."""
        return worst_first(BatchLines.joined(outcome.columns for outcome in self.outcomes), self.failed)


def publish_artifacts(settled: Settled) -> None:
    """Create the page and the tables of a settled run; empty tables are left out.

    The run is settled and its report written by now: without them it is no less complete.
    """
    with only_a_view("the tables"):
        _publish(settled)


def _publish(settled: Settled) -> None:
    manifest, lines = settled.manifest, settled.lines()
    run = f"{'Rehearsal' if manifest.rehearsal else 'Run'} {manifest.run_id}"
    file = write_batch_file(lines, settled.output, manifest.run_id) if lines else ""
    groups = group_rows(settled.outcomes, settled.failed)
    spend, failures = spend_rows(manifest, compared(manifest, settled.output)), failure_rows(manifest)
    _table("enrich-batches", batch_rows(lines), f"{run}: {_batches_shown(len(lines))} All of them: {file}")
    _table("enrich-groups", groups, f"{run}: groups of batches, those that are not through first.")
    _table("enrich-cost", spend, f"{run}: cost by route and backend, against quote and budget.")
    _table("enrich-failures", failures, f"{run}: documents without a result, by reason.")
    timed = time_against_quote(manifest, settled.output)
    shown = Shown(groups, failures, spend, settled.output, settled.repair, file, timed)
    page = summary_markdown(manifest, shown)
    create_markdown_artifact(page, key="enrich-summary", description=run)
    _link("enrich-repair", settled.repair, "Repair this run", f"{run}: the form that repairs it.")
    _link("enrich-output", output_url(settled.output) or "", settled.output, f"{run}: its output.")


def _batches_shown(count: int) -> str:
    if count <= MAX_ROWS:
        return f"{batches_text(count)}, the worst first."
    return f"the worst {MAX_ROWS} of {batches_text(count)}."


def _table(key: str, rows: list[Row], description: str) -> None:
    if rows:
        create_table_artifact([dict(row) for row in rows], key=key, description=description)


def _link(key: str, address: str, text: str, description: str) -> None:
    if address:
        create_link_artifact(address, link_text=text, key=key, description=description)
