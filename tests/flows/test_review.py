"""A person's approval, on a real Prefect server: the run waits with nothing held, and the answer decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from flows.orders import Order
from flows.parameters import EnrichParameters
from flows.steps import Ending, Surroundings, bound
from schemas.errors import ReviewNeededError, WorkloadError
from schemas.load import LoadedWorkload
from schemas.run import Manifest, RunContext
from tests.flows.fake_run import WORKLOAD, FakeRun, Watched
from tests.support import workloads
from transforms.quote.compare import store_quote
from transforms.quote.values import BudgetQuote, Price, Quote, Range, RouteQuote
from transforms.store import open_store

pytestmark = pytest.mark.usefixtures("prefect_server")
ANSWER = {"decision": "approve", "up_to": 20, "by": "Mara", "reason": "agreed with the team"}


def quote_of(high: str | None) -> Quote:
    price = Price(Decimal(1), Decimal(10), None if high is None else Decimal(high), Decimal(40))
    route = RouteQuote(
        route="all",
        kind="hosted",
        backends=("model",),
        model="gpt",
        documents=Range(60, 60, 60),
        sampled=60,
        input_tokens=Range(1, 1, 1),
        input_bound=1,
        output_tokens=Range(1, 1, 1),
        per_document=None,
        price=price,
        certainty="estimated",
        price_source="book",
        input_basis="",
        output_basis="",
    )
    return Quote(
        workload="fake",
        workload_sha256="a" * 64,
        made_at="2026-11-22T09:15:00+00:00",
        input_files=1,
        rows_total=60,
        rows_due=60,
        batches_total=6,
        batches_due=6,
        batches_read=6,
        rows_read=60,
        routing="every row",
        routing_sentence="",
        method="",
        seed=0,
        sample=60,
        routes=(route,),
        total=price,
        budget=BudgetQuote("yes", "It fits the budget."),
    )


class Reviewed:
    """A fake run whose workload asks for approvals, started from a deployment of a real server."""

    def __init__(self, fake: FakeRun, review: str, high: str | None = "12.5") -> None:
        self.fake = fake
        self.high = high
        self.manifests: list[Manifest] = []
        self.incomplete: list[str] = []  # reason classes of the next manifests
        fake.workload.write_text(f"{WORKLOAD}\n[budget]\namount = 30\nsoft_amount = 5\n[review]\n{review}\n")
        self._settle = fake.steps().settle
        self.flow_run_id: UUID | None = None

    def steps(self) -> Any:
        def quote(loaded: LoadedWorkload, run: RunContext, classes: Any) -> None:
            store_quote(open_store(run.output), run.run_id, quote_of(self.high))

        def settle(loaded: Any, run: RunContext, *rest: Any) -> Manifest:
            made = replace(self._settle(loaded, run, *rest), approvals=tuple(run.approvals))
            if self.incomplete:
                reason = self.incomplete.pop(0)
                made = replace(made, state="incomplete", reason_class=reason, reason="the cap was used up")
            self.manifests.append(made)
            return made

        return self.fake.steps(quote=quote, settle=settle, require_keys=lambda _: None)

    def run(self, **parameters: Any) -> Any:
        """Run the flow run as a worker does; its state."""
        from prefect.client.orchestration import get_client
        from prefect.exceptions import Pause
        from prefect.flow_engine import run_flow

        from flows.deployments import ENRICH, apply_deployment, apply_pool
        from flows.enrich import enrich

        form = {"workload": str(self.fake.workload), "groups": 2, **parameters}
        with get_client(sync_client=True) as client:
            if self.flow_run_id is None:
                apply_pool(client, "test", None, None)
                deployment = apply_deployment(client, ENRICH, "test")
                made = client.create_flow_run_from_deployment(deployment, parameters={"parameters": form})
                self.flow_run_id = made.id
            flow_run = client.read_flow_run(self.flow_run_id)
            with bound(Surroundings(self.steps(), Watched(), Ending())):
                try:
                    run_flow(enrich, flow_run, flow_run.parameters, return_type="state")
                except Pause:
                    assert self.fake.locks == 0, "the output is locked while the run waits"
            return client.read_flow_run(self.flow_run_id).state

    def answer(self, **form: Any) -> None:
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            result = client.resume_flow_run(self.flow_run_id, run_input=form)
            assert result.status.value == "ACCEPT", result


@pytest.fixture
def fake(tmp_path: Path, manifest: Callable[..., Manifest]) -> FakeRun:
    return FakeRun(tmp_path, 6, manifest())


def test_a_quote_above_the_limit_waits_before_anything_is_sent_and_goes_on_when_approved(
    fake: FakeRun,
) -> None:
    run = Reviewed(fake, "quote_above = 10")

    state = run.run()

    assert state.name == "Suspended"
    assert fake.starts() == []
    run.answer(**ANSWER)
    assert run.run().is_completed()
    assert sorted(i for ids in fake.starts() for i in ids) == [fake.batch_id(n) for n in range(6)]
    assert fake.contexts[-1].budget_amount == "20"
    (approval,) = run.manifests[-1].approvals
    assert {k: approval[k] for k in ("decision", "by", "reason", "up_to")} == {
        "decision": "approve",
        "by": "Mara",
        "reason": "agreed with the team",
        "up_to": "20",
    }
    assert approval["what"] == "its quote of likely up to $12.50 is above $10.00"


def test_the_time_for_which_a_run_waits_is_no_time_of_the_run(
    fake: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is held to the seconds since its own start: after the approval it is another one."""
    from flows import planning

    began: list[float] = []

    class Noted(planning.Notices):  # type: ignore[misc]
        def __init__(self, terms: Any, send: Any, elapsed: Callable[[], float]) -> None:
            super().__init__(terms, send, elapsed)
            began.append(planning.time.monotonic() - elapsed())

    monkeypatch.setattr(planning, "Notices", Noted)
    run = Reviewed(fake, "quote_above = 10")
    run.run()
    waited_until = planning.time.monotonic()
    run.answer(**ANSWER)

    assert run.run().is_completed()
    assert began[-1] >= waited_until
    assert began[0] < waited_until


def test_a_retry_after_the_approval_does_not_ask_again(fake: FakeRun) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import AwaitingRetry

    run = Reviewed(fake, "quote_above = 10")
    fake.touch("broken", fake.batch_id(0))
    run.run()
    run.answer(**ANSWER)
    assert run.run().is_failed()
    (fake.folder / "broken" / fake.batch_id(0)).unlink()
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.flow_run_id, AwaitingRetry(), force=True)

    assert run.run().is_completed()
    assert fake.starts()[-1] == [fake.batch_id(0)]


def test_a_quote_below_the_limit_does_not_wait_and_one_without_a_price_does(fake: FakeRun) -> None:
    assert Reviewed(fake, "quote_above = 12.5").run().is_completed()

    for path in (fake.folder / "done").iterdir():
        path.unlink()
    assert Reviewed(fake, "quote_above = 100", high=None).run().name == "Suspended"


def test_stop_ends_the_run_with_who_and_why_and_nothing_is_sent(fake: FakeRun) -> None:
    run = Reviewed(fake, 'routes = ["all"]')
    assert run.run().name == "Suspended"

    run.answer(decision="stop", by="Ines", reason="wrong folder")
    state = run.run()

    assert state.name == "Stopped"
    assert state.message.startswith("Stopped by Ines: wrong folder (asked because the workload asks for an")
    assert fake.starts() == []
    assert [a["by"] for a in run.manifests[-1].approvals] == ["Ines"]


def test_a_skipped_route_is_skipped_by_planner_and_workers(fake: FakeRun) -> None:
    run = Reviewed(fake, "quote_above = 1")
    run.run()

    run.answer(decision="skip routes", skip=["all"], by="Ines", reason="not today")

    assert run.run().is_completed()
    assert fake.contexts[-1].skip_routes == ("all",)
    assert run.manifests[-1].approvals[0]["decision"] == "skip all"


def test_an_answer_that_cannot_be_followed_is_asked_for_again_with_the_reason(fake: FakeRun) -> None:
    from prefect.client.orchestration import get_client

    run = Reviewed(fake, "quote_above = 1")
    run.run()
    run.answer(decision="skip routes", skip=["nowhere"], by="Ines", reason="?")

    assert run.run().name == "Suspended"
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run.flow_run_id).state
        base = state.state_details.run_input_keyset["description"]
        text = client.read_flow_run_input(run.flow_run_id, base)
    assert "There is no route 'nowhere' to skip. Choose from: all" in text
    run.answer(**ANSWER)
    assert run.run().is_completed()


def test_the_server_refuses_a_form_with_mistakes_and_the_run_goes_on_waiting(fake: FakeRun) -> None:
    from prefect.client.orchestration import get_client

    run = Reviewed(fake, "quote_above = 1")
    run.run()

    with get_client(sync_client=True) as client:
        answer = client.resume_flow_run(run.flow_run_id, run_input={"decision": "maybe"})
        assert answer.status.value == "REJECT"
        assert client.read_flow_run(run.flow_run_id).state.name == "Suspended"


def test_at_the_soft_budget_the_run_stops_asks_and_goes_on_where_it_stood(fake: FakeRun) -> None:
    run = Reviewed(fake, "soft_budget = true")
    run.incomplete = ["budget"]
    fake.touch("broken", fake.batch_id(5))

    state = run.run()

    assert state.name == "Suspended"
    assert fake.contexts[-1].budget_amount == "5"  # the soft budget is the cap until somebody decides
    (fake.folder / "broken" / fake.batch_id(5)).unlink()
    run.incomplete = ["budget"]  # the run plans anew and stands at its soft budget at once
    run.answer(**ANSWER)
    assert run.run().is_completed()
    assert fake.contexts[-1].budget_amount == "20"
    assert run.manifests[-1].approvals[0]["what"] == "the soft budget of $5.00 is used up"
    started = [i for ids in fake.starts() for i in ids]
    assert sorted(set(started)) == [fake.batch_id(n) for n in range(6)]
    assert len(started) == 7  # the broken one twice


def test_an_approval_given_with_the_run_is_recorded_and_nobody_is_asked(fake: FakeRun) -> None:
    run = Reviewed(fake, "quote_above = 1\nsoft_budget = true")

    assert run.run(budget=25, approved_by="Mara", reason="monthly run").is_completed()
    (approval,) = run.manifests[-1].approvals
    assert (approval["by"], approval["reason"], approval["up_to"]) == ("Mara", "monthly run", "25")


def test_a_rehearsal_never_waits(fake: FakeRun) -> None:
    assert Reviewed(fake, "quote_above = 0").run(rehearsal=True).is_completed()


def test_a_run_without_a_form_says_what_to_do_instead(fake: FakeRun) -> None:
    from flows.enrich import enrich

    reviewed, ending = Reviewed(fake, "quote_above = 10"), Ending()
    with bound(Surroundings(reviewed.steps(), Watched(), ending)):
        state: Any = enrich(EnrichParameters(workload=str(fake.workload)), return_state=True)

    assert state.is_failed()
    assert isinstance(ending.error, ReviewNeededError)
    assert "its quote of likely up to $12.50 is above $10.00" in str(ending.error)
    assert "60 documents of 60 are due. Quote: $10.00, likely $1.00 to $12.50, at most $40.00." in str(
        ending.error
    )
    assert "--approved-by NAME" in str(ending.error)
    assert fake.starts() == []


@pytest.mark.parametrize(
    ("review", "what"),
    [
        ({"routes": ["nowhere"]}, "must be one of: ask"),
        ({"soft_budget": True}, "there is no soft budget to stop at"),
    ],
)
def test_a_review_that_can_never_be_is_a_mistake_in_the_workload(
    review: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(WorkloadError, match=what):
        workloads.load(tmp_path, review=review)


def test_a_review_makes_no_other_version_of_the_workload(tmp_path: Path) -> None:
    plain = workloads.load(tmp_path).workload.digest()

    assert workloads.load(tmp_path, review={"quote_above": 1}).workload.digest() == plain


def test_a_human_decision_overrules_the_soft_budget() -> None:
    workload = workloads.workload(budget={"soft_amount": 5}, review={"soft_budget": True})
    order = Order(EnrichParameters(workload="w"))

    assert order.cap(workload) == 5
    assert replace(order, reviewed=frozenset({"soft"})).cap(workload) is None
    assert Order(EnrichParameters(workload="w", budget=Decimal(9))).cap(workload) == 9
