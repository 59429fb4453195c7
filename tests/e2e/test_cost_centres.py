"""Caps through the real pipeline: a cost centre's month over two outputs, routes, tokens, a soft budget."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from schemas.run import Manifest
from tests.support import documents, workloads
from tests.support.drive import drive
from transforms.verify import verify_output

ROWS = 200
BRIEF = {**workloads.HOSTED, "max_output_tokens": 40}
QUICK = {"latency_ms": [0, 2]}


def run(folder: Path, rows: int = ROWS, **changes: Any) -> Manifest:
    """A rehearsal of distinct documents in a folder of its own; caps count list prices there."""
    table = documents.rows([f"d{n}" for n in range(rows)], text=[f"text {n}" for n in range(rows)])
    documents.write(folder / "in" / "a.parquet", table, row_group=rows)
    workload = workloads.write_workload(folder, rehearsal=QUICK, backends__mini=BRIEF, **changes)
    return drive(workload, rehearsal=True)


def centre(amount: str) -> dict[str, Any]:
    return {"cost_centre": "search", "cost_centre_amount": amount, "cost_centre_folder": "../budgets"}


def spent(manifest: Manifest) -> Decimal:
    return Decimal(manifest.list_amount)


def test_two_workloads_of_a_cost_centre_share_its_month(tmp_path: Path) -> None:
    free = run(tmp_path / "free")
    cap = spent(free) * Decimal("1.5")
    first = run(tmp_path / "a", budget=centre(str(cap)))
    second = run(tmp_path / "b", budget=centre(str(cap)))
    assert first.state == "complete"
    assert (second.state, second.reason_class) == ("incomplete", "budget")
    assert "cost centre 'search'" in second.reason
    assert 0 < second.results < ROWS
    assert spent(first) + spent(second) <= cap
    again = run(tmp_path / "b", budget=centre(str(cap)))
    assert (again.calls_by_this_run, again.batches_committed_by_this_run) == (0, 0)
    assert run(tmp_path / "b", budget=centre("5")).state == "complete"
    assert verify_output(str(tmp_path / "b" / "out")).state == "proven"


def test_a_cap_on_tokens_and_one_on_a_route_stop_the_run_with_their_own_sentence(tmp_path: Path) -> None:
    tokens = run(tmp_path / "a", budget={"tokens": 3000})
    assert "tokens would be passed" in tokens.reason
    assert 0 < tokens.results < ROWS
    totals = tokens.totals["ask"]["mini"]
    assert totals.input_tokens + totals.output_tokens <= 3000
    route = run(tmp_path / "b", budget={"routes": {"ask": {"amount": "0.015"}}})
    assert "on route 'ask'" in route.reason
    assert 0 < spent(route) <= Decimal("0.015")


@pytest.mark.parametrize(("soft", "passed"), [("0.0001", True), ("5", False)])
def test_a_soft_budget_warns_and_does_not_stop(tmp_path: Path, soft: str, passed: bool) -> None:
    manifest = run(tmp_path, budget={"amount": "10", "soft_amount": soft})
    assert manifest.state == "complete"
    assert (manifest.budget_soft_amount, manifest.budget_soft_passed) == (soft, passed)
