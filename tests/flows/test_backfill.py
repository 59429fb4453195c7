"""A backfill: which days, in which order, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.backfill import days_of, orders_of, without_documents
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


def test_a_backfill_without_a_day_to_run_says_why(tmp_path: Path) -> None:
    asked = form(input=f"{tmp_path}/{{date}}", days=2)

    assert without_documents(asked, TODAY).startswith(
        f"Nothing to run: no day from 2026-11-20 to 2026-11-21 has documents at {tmp_path}/{{date}}."
    )
    future = asked.model_copy(update={"first": TODAY})
    assert "the first day, 2026-11-22, is not over yet" in without_documents(future, TODAY)


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


@pytest.mark.usefixtures("prefect_server")
def test_a_day_that_needs_an_approval_lets_the_others_go_first_and_suspends_the_backfill(
    tmp_path: Path, manifest: Callable[..., Manifest]
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import Pause
    from prefect.flow_engine import run_flow

    from flows.backfill import backfill
    from flows.deployments import BACKFILL, apply_deployment, apply_pool
    from flows.steps import Ending, Steps, Surroundings, bound
    from schemas.load import LoadedWorkload, load_workload
    from schemas.run import RunContext
    from tests.flows.fake_run import WORKLOAD
    from tests.flows.test_review import ANSWER, quote_of
    from transforms.quote.compare import store_quote
    from transforms.store import open_store

    days = [(datetime.now(UTC).date() - timedelta(days=n)).isoformat() for n in (2, 1)]
    fakes: dict[str, FakeRun] = {}
    for day in days:
        (tmp_path / day / "in").mkdir(parents=True)
        fakes[day] = FakeRun(tmp_path / day, 2, manifest())
    workload = tmp_path / "w.toml"
    workload.write_text(f"{WORKLOAD}\n[budget]\namount = 30\n[review]\nquote_above = 10\n")

    def of(output: str) -> Steps:
        return fakes[Path(output).parent.name].steps()

    def quote(_: LoadedWorkload, run: RunContext, _classes: Any) -> None:
        high = "12.5" if days[0] in run.output else "5"
        store_quote(open_store(run.output), run.run_id, quote_of(high))

    steps = Steps(
        load=lambda path, i, o: load_workload(path, input_uri=i, output_uri=o),
        check=of(f"{days[0]}/out").check,
        require_keys=lambda _: None,
        require_safe_runner=lambda *_: None,
        open_output=lambda loaded, rehearsal: of(loaded.output_uri).open_output(loaded, rehearsal),
        plan=lambda loaded, run, classes: of(run.output).plan(loaded, run, classes),
        arguments=lambda job: of(_output_of(job)).arguments(job),
        settle=lambda loaded, run, *rest: of(run.output).settle(loaded, run, *rest),
        now=lambda: datetime.now(UTC),
        quote=quote,
    )
    form = {
        "workload": str(workload),
        "input": f"{tmp_path}/{{date}}/in",
        "output": f"{tmp_path}/{{date}}/out",
        "days": 2,
    }
    with get_client(sync_client=True) as client:
        apply_pool(client, "test", None, None)
        deployment = apply_deployment(client, BACKFILL, "test")
        made = client.create_flow_run_from_deployment(deployment, parameters={"parameters": form}).id

        def run() -> Any:
            flow_run = client.read_flow_run(made)
            with bound(Surroundings(steps, Watched(), Ending())):
                try:
                    run_flow(backfill, flow_run, flow_run.parameters, return_type="state")
                except Pause:
                    assert [fake.locks for fake in fakes.values()] == [0, 0]
            return client.read_flow_run(made).state

        assert run().name == "Suspended"
        assert [len(fakes[day].starts()) for day in days] == [0, 1]
        (note,) = (tmp_path / days[0]).glob("out/runs/*/asked.json")
        assert json.loads(note.read_text())["what"] == "its quote of likely up to $12.50 is above $10.00"

        assert client.resume_flow_run(made, run_input=ANSWER).status.value == "ACCEPT"
        state = run()
    assert state.is_completed(), state.message
    assert [len(fakes[day].starts()) for day in days] == [1, 1]
    assert fakes[days[0]].contexts[-1].budget_amount == "20"


def _output_of(job: Any) -> str:
    return str(json.loads(Path(job.context).read_text())["output"])
