"""A backfill: which days, in which order, and what became of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.backfill import days_of, orders_of
from flows.parameters import BackfillParameters
from schemas.run import Manifest
from tests.flows.fake_run import FakeRun, Watched

TODAY = date(2026, 11, 22)


def form(**changes: Any) -> BackfillParameters:
    return BackfillParameters(**{"workload": "w.toml", "input": "docs/dt={date}", **changes})


def test_without_days_it_is_the_last_week_up_to_yesterday_oldest_first() -> None:
    days = days_of(form(), TODAY)

    assert (days[0], days[-1], len(days)) == (date(2026, 11, 15), date(2026, 11, 21), 7)
    assert days == sorted(days)


@pytest.mark.parametrize(
    ("changes", "first", "last"),
    [
        ({"first": date(2026, 11, 1)}, date(2026, 11, 1), date(2026, 11, 21)),
        ({"last": date(2026, 3, 1), "days": 2}, date(2026, 2, 28), date(2026, 3, 1)),
        ({"first": date(2026, 1, 5), "last": date(2026, 1, 5)}, date(2026, 1, 5), date(2026, 1, 5)),
    ],
)
def test_first_and_last_day_and_their_number(changes: dict[str, Any], first: date, last: date) -> None:
    days = days_of(form(**changes), TODAY)

    assert (days[0], days[-1]) == (first, last)


def test_days_in_the_wrong_order_and_an_input_without_a_date_are_mistakes_in_the_form() -> None:
    with pytest.raises(ValidationError, match="is after the last day"):
        form(first=date(2026, 2, 1), last=date(2026, 1, 1))
    with pytest.raises(ValidationError, match="date"):
        form(input="docs/")


def test_a_day_has_its_own_input_and_output_and_days_without_a_folder_are_left_out(tmp_path: Path) -> None:
    for day in ("20261119", "20261121"):
        (tmp_path / day).mkdir()
    asked = form(
        input=f"{tmp_path}/{{date}}", output="out/{date}", date_format="%Y%m%d", days=3, rehearsal=True
    )

    orders = list(orders_of(asked, TODAY))

    assert [(day, o.input, o.output, o.rehearsal) for day, o in orders] == [
        (date(2026, 11, 19), f"{tmp_path}/20261119", "out/20261119", True),
        (date(2026, 11, 21), f"{tmp_path}/20261121", "out/20261121", True),
    ]


@pytest.mark.usefixtures("prefect_server")
def test_every_day_is_tried_and_the_sentence_names_those_that_are_not_complete(
    tmp_path: Path, manifest: Callable[..., Manifest]
) -> None:
    from flows.backfill import backfill
    from flows.steps import Ending, Surroundings, bound

    fake = FakeRun(tmp_path, 2, manifest())
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    days = [(yesterday - timedelta(days=n)).isoformat() for n in (2, 1, 0)]
    for day in days:
        (fake.folder / "days" / day).mkdir(parents=True)
    settle = fake.steps().settle
    inputs: list[str] = []

    def settled(loaded: Any, *rest: Any) -> Manifest:
        day = Path(loaded.input_uri).name
        inputs.append(day)
        made = settle(loaded, *rest)
        bad = {"state": "incomplete", "reason": "a provider was down", "reason_class": "failures"}
        return manifest(**bad) if day == days[1] else made

    asked = BackfillParameters(
        workload=str(fake.workload),
        input=f"{fake.folder}/days/{{date}}",
        output=f"{fake.folder}/out-{{date}}",
        days=3,
        rehearsal=True,
    )
    with bound(Surroundings(fake.steps(settle=settled), Watched(), Ending())):
        state: Any = backfill(asked, return_state=True)

    assert inputs == days
    assert state.is_failed()
    assert state.message == (
        f"1 of 3 days not complete: {days[1]}. The first: Incomplete: a provider was down. "
        "A retry does what is missing"
    )
