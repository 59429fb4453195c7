"""How far a run is: what is counted, and what is written where."""

from __future__ import annotations

import io
from collections.abc import Callable
from decimal import Decimal

import pytest
from rich.console import Console

from flows.batch_lines import BatchLine
from flows.progress import FAILED_SHOWN, LineWatcher, LiveWatcher, Tally, planned_line, watcher_for
from schemas.run import Progress
from transforms.plan import Plan

MakePlan = Callable[..., Plan]


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def progress(group: int, documents: int, amount: str = "0.10", calls: int = 0) -> Progress:
    return Progress(group, documents, 0, calls, amount)


def line(state: str = "committed", error: str = "") -> BatchLine:
    return BatchLine(0, "b" * 32, 1, state, 10, 10, 0, 0, "0.1", "/in/a.parquet", error)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_groups_counts_are_added_up_and_each_group_replaces_its_own(plan: MakePlan, clock: Clock) -> None:
    tally = Tally(plan(10), False, clock)

    tally.progressed(progress(0, 10, "0.10", 3))
    tally.progressed(progress(1, 20, "0.05", 4))
    tally.progressed(progress(0, 30, "0.30", 9))
    standing = tally.standing()

    assert (standing.documents, standing.calls, standing.amount) == (50, 13, Decimal("0.35"))
    assert standing.share == 0.5


def test_the_rate_is_that_of_the_last_half_minute(plan: MakePlan, clock: Clock) -> None:
    tally = Tally(plan(1000), False, clock)
    for _ in range(60):  # a slow first minute: 1 document a second
        clock.now += 1
        tally.progressed(progress(0, int(clock.now - 100)))
    for _ in range(60):  # then 10 a second
        clock.now += 1
        tally.progressed(progress(0, 60 + 10 * int(clock.now - 160)))

    standing = tally.standing()

    assert standing.rate == pytest.approx(10)
    assert standing.seconds_left == pytest.approx((10_000 - 660) / 10)


def test_nobody_knows_the_time_left_before_anything_is_done(plan: MakePlan, clock: Clock) -> None:
    standing = Tally(plan(1), False, clock).standing()

    assert standing.seconds_left is None
    assert standing.line().endswith("? left")


def test_a_document_on_several_routes_is_one_document(plan: MakePlan, clock: Clock) -> None:
    tally = Tally(plan(4, rows=10), False, clock)
    batch = BatchLine(0, "b" * 32, 1, "committed", 10, 15, 2, 0, "0.1", "/in/a.parquet", "")

    tally.progressed(progress(0, 17))
    tally.batch_ended(batch)
    tally.progressed(progress(0, 17 + 17))
    assert tally.standing().documents == 20
    for _ in range(3):
        tally.batch_ended(batch)
    assert tally.standing().line().startswith("40/40 documents")


def test_documents_that_the_filter_skips_are_through_with_their_batch(plan: MakePlan, clock: Clock) -> None:
    tally = Tally(plan(1, rows=10), False, clock)
    tally.progressed(progress(0, 4))
    tally.batch_ended(BatchLine(0, "b" * 32, 1, "committed", 10, 4, 0, 0, "0.1", "/in/a.parquet", ""))

    assert tally.standing().share == 1.0


def test_what_is_through_never_becomes_less(plan: MakePlan, clock: Clock) -> None:
    tally = Tally(plan(2, rows=10), False, clock)
    tally.progressed(progress(0, 18))
    assert tally.standing().documents == 18
    tally.batch_ended(BatchLine(0, "b" * 32, 1, "committed", 10, 20, 0, 0, "0.1", "/in/a.parquet", ""))
    assert tally.standing().documents == 18


def test_a_run_with_nothing_due_stands_at_its_end(plan: MakePlan, clock: Clock) -> None:
    assert Tally(plan(0), False, clock).standing().share == 1.0


def test_the_line_names_documents_batches_calls_cost_rate_and_time(plan: MakePlan, clock: Clock) -> None:
    tally = Tally(plan(10), False, clock)
    clock.now += 10
    tally.progressed(progress(0, 40, "1.5", 12))
    tally.batch_ended(line())
    tally.batch_ended(line("failed", "x"))

    assert tally.standing().line() == (
        "40/100 documents, 2/10 batches (1 failed), 12 calls, $1.50 so far, 4/s, 15 s left"
    )


def test_every_line_of_a_rehearsal_says_so_and_none_of_a_real_run(plan: MakePlan, clock: Clock) -> None:
    def written(rehearsal: bool) -> list[str]:
        lines: list[str] = []
        watcher = LineWatcher(lines.append, clock, every_s=0)
        watcher.planned(plan(2), rehearsal)
        watcher.progressed(progress(0, 5))
        watcher.batch_ended(line("failed", "no disk"))
        watcher.say("something")
        watcher.close()
        return lines

    assert len(written(True)) == 5
    assert all("rehearsal" in text for text in written(True))
    assert not any("rehearsal" in text for text in written(False))


def test_lines_come_at_most_every_few_seconds(plan: MakePlan, clock: Clock) -> None:
    lines: list[str] = []
    watcher = LineWatcher(lines.append, clock, every_s=5)
    watcher.planned(plan(100), False)

    for _ in range(200):  # 20 seconds, ten times a second
        clock.now += 0.1
        watcher.progressed(progress(0, int(clock.now)))

    assert len(lines) in (4, 5)
    assert lines[0].startswith("run ")


def test_a_failed_batch_is_said_at_once_with_its_reason(plan: MakePlan, clock: Clock) -> None:
    lines: list[str] = []
    watcher = LineWatcher(lines.append, clock)
    watcher.planned(plan(2), False)

    watcher.batch_ended(line("failed", "its pages can't be read"))

    assert lines[1:] == ["batch bbbbbbbbbbbb failed: its pages can't be read"]


def test_of_many_failed_batches_the_first_are_said_and_that_there_are_more(
    plan: MakePlan, clock: Clock
) -> None:
    lines: list[str] = []
    watcher = LineWatcher(lines.append, clock)
    watcher.planned(plan(100), False)

    for _ in range(100):
        watcher.batch_ended(line("failed", "the run was stopped"))

    assert lines[1:-1] == ["batch bbbbbbbbbbbb failed: the run was stopped"] * FAILED_SHOWN
    assert lines[-1].startswith("further batches failed")


def test_nothing_is_left_when_every_batch_has_ended(plan: MakePlan, clock: Clock) -> None:
    tally = Tally(plan(2), False, clock)
    clock.now += 10
    tally.progressed(progress(0, 5))
    tally.batch_ended(line("failed", "stopped"))
    assert tally.standing().seconds_left == 10
    tally.batch_ended(line("failed", "stopped"))
    assert tally.standing().seconds_left == 0


def test_before_the_plan_is_known_what_workers_say_is_no_trouble(clock: Clock) -> None:
    lines: list[str] = []
    watcher = LineWatcher(lines.append, clock)

    watcher.progressed(progress(0, 1))
    watcher.batch_ended(line())
    watcher.close()

    assert lines == []


def terminal(stream: io.StringIO) -> Console:
    return Console(file=stream, force_terminal=True, width=160, highlight=False, color_system=None)


def test_a_terminal_gets_a_live_bar_that_ends_where_the_run_stood(plan: MakePlan, clock: Clock) -> None:
    stream = io.StringIO()
    watcher = LiveWatcher(terminal(stream), clock)

    watcher.planned(plan(10), True)
    clock.now += 10
    watcher.progressed(progress(0, 100, "0.5", 7))
    watcher.batch_ended(line("failed", "no disk"))
    watcher.close()

    last = [text for text in stream.getvalue().splitlines() if "documents," in text][-1]
    assert "100%" in stream.getvalue()
    assert "rehearsal: 100/100 documents, 1/10 batches (1 failed), 7 calls" in last
    assert "rehearsal: batch bbbbbbbbbbbb failed: no disk" in stream.getvalue()


def test_no_bar_is_drawn_when_nothing_is_due(plan: MakePlan, clock: Clock) -> None:
    stream = io.StringIO()
    watcher = LiveWatcher(terminal(stream), clock)

    watcher.planned(plan(0, committed=3), False)
    watcher.close()
    watcher.close()

    assert "0 batches of 3 due" in stream.getvalue()
    assert "documents," not in stream.getvalue()


def test_texts_from_data_are_never_markup_in_a_bar(plan: MakePlan, clock: Clock) -> None:
    stream = io.StringIO()
    watcher = LiveWatcher(terminal(stream), clock)

    watcher.say("[bold]x[/nothing]")

    assert "[bold]x[/nothing]" in stream.getvalue()


def test_a_console_that_is_no_terminal_gets_whole_plain_lines() -> None:
    stream = io.StringIO()
    watcher = watcher_for(Console(file=stream, width=40))

    assert isinstance(watcher, LineWatcher)
    watcher.say("word " * 30)

    assert stream.getvalue() == "word " * 30 + "\n"
    assert isinstance(watcher_for(terminal(io.StringIO())), LiveWatcher)


def test_the_first_line_says_what_is_due_and_what_was_skipped(plan: MakePlan) -> None:
    from dataclasses import replace

    made = replace(plan(2, committed=3), skipped_files=("/in/bad.parquet: no Parquet",))

    assert planned_line(made) == (
        "run 20261122T091500Z-1f3a9c: 2 batches of 5 due "
        "(20 documents of 50 in 1 file, 1 unreadable file skipped)"
    )
