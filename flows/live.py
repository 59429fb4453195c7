"""What an operator sees of a run while it runs: a bar, a page that is kept up to date, and events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from flows.artifacts import only_a_view
from flows.batch_lines import BatchLine
from flows.notice import Notices
from flows.progress import Standing, Tally
from flows.summary import plain
from flows.words import batches as batches_text
from flows.words import count, duration, usd
from schemas.run import Progress
from transforms.plan import Plan

_PAGE_EVERY_S = 10.0  # a new version of the page is a record on the server; the bar is the same record
_ERRORS_SHOWN = 10


@dataclass(slots=True)
class _Failed:
    """The batches that have failed so far, and the first few errors."""

    batches: int = 0
    errors: list[str] = field(default_factory=list)


class LiveView:
    """Follows a run's workers and shows how far it is. Methods may be called from several threads.

    `update` is what talks to the server: call it now and then, and once at the end.
    """

    def __init__(
        self, plan: Plan, rehearsal: bool, notices: Notices, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan = plan
        self._notices = notices
        self._clock = clock
        self._tally = Tally(plan, rehearsal, clock)
        self._guard = threading.Lock()
        self._failed = _Failed()
        self._shown = 0.0
        self._page_at = clock()
        self._page = ""
        self._bar_id: UUID | None = None
        self._page_id: UUID | None = None
        with only_a_view("the progress bar"):
            made = create_progress_artifact(0.0, key="enrich-progress", description="documents finished")
            self._bar_id = made if isinstance(made, UUID) else None
            self._page = live_markdown(plan, self._tally.standing(), 0, ())
            written = create_markdown_artifact(
                self._page, key="enrich-live", description="how far the run is"
            )
            self._page_id = written if isinstance(written, UUID) else None

    def progressed(self, progress: Progress) -> None:
        """Note how far a worker is; nothing is sent yet."""
        self._tally.progressed(progress)

    def batch_ended(self, line: BatchLine) -> None:
        """Note what became of a batch; nothing is sent yet."""
        self._tally.batch_ended(line)
        self._notices.batch_ended(line)
        if line.is_failed:
            with self._guard:
                self._failed.batches += 1
                if len(self._failed.errors) < _ERRORS_SHOWN:
                    self._failed.errors.append(line.error)

    def update(self, *, last: bool = False) -> None:
        """Send what has moved since the last time, and the events that are due."""
        standing = self._tally.standing()
        with only_a_view("an event"):
            self._notices.look(standing)
        with only_a_view("the progress bar"):
            self._move_bar(round(100.0 * standing.share, 1))
        if last or self._clock() - self._page_at >= _PAGE_EVERY_S:
            self._page_at = self._clock()
            with only_a_view("the live page"):
                self._write_page(standing)

    def _move_bar(self, percent: float) -> None:
        if self._bar_id is not None and percent != self._shown:
            update_progress_artifact(self._bar_id, progress=percent)
            self._shown = percent

    def _write_page(self, standing: Standing) -> None:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import ArtifactUpdate

        with self._guard:
            page = live_markdown(self._plan, standing, self._failed.batches, tuple(self._failed.errors))
        if self._page_id is None or page == self._page:
            return
        with get_client(sync_client=True) as client:
            client.update_artifact(self._page_id, ArtifactUpdate(data=page))
        self._page = page


def live_markdown(plan: Plan, standing: Standing, failed: int, errors: tuple[str, ...]) -> str:
    """How far a run is, on a page."""
    kind = "Rehearsal" if standing.rehearsal else "Run"
    cost = (
        f"{usd(standing.amount)} at list price, nothing paid"
        if standing.rehearsal
        else f"{usd(standing.amount)} so far, by this run"
    )
    lines = [
        f"# {kind} {plan.run_id}",
        "",
        "| | |",
        "|---|---|",
        f"| documents | {standing.documents:,} of {standing.documents_due:,} ({standing.share:.0%}) |",
        f"| batches | {standing.batches:,} of {batches_text(standing.batches_due)} |",
        f"| batches that failed | {failed:,} |",
        f"| calls | {standing.calls:,} |",
        f"| cost | {plain(cost)} |",
        f"| pace | {count(round(standing.rate), 'document')} a second |",
        f"| time left | {duration(standing.seconds_left)} |",
    ]
    if standing.soft_passed:
        lines += ["", "**The run has passed its soft budget.**"]
    if errors:
        lines += ["", "## Why batches failed", "", *(f"- {plain(error)}" for error in errors)]
    return "\n".join(lines) + "\n"
