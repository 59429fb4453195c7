"""The caps besides the run's own: their records, which outlive processes, and whether they hold."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import orjson

from schemas.budget import Budget, RouteBudget
from tests.simulator.clock import EPOCH
from tests.simulator.frames import SeenCall
from transforms.call import budget_file
from transforms.call.budget_file import part_name
from transforms.call.budget_record import BudgetState
from transforms.call.centre import CENTRE_VERSION, CentreState, month_of, read_centre

if TYPE_CHECKING:
    from tests.simulator.vendor import Entry

ME, NEIGHBOUR = "this-output", "another-output"
CENTRE = "research"
RUN_RECORD = "budget/record.json"
CENTRE_RECORD = f"centre/{CENTRE}/{month_of(EPOCH)}.json"
NEIGHBOURS_SHARE = Decimal("0.01")
"""What another output has spent of the cost centre's month, and as much again is leased to its worker."""


@dataclass
class Cap:
    """One cap: on all calls or on those of a route, in money or in tokens."""

    name: str
    file: str
    unit: str
    limit: Decimal
    route: str | None = None

    def of_request(self, entry: Entry) -> Decimal:
        """What a request comes to, once its work is done."""
        return entry.cost if self.unit == "amount" else Decimal(sum(entry.usage) if entry.is_paid else 0)

    def worst(self, call: SeenCall) -> Decimal:
        """What a call comes to at most."""
        return call.worst if self.unit == "amount" else Decimal(call.intended["tokens"])

    def of_call(self, call: SeenCall) -> Decimal:
        """What a call in a ledger counts for; at its worst when its end is not known."""
        if call.kind in ("failed", "shared"):
            return Decimal(0)
        if call.kind != "answered":
            return self.worst(call)
        assert call.end is not None
        usage = call.end["usage"]
        tokens = Decimal(usage["input_tokens"] + usage["output_tokens"])
        return call.amount if self.unit == "amount" else tokens

    def holds_for(self, route: str) -> bool:
        return self.route in (None, route)

    def part_files(self, parts: int) -> list[str]:
        """The records of its parts, if it is in several."""
        if parts == 1 or self.file == CENTRE_RECORD:
            return []
        return [f"budget/{part_name(Path(self.file).stem, part)}.json" for part in range(parts)]

    @property
    def taken_by_others(self) -> Decimal:
        return 2 * NEIGHBOURS_SHARE if self.file == CENTRE_RECORD else Decimal(0)


def run_cap(limit: Decimal | None) -> list[Cap]:
    """The run's own cap, if it has one."""
    return [] if limit is None else [Cap("amount", RUN_RECORD, "amount", limit)]


def draw_caps(source: Random, rows: int, routes: tuple[str, str]) -> list[Cap]:
    """None, one or several; plenty, or less than what is needed."""
    if source.random() < 0.7:
        return []
    few = source.choice((1, 2)) * source.randint(1, rows + 1)
    fewer = source.randint(1, rows // 2 + 1)  # a route has about half of the rows
    money, tokens = Decimal("0.0035"), Decimal(1000)
    route = source.choice(routes)
    every = [
        Cap("tokens", "budget/tokens.json", "tokens", tokens * few),
        Cap(f"route:{route}:amount", f"budget/route-{route}-amount.json", "amount", money * fewer, route),
        Cap(
            f"route:{route}:tokens",
            f"budget/route-{route}-tokens.json",
            "tokens",
            tokens * fewer,
            route,
        ),
        Cap(f"centre:{CENTRE}", CENTRE_RECORD, "amount", money * few + 2 * NEIGHBOURS_SHARE),
    ]
    return source.sample(every, source.choice((1, 1, 2, 4)))


def budget_section(cap: Decimal | None, caps: list[Cap], scratch: Path) -> Budget:
    """The caps as a workload has them."""
    routes: dict[str, dict[str, Decimal]] = {}
    more: dict[str, object] = {}
    for one in caps:
        if one.route is not None:
            routes.setdefault(one.route, {})[one.unit] = one.limit
        elif one.unit == "tokens":
            more["tokens"] = int(one.limit)
        else:
            more.update(
                cost_centre=CENTRE, cost_centre_amount=one.limit, cost_centre_folder=str(scratch / "centre")
            )
    more["routes"] = {name: RouteBudget.model_validate(values) for name, values in routes.items()}
    return Budget.model_validate({"amount": cap, **more})


def first_records() -> dict[str, bytes]:
    """What there is before the first run: another output has spent of the cost centre's month already."""
    spent = str(NEIGHBOURS_SHARE)
    share = {"epoch": "its run", "boot_id": budget_file.boot_id(""), "spent": spent, "base": "0"}
    leases = {f"{NEIGHBOUR}/worker": spent}
    record = {"version": CENTRE_VERSION, "outputs": {NEIGHBOUR: share}, "leases": leases}
    return {CENTRE_RECORD: orjson.dumps(record)}


def after_power_cut(file: str, data: bytes) -> bytes:
    """The record as the next boot finds it."""
    record = orjson.loads(data)
    mine = record["outputs"].get(ME) if file == CENTRE_RECORD else record
    if mine is not None:
        mine["boot_id"] = "the boot before"
    return orjson.dumps(record)


def read_record(file: str, data: bytes, cap: Decimal) -> BudgetState | CentreState:
    """What a record says."""
    return read_centre(data, ME, cap) if file == CENTRE_RECORD else BudgetState.from_json(data)
