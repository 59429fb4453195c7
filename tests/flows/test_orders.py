"""What a run is told: which routes another backend takes over, and what an approval with it says."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from flows.orders import Order
from flows.parameters import EnrichParameters
from schemas.errors import ConfigurationError
from schemas.workload import Workload
from tests.support import workloads
from tests.support.workloads import HOSTED

FORM = EnrichParameters(workload="w.toml")


def workload(**policy: list[str]) -> Workload:
    return workloads.workload(
        routes=[{"name": name, "backends": ["mini"], "prompt": "topic"} for name in ("first", "second")],
        backends={"mini": HOSTED, "other": {**HOSTED, "provider": "anthropic"}},
        policy={"allowed_providers": policy},
    )


def test_another_backend_takes_every_route_whose_policy_allows_it() -> None:
    assert Order(FORM, backend="other").reroute(workload()) == {"first": "other", "second": "other"}
    assert Order(FORM, backend="other").reroute(workload(first=["openai"])) == {"second": "other"}


def test_routes_that_are_named_are_taken_as_they_are() -> None:
    order = Order(FORM, backend="other", backend_routes=("second",))

    assert order.reroute(workload()) == {"second": "other"}


def test_a_backend_that_no_route_allows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="may not take any route's documents"):
        Order(FORM, backend="other").reroute(workload(first=["openai"], second=["openai"]))


def test_without_another_backend_nothing_is_rerouted() -> None:
    assert Order(FORM).reroute(workload()) == {}


def test_an_approval_without_a_cap_of_its_own_is_up_to_the_workloads(tmp_path: Path) -> None:
    loaded = workloads.load(tmp_path, budget={"amount": "12"})
    approved = FORM.model_copy(update={"approved_by": "Mara", "reason": "monthly"})

    (approval,) = Order(approved).started(loaded, "2026-11-22T09:00:00+00:00").approvals
    assert approval.to_dict() == {
        "decision": "approve",
        "what": "the run was started with it",
        "by": "Mara",
        "reason": "monthly",
        "at": "2026-11-22T09:00:00+00:00",
        "up_to": "12",
    }
    raised = Order(approved.model_copy(update={"budget": Decimal(30)})).started(loaded, "now")
    assert raised.approvals[0].up_to == "30"
    assert Order(FORM).started(loaded, "now").approvals == ()
