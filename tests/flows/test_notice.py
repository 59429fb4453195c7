"""Events that somebody is woken by: which, when, and once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flows.batch_lines import BatchLine, batch_line
from flows.notice import Notice, Notices, Subject, Terms
from flows.progress import Standing
from schemas.batches import BackendTotals, BatchReport
from schemas.run import FailureGroup, Manifest
from tests.support import documents, workloads

Make = Callable[..., Manifest]


def standing(amount: str = "0", **changes: Any) -> Standing:
    made = Standing(False, 0, 100, 0, 10, 0, 0, Decimal(amount), 0.0, None)
    return replace(made, **changes)


def line(rows: int, faults: int) -> BatchLine:
    return BatchLine(0, "b", 1, "committed", rows, rows - faults, faults, 0, "0", "", "", faults)


class Heard:
    """Notices that were sent."""

    def __init__(self, terms: Terms) -> None:
        self.sent: list[Notice] = []
        self.notices = Notices(terms, self.sent.append)

    def names(self) -> list[str]:
        return [notice.event.removeprefix("switchgear.") for notice in self.sent]


def test_each_part_of_the_budget_is_told_once_when_it_is_spent() -> None:
    heard = Heard(Terms(cap=Decimal(10), spent_before=Decimal(3)))

    for amount in ("1.99", "2.00", "2.5", "5", "6.99", "7"):
        heard.notices.look(standing(amount))
        heard.notices.look(standing(amount))

    assert heard.names() == ["budget.50", "budget.80", "budget.100"]
    assert heard.sent[0] == Notice(
        "switchgear.budget.50",
        "50 % of the budget of $10.00 is spent: $5.00.",
        {"spent": "5", "cap": "10"},
    )
    assert heard.sent[-1].sentence == "The budget of $10.00 is used up: $10.00 spent, the rest waits."


def test_a_cap_that_refuses_calls_is_used_up_though_a_few_cents_are_left(manifest: Make) -> None:
    heard = Heard(Terms(cap=Decimal(5)))

    heard.notices.settled(manifest(state="incomplete", reason_class="budget"), "Incomplete.")

    assert heard.names() == ["budget.100", "run.incomplete"]
    assert heard.sent[0].figures == {"spent": "1.25", "cap": "5"}


def test_a_run_without_a_budget_tells_nothing_of_it() -> None:
    heard = Heard(Terms())
    heard.notices.look(standing("1000000"))
    assert heard.names() == []


def test_failures_are_told_by_their_rate_and_not_before_it_means_anything() -> None:
    heard = Heard(Terms())

    heard.notices.batch_ended(line(10, 10))
    heard.notices.look(standing())
    assert heard.names() == [], "10 documents say nothing"
    heard.notices.batch_ended(line(190, 0))
    heard.notices.look(standing())
    assert heard.names() == ["failures.1"], "5 % exactly is not more than 5 %"
    heard.notices.batch_ended(line(100, 60))
    heard.notices.look(standing())

    assert heard.names() == ["failures.1", "failures.5", "failures.20"]
    assert heard.sent[-1].sentence == "23.3 % of 300 documents have failed (70)."


def test_documents_that_policy_kept_back_have_not_failed(manifest: Make, ref: Any, record: Any) -> None:
    made = record(ref(1), failures=5, failures_by_class={"policy_rejected": 4, "timeout": 1})
    assert batch_line(0, BatchReport(made.batch_id, 1, "committed", record=made)).faults == 1

    heard = Heard(Terms())
    heard.notices.settled(manifest(failures=600), "Complete.")
    assert heard.names() == ["run.complete"]
    group = FailureGroup("timeout", 20, True, "no answer", "run again", (), "")
    heard = Heard(Terms())
    heard.notices.settled(manifest(failures=620, failure_groups=(group,)), "Complete.")
    assert heard.names() == ["failures.1", "run.complete"]


def test_a_run_that_is_dearer_or_slower_than_its_quote_is_told(manifest: Make) -> None:
    terms = Terms(
        quoted_high=Decimal(1),
        quoted_seconds=2.0,
        seconds_before=1.0,
        amount_before=Decimal("0.2"),
    )
    heard = Heard(terms)
    heard.notices.settled(manifest(), "Complete.")  # 1.25 and 3.5 s in all of the output

    assert heard.names() == ["run.dearer", "run.slower", "run.complete"]
    assert heard.sent[0].figures == {"amount": "1.05", "quoted": "1"}
    assert heard.sent[1].figures == {"seconds": "2.5", "quoted": "2.0"}


def test_a_run_that_works_longer_than_its_quote_is_told_while_it_goes_on_and_once(manifest: Make) -> None:
    now = 0.0
    told: list[Notice] = []
    notices = Notices(Terms(quoted_run_seconds=59.0), told.append, lambda: now)

    notices.look(standing())
    now = 59.0
    notices.look(standing())
    assert told == [], "the upper end itself was quoted"
    now = 75.0
    notices.look(standing())
    notices.look(standing())
    notices.settled(manifest(), "Complete.")  # after 60 s, by its own figures

    assert [notice.event for notice in told] == ["switchgear.run.slower", "switchgear.run.complete"]
    assert told[0].sentence == (
        "The run has been at work for 1 min 15 s; its quote said 59 s at most was likely."
    )
    assert told[0].figures == {"seconds": "75.0", "quoted": "59.0"}


def test_a_run_that_was_too_slow_between_two_looks_is_told_at_its_end(manifest: Make) -> None:
    heard = Heard(Terms(quoted_run_seconds=59.0))
    heard.notices.settled(manifest(), "Complete.")
    assert heard.names() == ["run.slower", "run.complete"]
    assert heard.sent[0].sentence == "The run took 1 min 00 s; its quote said 59 s at most was likely."


def test_without_a_figure_in_the_quote_no_run_is_too_slow(manifest: Make) -> None:
    told: list[Notice] = []
    notices = Notices(Terms(), told.append, lambda: 1e9)
    notices.look(standing())
    notices.settled(manifest(ended_at="2027-11-22T09:16:00+00:00"), "Complete.")
    assert [notice.event for notice in told] == ["switchgear.run.complete"]


def test_a_run_within_its_quote_is_only_told_to_have_ended(manifest: Make) -> None:
    heard = Heard(Terms(quoted_high=Decimal("1.25"), quoted_seconds=3.5))
    heard.notices.look(standing("1.25"))
    heard.notices.settled(manifest(), "Complete: 1,190 results.")

    assert heard.names() == ["run.complete"]
    assert heard.sent[0].sentence == "Complete: 1,190 results."


def test_embeddings_on_own_devices_do_not_count_against_the_cap(manifest: Make) -> None:
    device = BackendTotals(amount="9", list_amount="9", basis="device_seconds")
    heard = Heard(Terms(cap=Decimal(10)))
    heard.notices.settled(manifest(totals={"v": {"m": device}}), "Complete.")
    assert heard.names() == ["run.complete"]


def test_terms_are_what_the_quote_states(quote: Any) -> None:
    assert Terms.of(None) == Terms()
    assert Terms.of(quote) == Terms(
        cap=Decimal("5"),
        spent_before=Decimal("0.5"),
        quoted_high=Decimal("2"),
        quoted_seconds=30.0,
        seconds_before=4.0,
        amount_before=Decimal("0.75"),
        quoted_run_seconds=90.0,
    )


@pytest.fixture
def quote() -> Any:
    from transforms.quote.values import (
        Baseline,
        BudgetQuote,
        CapQuote,
        Price,
        Quote,
        Range,
        RouteQuote,
        Seconds,
    )

    some = Range(1, 1, 1)
    route = RouteQuote(
        "v", "embed", ("m",), "m", some, 1, some, None, some, None, Price(), "exact", None, "", "",
        device_seconds=Seconds(10.0, 20.0, 30.0),
    )  # fmt: skip
    caps = (
        CapQuote("ask", "amount", Decimal(1), Decimal(0), Decimal(1), "yes", ""),
        CapQuote("", "tokens", Decimal(9), Decimal(0), Decimal(9), "yes", ""),
        CapQuote("", "amount", Decimal(5), Decimal("0.5"), Decimal("4.5"), "yes", ""),
    )
    return Quote(
        "w", "a" * 64, "", 1, 1, 1, 1, 1, 1, 1, "sample", "", "", 0, 1, (route,),
        Price(Decimal(1), Decimal("1.5"), Decimal(2)), BudgetQuote("yes", "", caps),
        baseline={"v": Baseline(device_seconds=4.0, list_amount=Decimal("0.75"))},
        run_seconds=Seconds(1.0, 45.0, 90.0),
    )  # fmt: skip


def test_an_event_is_about_the_run_and_its_flow_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import prefect.events

    sent: list[dict[str, Any]] = []
    monkeypatch.setenv("PREFECT_UI_URL", "https://prefect.example/v2/")
    monkeypatch.setattr(prefect.events, "emit_event", lambda **event: sent.append(event))

    subject = Subject("20261122T091500Z-1f3a9c", "docs", "/out", True, "f1")
    subject.emit(Notice("switchgear.run.dearer", "It was dear.", {"amount": "2"}))

    assert sent == [
        {
            "event": "switchgear.run.dearer",
            "resource": {
                "prefect.resource.id": "switchgear.run.20261122T091500Z-1f3a9c",
                "prefect.resource.name": "docs 20261122T091500Z-1f3a9c",
                "switchgear.workload": "docs",
            },
            "related": [
                {"prefect.resource.id": "prefect.flow-run.f1", "prefect.resource.role": "flow-run"},
            ],
            "payload": {
                "sentence": "It was dear.",
                "amount": "2",
                "run_id": "20261122T091500Z-1f3a9c",
                "workload": "docs",
                "output": "/out",
                "rehearsal": True,
                "flow_run_id": "f1",
                "page": "https://prefect.example/v2/runs/flow-run/f1",
            },
        }
    ]


def _hosted_run(
    folder: Path, manifest: Manifest, high: float | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Notice], Any]:
    """A run over two groups whose quote says so many seconds at the most; what was told, and its state."""
    from flows.enrich import enrich
    from flows.parameters import EnrichParameters
    from flows.steps import Surroundings, bound
    from tests.flows.fake_run import FakeRun
    from tests.flows.test_review import quote_of
    from transforms.quote.compare import store_quote
    from transforms.quote.values import Seconds
    from transforms.store import open_store

    told: list[Notice] = []
    monkeypatch.setattr(Subject, "emit", lambda _, notice: told.append(notice))
    fake = FakeRun(folder, 2, manifest)

    def quote(_loaded: Any, run: Any, _classes: Any) -> None:
        times = None if high is None else Seconds(0.0, 0.0, high)
        store_quote(open_store(run.output), run.run_id, replace(quote_of("12"), run_seconds=times))

    with bound(Surroundings(fake.steps(quote=quote))):
        state = enrich(
            EnrichParameters(workload=str(fake.workload), rehearsal=True, groups=2), return_state=True
        )
    return told, state


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(("high", "is_slow"), [(0.0, True), (1e6, False), (None, False)])
def test_a_run_of_hosted_routes_is_told_to_be_slower_than_its_quote_when_it_is(
    high: float | None, is_slow: bool, tmp_path: Path, manifest: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, state = _hosted_run(tmp_path, manifest(), high, monkeypatch)

    assert state.is_completed()
    slow = [notice for notice in told if notice.event == "switchgear.run.slower"]
    assert len(slow) == is_slow
    assert all(notice.sentence.startswith("The run has been at work for ") for notice in slow)


@pytest.mark.usefixtures("prefect_server")
def test_a_real_run_that_uses_up_its_budget_tells_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.enrich import enrich
    from flows.parameters import EnrichParameters

    told: list[tuple[str, Notice]] = []
    monkeypatch.setattr(Subject, "emit", lambda self, notice: told.append((self.workload, notice)))
    documents.write(tmp_path / "in" / "a.parquet", documents.rows(range(40)))
    workload = workloads.write_workload(
        tmp_path, limits={"batch_rows": 10}, rehearsal={"latency_ms": [1, 2]}, budget={"amount": "0.015"}
    )

    state = enrich(EnrichParameters(workload=str(workload), rehearsal=True), return_state=True)

    assert state.is_failed()
    events = {notice.event: notice for _, notice in told}
    assert len(events) == len(told)
    assert {workload for workload, _ in told} == {"demo"}
    assert {"switchgear.budget.100", "switchgear.run.incomplete"} <= set(events)
    assert events["switchgear.budget.100"].figures["cap"] == "0.015"
    assert events["switchgear.run.incomplete"].figures == {"reason": "budget"}
