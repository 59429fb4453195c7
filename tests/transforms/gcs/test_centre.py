"""A cost centre whose records, and outputs, are in Cloud Storage: the cap holds over all of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from schemas.budget import Budget
from schemas.outcomes import money
from schemas.run import RunContext
from tests.peers.cloud_storage import CloudStorage
from tests.support import workloads
from transforms.call.budget import LeasedBudget
from transforms.call.caps import Caps
from transforms.call.caps_file import engine_caps, start_centre
from transforms.call.centre import CentreState, read_centre
from transforms.call.ports import SystemClock
from transforms.store import open_store


class November(SystemClock):
    def now(self) -> datetime:
        return datetime(2026, 11, 22, tzinfo=UTC)


class Centre:
    """Outputs that share a cost centre of 100; each run of one starts, draws, spends, ends or dies."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.budget = Budget(
            cost_centre="search", cost_centre_amount=Decimal(100), cost_centre_folder=f"{address}/budgets/"
        )
        self.runs = 0

    def start(self, output: str, spent: int) -> Decimal:
        self.runs += 1
        self.run = RunContext(f"run-{self.runs}", f"{self.address}/{output}", "w" * 64, False, 8)
        return start_centre(self.run.output, self.budget, self.run.run_id, Decimal(spent), November().now())

    def worker(self, holder: str = "w") -> LeasedBudget:
        caps = engine_caps(
            workloads.workload().model_copy(update={"budget": self.budget}),
            self.run,
            self.run.output,
            November(),
            holder,
        )
        assert isinstance(caps, Caps)
        ((_, budget),) = caps._members
        budget._patience_s = 0
        return budget

    def spend(self, amount: int) -> bool:
        async def main() -> bool:
            budget = self.worker()
            if not await budget.reserve(money(amount)):
                return False
            budget.settle(money(amount), money(amount))
            await budget.release_unused()
            return True

        return asyncio.run(main())

    def state(self) -> CentreState:
        data = open_store(f"{self.address}/budgets/search").read("2026-11.json")
        return read_centre(data, "nobody", money(100))


@pytest.fixture
def centre(cloud_storage: CloudStorage) -> Centre:
    return Centre(cloud_storage.bucket())


def test_runs_of_several_outputs_share_the_months_cap(centre: Centre) -> None:
    assert centre.start("a", 0) == 100
    assert centre.spend(60)
    assert centre.start("b", 0) == 40
    assert not centre.spend(41)
    assert centre.spend(40)
    assert (centre.state().spent, dict(centre.state().leases)) == (100, {})


def test_what_a_run_that_died_had_leased_stays_spent(centre: Centre) -> None:
    """Its ledgers may lack what it paid for last: here that needs no power cut."""
    centre.start("a", 0)
    assert asyncio.run(centre.worker().reserve(money(8)))
    leased = sum(centre.state().leases.values())
    assert leased >= 8
    assert centre.start("a", 5) == 100 - leased
    assert dict(centre.state().leases) == {}


def test_an_output_is_known_by_a_name_that_stays(centre: Centre) -> None:
    centre.start("a", 0)
    store = open_store(f"{centre.address}/a")
    name = store.read("budget/output_id")
    assert centre.spend(10)
    assert centre.start("a", 10) == 90
    assert store.read("budget/output_id") == name
    assert list(centre.state().outputs) == [name.decode()]
