"""Provider batches as a run and its status show them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.waiting import waiting_rows
from schemas.run import Manifest
from tests.flows.fake_run import FakeRun, Watched
from transforms.batchmode.standing import OpenBatch

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
BATCH = OpenBatch(
    tag="switchgear-1",
    backend="mini",
    model="gpt-4.1-mini",
    state="submitted",
    requests=12_345,
    provider_batch_id="batch_1",
    submitted_at="2026-11-22T09:30:12.5+00:00",
    waiting_since="2026-11-22T09:00:00+00:00",
    reserved="12.500000000000",
)


def test_an_open_batch_is_shown_with_its_age_and_what_is_set_aside() -> None:
    (row,) = waiting_rows([BATCH], NOON)
    assert row == {
        "provider batch": "batch_1",
        "backend": "mini",
        "state": "submitted",
        "requests": 12_345,
        "submitted at": "2026-11-22 09:30 UTC",
        "age": "3 h 00 min",
        "set aside": "$12.50",
    }


@pytest.mark.parametrize("state", ["intended", "refused", "undecided", "submitted", "cancelled"])
def test_every_state_has_words_of_its_own(state: str) -> None:
    unsent = replace(BATCH, state=state, provider_batch_id=None, submitted_at=None)
    (row,) = waiting_rows([unsent], NOON)
    assert (row["provider batch"], row["submitted at"]) == ("(none)", "")
    others = {
        r["state"] for s in ("intended", "submitted") for r in waiting_rows([replace(BATCH, state=s)], NOON)
    }
    assert row["state"] not in others or state in ("intended", "submitted")


@pytest.mark.usefixtures("prefect_server")
def test_a_run_collects_before_it_plans_and_submits_after_its_workers(
    tmp_path: Path, manifest: Callable[..., Manifest]
) -> None:
    from prefect.flow_engine import run_flow

    from flows.enrich import enrich
    from flows.parameters import EnrichParameters
    from flows.steps import Surroundings, bound

    fake, watched, order = FakeRun(tmp_path, 2, manifest()), Watched(), []
    steps = fake.steps()

    def noted(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            order.append(name)
            return act(*arguments)

        return step

    steps = replace(
        steps,
        plan=noted("plan", steps.plan),
        arguments=noted("work", steps.arguments),
        settle=noted("settle", steps.settle),
        collect=noted("collect", lambda *_: ["6 answers came back"]),
        submit=noted("submit", lambda *_: ["6 requests went out"]),
    )
    form = EnrichParameters(workload=str(fake.workload), groups=1, rehearsal=True)
    with bound(Surroundings(steps, watched)):
        state = run_flow(enrich, parameters={"parameters": form}, return_type="state")
    assert state.is_completed()
    assert order == ["collect", "plan", "work", "submit", "settle"]
    assert [line for line in watched.said if "answers" in line or "requests" in line] == [
        "6 answers came back",
        "6 requests went out",
    ]
