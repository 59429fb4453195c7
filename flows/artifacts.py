"""What an operator sees of a run in the Prefect UI: three tables, a summary, and a bar while it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.groups import BatchLine
from flows.report import end_sentence
from flows.tables import MAX_ROWS, Row, batch_rows, cost_rows, failure_rows, route_rows
from flows.words import batches as batches_text
from flows.words import usd
from schemas.batches import BatchReport
from schemas.run import Manifest, Progress


@contextmanager
def only_a_view(what: str) -> Iterator[None]:
    """Go on when Prefect can't show something: a run is not stopped because nobody can see it."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning(f"{what} could not be shown: {type(error).__name__}: {error}")


class ProgressArtifact:
    """A bar in the UI: finished documents of those that are due."""

    def __init__(self, due: int) -> None:
        self._due = due
        self._guard = threading.Lock()
        self._documents: dict[int, int] = {}
        self._shown = 0.0
        self._id: UUID | None = None
        with only_a_view("the progress bar"):
            made = create_progress_artifact(0.0, key="enrich-progress", description="documents finished")
            self._id = made if isinstance(made, UUID) else None

    def heard(self, progress: Progress) -> None:
        """Note how far a worker is; nothing is sent yet."""
        with self._guard:
            self._documents[progress.group] = progress.documents

    def percent(self) -> float:
        """Share of the due documents that are finished, 0 to 100."""
        with self._guard:
            documents = sum(self._documents.values())
        return min(100.0, 100.0 * documents / self._due) if self._due else 100.0

    def update(self) -> None:
        """Send the bar's state if it has moved."""
        percent = self.percent()
        if self._id is not None and percent != self._shown:
            with only_a_view("the progress bar"):
                update_progress_artifact(self._id, progress=percent)
            self._shown = percent


def publish_artifacts(
    manifest: Manifest, lines: Sequence[BatchLine], failed: Sequence[BatchReport], output: str
) -> None:
    """Create the tables and the summary of a settled run; empty tables are left out.

    The run is settled and its report written by now: without them it is no less complete.
    """
    with only_a_view("the tables"):
        _publish(manifest, lines, failed, output)


def _publish(
    manifest: Manifest, lines: Sequence[BatchLine], failed: Sequence[BatchReport], output: str
) -> None:
    kind = "Rehearsal" if manifest.rehearsal else "Run"
    due = len({line.batch_id for line in lines} | {report.batch_id for report in failed})
    shown = f", {MAX_ROWS} of {due:,} shown, failed ones first" if due > MAX_ROWS else ""
    _table("enrich-batches", batch_rows(lines, failed), f"{kind} {manifest.run_id}: batches{shown}")
    _table("enrich-cost", cost_rows(manifest), f"{kind} {manifest.run_id}: cost by route and backend")
    _table("enrich-failures", failure_rows(manifest), f"{kind} {manifest.run_id}: failures by reason")
    create_markdown_artifact(
        summary_markdown(manifest, output), key="enrich-summary", description=f"{kind} {manifest.run_id}"
    )


def summary_markdown(manifest: Manifest, output: str) -> str:
    """The run on one page, in Markdown."""
    kind = "Rehearsal (nothing was sent to a provider)" if manifest.rehearsal else "Run"
    routes = [
        f"| {row['route']} | {row['results']:,} | {row['failures']:,} |" for row in route_rows(manifest)
    ]
    budget = "none" if manifest.budget_amount is None else usd(manifest.budget_amount)
    unknown = (
        f", and {manifest.unknown_prices:,} documents of unknown price" if manifest.unknown_prices else ""
    )
    return "\n".join(
        [
            f"# {kind} {manifest.run_id}: {manifest.state}",
            "",
            end_sentence(manifest),
            "",
            f"- workload `{manifest.workload}`, version `{manifest.workload_sha256[:12]}`",
            f"- {manifest.rows_in:,} documents in {manifest.input_files:,} files, "
            f"{batches_text(manifest.batches_committed)} of {manifest.batches:,} committed",
            f"- cost {usd(manifest.amount)} (list price {usd(manifest.list_amount)}){unknown}",
            f"- budget {budget}",
            f"- calls of unknown end: {len(manifest.ambiguous):,}",
            f"- output `{output}`",
            "",
            "| route | results | failures |",
            "|---|---|---|",
            *routes,
        ]
    )


def _table(key: str, rows: list[Row], description: str) -> None:
    if rows:
        create_table_artifact([dict(row) for row in rows], key=key, description=description)
