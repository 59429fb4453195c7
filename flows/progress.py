"""How far a run is: a live bar on a terminal, a plain line every few seconds elsewhere.

Everything goes to standard error, so that standard output is the command's answer alone.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.batch_lines import BatchLine
from flows.words import batches as batches_text
from flows.words import count, duration, usd
from schemas.run import Progress
from transforms.plan import Plan

LINE_EVERY_S = 5.0
FAILED_SHOWN = 10
"""Batches that failed, each with its reason, while a run goes on."""

_WINDOW_S = 30.0
_BAR_WIDTH = 40
_REFRESH_PER_SECOND = 4


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands. `rate` is in documents a second over the last half minute."""

    rehearsal: bool
    documents: int
    documents_due: int
    batches: int
    batches_due: int
    batches_failed: int
    calls: int
    amount: Decimal
    rate: float
    seconds_left: float | None
    soft_passed: bool = False

    @property
    def share(self) -> float:
        """The part of the due documents that is finished, 0 to 1."""
        return min(1.0, self.documents / self.documents_due) if self.documents_due else 1.0

    def line(self) -> str:
        """The standing on one line."""
        label = "rehearsal: " if self.rehearsal else ""
        failed = f" ({self.batches_failed:,} failed)" if self.batches_failed else ""
        cost = (
            f"{usd(self.amount)} at list price, nothing paid"
            if self.rehearsal
            else f"{usd(self.amount)} so far"
        )
        warning = " (above the soft budget)" if self.soft_passed else ""
        return (
            f"{label}{self.documents:,}/{self.documents_due:,} documents, "
            f"{self.batches:,}/{batches_text(self.batches_due)}{failed}, {count(self.calls, 'call')}, "
            f"{cost}{warning}, {self.rate:,.0f}/s, {duration(self.seconds_left)} left"
        )


class Tally:
    """Adds up what the workers say. Safe to use from several threads; the clock is injected.

    Workers count a document once for each of its routes. Of batches that have ended it is known how many
    documents that were; those under way are taken to have as many routes.
    """

    def __init__(self, plan: Plan, rehearsal: bool, clock: Callable[[], float]) -> None:
        self._plan = plan
        self._rehearsal = rehearsal
        self._clock = clock
        self._guard = threading.Lock()
        self._newest: dict[int, Progress] = {}
        self._ended = 0
        self._failed = 0
        self._rows = self._pairs = self._most = 0  # documents of ended batches, the same with each route
        self._history: deque[tuple[float, int]] = deque([(clock(), 0)])

    def progressed(self, progress: Progress) -> None:
        """A worker says how far it is; its counts are cumulative."""
        with self._guard:
            self._newest[progress.group] = progress
            now = self._clock()
            self._history.append((now, self._documents()))
            while len(self._history) > 2 and self._history[1][0] <= now - _WINDOW_S:
                self._history.popleft()

    def batch_ended(self, line: BatchLine) -> None:
        """A worker is through with a batch."""
        with self._guard:
            self._ended += 1
            self._failed += line.is_failed
            self._rows += line.rows
            self._pairs += line.results + line.failures

    def standing(self) -> Standing:
        """Where the run stands now."""
        with self._guard:
            documents = self._documents()
            first_at, first = self._history[0]
            elapsed = self._clock() - first_at
            rate = (documents - first) / elapsed if elapsed > 0 else 0.0
            due = self._plan.rows_due
            return Standing(
                rehearsal=self._rehearsal,
                documents=documents,
                documents_due=due,
                batches=self._ended,
                batches_due=len(self._plan.refs),
                batches_failed=self._failed,
                calls=sum(p.calls for p in self._newest.values()),
                amount=sum((Decimal(p.amount) for p in self._newest.values()), Decimal(0)),
                rate=rate,
                seconds_left=self._seconds_left(due - documents, rate),
                soft_passed=any(p.soft_passed for p in self._newest.values()),
            )

    def _seconds_left(self, documents: int, rate: float) -> float | None:
        if self._ended >= len(self._plan.refs):  # what is not through by now won't be
            return 0.0
        return documents / rate if rate > 0 else None

    def _documents(self) -> int:
        """Documents that are through; never fewer than it was before."""
        under_way = max(0, sum(p.documents for p in self._newest.values()) - self._pairs)
        routes = max(1.0, self._pairs / self._rows) if self._rows else 1.0
        found = self._rows + int(under_way / routes)
        self._most = max(self._most, min(found, self._plan.rows_due))
        return self._most


class _FailedBatches:
    """What to say of batches that fail: of a cancelled run there may be a million."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def sentence(self, line: BatchLine) -> str:
        """The sentence about a batch that has ended; nothing where there is nothing to say."""
        number = next(self._numbers) if line.is_failed else 0
        if not number or number > FAILED_SHOWN + 1:
            return ""
        if number > FAILED_SHOWN:
            return "further batches failed; `batches.parquet` in the run's folder will list all"
        return f"batch {line.batch_id[:12]} failed: {line.error}"


class LineWatcher:
    """Plain lines, at most one every few seconds; and one for everything worth saying."""

    def __init__(
        self,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        every_s: float = LINE_EVERY_S,
    ) -> None:
        self._write = write
        self._clock = clock
        self._every_s = every_s
        self._tally: Tally | None = None
        self._rehearsal = False
        self._next_at = 0.0
        self._guard = threading.Lock()
        self._failed = _FailedBatches()

    def planned(self, plan: Plan, rehearsal: bool) -> None:
        """See `Watcher`."""
        self._rehearsal = rehearsal
        self._tally = Tally(plan, rehearsal, self._clock)
        self._next_at = self._clock() + self._every_s
        self.say(planned_line(plan))

    def progressed(self, progress: Progress) -> None:
        """See `Watcher`."""
        if self._tally is None:
            return
        self._tally.progressed(progress)
        with self._guard:
            due = self._clock() >= self._next_at
            if due:
                self._next_at = self._clock() + self._every_s
        if due:
            self._write(self._tally.standing().line())

    def batch_ended(self, line: BatchLine) -> None:
        """See `Watcher`."""
        if self._tally is not None:
            self._tally.batch_ended(line)
        sentence = self._failed.sentence(line)
        if sentence:
            self.say(sentence)

    def say(self, text: str) -> None:
        """See `Watcher`."""
        self._write(f"rehearsal: {text}" if self._rehearsal else text)

    def close(self) -> None:
        """Write where the run stood at last, if it got anywhere."""
        if self._tally is not None and self._tally.standing().batches:
            self._write(self._tally.standing().line())


class LiveWatcher:
    """A bar that moves, on a terminal."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._tally: Tally | None = None
        self._rehearsal = False
        self._failed = _FailedBatches()
        self._live = Live(
            console=console,
            get_renderable=self.render,
            refresh_per_second=_REFRESH_PER_SECOND,
            transient=False,
        )
        self._is_open = False

    def planned(self, plan: Plan, rehearsal: bool) -> None:
        """See `Watcher`."""
        self._rehearsal = rehearsal
        self.say(planned_line(plan))
        if plan.refs:
            self._tally = Tally(plan, rehearsal, self._clock)
            self._live.start()
            self._is_open = True

    def progressed(self, progress: Progress) -> None:
        """See `Watcher`."""
        if self._tally is not None:
            self._tally.progressed(progress)

    def batch_ended(self, line: BatchLine) -> None:
        """See `Watcher`."""
        if self._tally is not None:
            self._tally.batch_ended(line)
        sentence = self._failed.sentence(line)
        if sentence:
            self.say(sentence)

    def say(self, text: str) -> None:
        """See `Watcher`."""
        self._console.print(Text(f"rehearsal: {text}" if self._rehearsal else text))

    def render(self) -> RenderableType:
        """The bar, and below it the figures as they are now."""
        if self._tally is None:
            return Text("")
        standing = self._tally.standing()
        grid = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=1.0, completed=standing.share, width=_BAR_WIDTH)
        grid.add_row(bar, Text(f"{standing.share:4.0%}"))
        return Group(grid, Text(standing.line(), overflow="fold"))

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._is_open:
            self._live.stop()
            self._is_open = False


def planned_line(plan: Plan) -> str:
    """What the run has to do, on one line."""
    skipped = f", {count(len(plan.skipped_files), 'unreadable file')} skipped" if plan.skipped_files else ""
    return (
        f"run {plan.run_id}: {batches_text(len(plan.refs))} of {plan.batches_total:,} due "
        f"({count(plan.rows_due, 'document')} of {plan.rows_total:,} in {count(plan.files, 'file')}{skipped})"
    )


def watcher_for(console: Console) -> LineWatcher | LiveWatcher:
    """A live bar on a terminal, plain lines elsewhere."""
    if console.is_terminal:
        return LiveWatcher(console)
    return LineWatcher(lambda text: console.print(Text(text), soft_wrap=True))
