"""The tables of a run, and how they are printed."""

from __future__ import annotations

from collections.abc import Callable

from flows.groups import BatchLine
from flows.tables import MAX_ROWS, batch_rows, cost_rows, failure_rows, route_rows
from schemas.batches import BackendTotals, BatchReport
from schemas.run import FailureGroup, Manifest

Make = Callable[..., Manifest]


def line(number: int, state: str = "committed", **changes: object) -> BatchLine:
    values: dict[str, object] = {
        "group": 0,
        "batch_id": f"{number:032x}",
        "attempt": 1,
        "state": state,
        "rows": 10,
        "results": 10,
        "failures": 0,
        "retryable": 0,
        "amount": "0.5",
        "uri": "/in/a b.parquet",
        "error": "",
    }
    return BatchLine(**{**values, **changes})  # type: ignore[arg-type]


def test_ten_thousand_batches_stay_readable_and_what_failed_comes_first() -> None:
    lines = [line(n) for n in range(10_000)]
    failed = [BatchReport(f"{n:032x}", 1, "failed", "no disk") for n in range(3)]

    rows = batch_rows(lines, failed)

    assert len(rows) == MAX_ROWS
    assert [row["state"] for row in rows[:4]] == ["failed", "failed", "failed", "committed"]
    assert rows[0]["error"] == "no disk"


def test_every_row_of_every_table_has_the_same_columns(manifest: Make) -> None:
    made = manifest()
    tables = [
        batch_rows([line(1), line(2, amount=None)], [BatchReport("f" * 32, 1, "failed", "x")]),
        route_rows(made),
        cost_rows(made),
        failure_rows(made),
    ]

    for rows in tables:
        assert len({tuple(row) for row in rows}) == 1


def test_batches_with_documents_to_retry_come_before_those_without() -> None:
    rows = batch_rows([line(1), line(2, failures=5), line(3, failures=1, retryable=1)], [])

    assert [row["failures"] for row in rows] == [1, 5, 0]


def test_a_failed_batch_is_listed_once() -> None:
    report = BatchReport(f"{7:032x}", 1, "failed", "no disk")

    assert len(batch_rows([line(7, "failed", error="no disk")], [report])) == 1


def test_an_unknown_price_is_shown_as_unknown_and_a_part_of_it_as_a_part(manifest: Make) -> None:
    totals = {
        "r": {
            "free": BackendTotals(documents=1, amount="0"),
            "none_known": BackendTotals(documents=2, unknown=2),
            "some_known": BackendTotals(documents=3, unknown=1, amount="1.5"),
        }
    }

    costs = {row["backend"]: row["cost"] for row in cost_rows(manifest(totals=totals))}

    assert costs == {"free": "$0", "none_known": "unknown", "some_known": "$1.50 + unknown for 1"}


def test_documents_that_no_route_took_have_a_row_too(manifest: Make) -> None:
    rows = route_rows(manifest(results_by_route={"a": 3}, failures_by_route={"a": 1, "": 2}))

    assert rows == [
        {"route": "(none)", "results": 0, "failures": 2},
        {"route": "a", "results": 3, "failures": 1},
    ]


def test_failures_are_sorted_by_how_many_and_say_what_to_do(manifest: Make) -> None:
    groups = (
        FailureGroup("refused", 1, False, "refused", "see the raw answer", ("d1",), "no"),
        FailureGroup("timeout", 7, True, "no answer", "run again", ("d2", "d3"), "30 s"),
    )

    rows = failure_rows(manifest(failure_groups=groups))

    assert [(r["reason"], r["documents"], r["tried again by itself"]) for r in rows] == [
        ("timeout", 7, "yes"),
        ("refused", 1, "no"),
    ]
    assert rows[0]["for example"] == "d2, d3"
