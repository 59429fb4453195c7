"""What is shown while a run goes on, without a server."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from flows import live
from flows.batch_lines import BatchLine
from flows.live import LiveView, live_markdown
from flows.notice import Notice, Notices, Terms
from flows.progress import Standing
from schemas.run import Progress
from transforms.batch_refs import no_refs
from transforms.plan import Plan


class Shown:
    """Everything that would be sent to Prefect, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bars: list[float] = []
        self.pages: list[str] = []
        self.notices: list[Notice] = []
        self.now = 0.0
        self._page_id = uuid4()
        monkeypatch.setattr(live, "create_progress_artifact", lambda *_, **__: uuid4())
        monkeypatch.setattr(live, "update_progress_artifact", self._moved)
        monkeypatch.setattr(live, "create_markdown_artifact", self._created)
        monkeypatch.setattr("prefect.client.orchestration.get_client", lambda **_: self)

    def view(self, plan: Plan) -> LiveView:
        notices = Notices(Terms(cap=Decimal(1)), self.notices.append)
        return LiveView(plan, True, notices, lambda: self.now)

    def _moved(self, _: UUID, progress: float) -> None:
        self.bars.append(progress)

    def _created(self, page: str, **_: Any) -> UUID:
        self.pages.append(page)
        return self._page_id

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update_artifact(self, artifact_id: UUID, update: Any) -> None:
        assert artifact_id == self._page_id
        self.pages.append(update.data)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    return Shown(monkeypatch)


def test_the_bar_moves_at_each_look_and_the_page_now_and_then(
    shown: Shown, plan: Callable[..., Plan]
) -> None:
    view = shown.view(plan(4))
    for second in range(1, 23):
        shown.now = float(second)
        view.progressed(Progress(0, second, second // 10, second, "0.01"))
        view.update()

    assert shown.bars == [2.5 * n for n in range(1, 23)]
    assert len(shown.pages) == 3, "at the start, after 10 s and after 20 s"
    assert "| documents | 20 of 40 (50%) |" in shown.pages[-1]


def test_the_last_look_writes_the_page_whatever_the_time(shown: Shown, plan: Callable[..., Plan]) -> None:
    view = shown.view(plan(4))
    view.batch_ended(BatchLine(0, "b", 1, "failed", 0, 0, 0, 0, None, "", "the [vendor] is down"))
    view.update(last=True)
    view.update(last=True)

    assert len(shown.pages) == 2, "an unchanged page is not written again"
    assert "| batches that failed | 1 |" in shown.pages[-1]
    assert r"- the \[vendor\] is down" in shown.pages[-1]


def test_ten_thousand_failed_batches_are_counted_and_ten_are_shown(
    shown: Shown, plan: Callable[..., Plan]
) -> None:
    view = shown.view(plan(10_000))
    for number in range(10_000):
        view.batch_ended(BatchLine(0, f"{number:032x}", 1, "failed", 0, 0, 0, 0, None, "", f"no {number}"))
    view.update(last=True)

    assert "| batches that failed | 10,000 |" in shown.pages[-1]
    assert shown.pages[-1].count("- no ") == 10
    assert len(shown.pages[-1]) < 2_000


def test_notices_are_sent_while_the_run_goes_on(shown: Shown, plan: Callable[..., Plan]) -> None:
    view = shown.view(plan(4))
    view.progressed(Progress(0, 1, 0, 1, "0.6"))
    view.update()

    assert [notice.event for notice in shown.notices] == ["switchgear.budget.50"]


def test_the_page_says_where_a_run_stands() -> None:
    standing = Standing(False, 500, 1000, 5, 10, 1, 480, Decimal("1.5"), 25.4, 20.0, soft_passed=True)
    page = live_markdown(_plan(), standing, 1, ())

    assert page.splitlines() == [
        "# Run r1",
        "",
        "| | |",
        "|---|---|",
        "| documents | 500 of 1,000 (50%) |",
        "| batches | 5 of 10 batches |",
        "| batches that failed | 1 |",
        "| calls | 480 |",
        "| cost | $1.50 so far, by this run |",
        "| pace | 25 documents a second |",
        "| time left | 20 s |",
        "",
        "**The run has passed its soft budget.**",
    ]


def _plan() -> Plan:
    return Plan("r1", no_refs(), 0, 0, 0, 0, 0, (), "")
