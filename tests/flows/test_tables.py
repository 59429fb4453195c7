"""The tables of a run, and how they are printed."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from flows.batch_lines import BatchLine
from flows.groups import GroupOutcome
from flows.tables import (
    MAX_ROWS,
    batch_rows,
    budget_text,
    cost_rows,
    failure_rows,
    group_rows,
    route_rows,
    spend_rows,
)
from flows.worker import WorkerEnd
from flows.worst_first import worst_first
from schemas.batches import BackendTotals, BatchReport
from schemas.run import FailureGroup, Manifest
from transforms.quote.compare import Comparison
from transforms.quote.values import Price

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


def ended(group: int, *lines: BatchLine, error: str = "") -> GroupOutcome:
    failed = tuple(BatchReport(x.batch_id, 1, "failed", x.error) for x in lines if x.is_failed)
    return GroupOutcome(group, lines, failed, WorkerEnd(1 if error else 0, error))


def compared(route: str, **changes: object) -> Comparison:
    values: dict[str, object] = {
        "route": route,
        "quoted_documents": None,
        "documents": 400,
        "quoted_input_tokens": None,
        "input_tokens": 1,
        "quoted_output_tokens": None,
        "output_tokens": 1,
        "quoted": Price(low=Decimal("0.9"), expected=Decimal("1.0"), high=Decimal("1.2")),
        "amount": Decimal("1.25"),
        "off_by": 0.25,
        "verdict": "above",
    }
    return Comparison(**{**values, **changes})  # type: ignore[arg-type]


def test_ten_thousand_batches_stay_readable_and_what_failed_comes_first() -> None:
    lines = [line(n) for n in range(10_000)]
    failed = [BatchReport(f"{n:032x}", 1, "failed", "no disk") for n in range(3)]

    rows = batch_rows(worst_first(lines, failed))

    assert len(rows) == MAX_ROWS
    assert [row["state"] for row in rows[:4]] == ["failed", "failed", "failed", "committed"]
    assert rows[0]["error"] == "no disk"


def test_every_row_of_every_table_has_the_same_columns(manifest: Make) -> None:
    made = manifest()
    tables = [
        batch_rows(worst_first([line(1), line(2, amount=None)], [BatchReport("f" * 32, 1, "failed", "x")])),
        group_rows([ended(0, line(1)), ended(1)], []),
        spend_rows(made, [compared("summary")]),
        route_rows(made),
        cost_rows(made),
        failure_rows(made),
    ]

    for rows in tables:
        assert len({tuple(row) for row in rows}) == 1


def test_batches_with_documents_to_retry_come_before_those_without() -> None:
    rows = batch_rows(worst_first([line(1), line(2, failures=5), line(3, failures=1, retryable=1)], []))

    assert [row["failures"] for row in rows] == [1, 5, 0]


def test_a_failed_batch_is_listed_once() -> None:
    report = BatchReport(f"{7:032x}", 1, "failed", "no disk")

    (found,) = worst_first([line(7, "failed", error="no disk")], [report])

    assert (found.error, found.group) == ("no disk", 0)


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


def test_groups_with_something_left_to_do_come_first_and_say_why_in_a_sentence() -> None:
    dead = ended(2, line(5), line(6, "failed", error="no disk"), error="it was killed by signal SIGKILL")
    some = ended(1, line(3, results=6, failures=4, retryable=4, amount=None))
    failed = [BatchReport(f"{6:032x}", 1, "failed", "no disk")]

    rows = group_rows([ended(0, line(1), line(2)), some, dead], failed)

    assert [row["group"] for row in rows] == ["group-0002", "group-0001", "group-0000"]
    assert rows[0] == {
        "group": "group-0002",
        "state": "not through",
        "batches": 2,
        "not committed": 1,
        "documents": 20,
        "results": 20,
        "failures": 0,
        "retryable": 0,
        "cost": "$0.5",
        "in a sentence": dead.sentence(),
    }
    assert [row["retryable"] for row in rows] == [0, 4, 0]
    assert [row["cost"] for row in rows] == ["$0.5", "$0 + unknown", "$1.00"]


def test_costs_stand_against_their_quote_and_their_sum_against_the_budget(manifest: Make) -> None:
    rows = spend_rows(manifest(), [compared("summary")])

    by_route = {row["route"]: row for row in rows}
    assert list(by_route) == ["summary", "vectors", "all"]
    assert (by_route["all"]["cost"], by_route["all"]["budget"]) == (
        "$1.25 + unknown",
        "$1.25 of $5.00 (25 %)",
    )
    assert (by_route["all"]["documents"], by_route["all"]["calls"]) == (1200, 400)
    quoted = [[by_route[r][c] for c in ("quoted", "likely", "this run", "verdict")] for r in by_route]
    assert quoted == [["$1.00", "$0.9 to $1.20", "$1.25", "above"], [""] * 4, [""] * 4]


def test_a_budget_that_is_not_set_is_said_to_be_none(manifest: Make) -> None:
    assert budget_text(manifest(budget_amount=None)) == "no cap"
    assert budget_text(manifest(budget_amount="0")) == "$1.25 of $0"
