"""The records of the further caps: written when a run starts, leased from by its workers.

Those of tokens and routes stand beside the run's own, in `<output>/budget/`; a cost centre's stand in the
folder that its runs share. An output is known there by a name of its own, `<output>/budget/output_id`, so
that it may be moved.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial

from schemas.budget import Budget as BudgetSection
from schemas.errors import OutputError, StoreError
from schemas.outcomes import ZERO, money
from schemas.run import RunContext
from schemas.workload import Workload
from transforms.call.budget import LeasedBudget
from transforms.call.budget_file import (
    Records,
    boot_id,
    lease_from,
    open_budget,
    read_budget,
    record_at,
    record_of,
)
from transforms.call.caps import Caps, CapSpec, FurtherCaps, NoFurtherCaps, cap_specs
from transforms.call.centre import MONTH, CentreState, Recovery, month_of, read_centre, reader
from transforms.call.ports import Clock
from transforms.store import open_store

PATIENCE_S = 20.0
"""How long a worker at a cap waits for what other workers may give back, before its documents fail."""


def start_cap_records(
    output: str,
    workload: Workload,
    spent: Mapping[str, Decimal],
    parts: int = 1,
    records: Records = record_of,
) -> dict[str, Decimal]:
    """Writes the records of all further caps of an output anew; what each has left, by cap.

    `spent` is by cap what commits and ledgers have.
    """
    return {
        spec.name: open_budget(output, spec.limit, spent[spec.name], spec.file, parts=parts, records=records)
        for spec in cap_specs(workload)
    }


def start_centre(output: str, budget: BudgetSection, run_id: str, spent: Decimal, now: datetime) -> Decimal:
    """Puts this output's entries in its cost centre's records right, and begins the month; what is left.

    `spent` is what the output has cost in all, by commits and ledgers. What it has spent and never
    reported, because its workers died, is booked to the months whose leases they held.

    Raises:
        StoreError: a record can't be read or written.
    """
    store, this_month = open_store(_centre_folder(budget)), month_of(now)
    me, cap = _output_id(output), money(budget.cost_centre_amount or ZERO)
    stems = {path.removesuffix(".json") for path in store.list("") if path.endswith(".json")}
    months = sorted({stem for stem in stems if MONTH.fullmatch(stem)} | {this_month})
    states = {month: _peek(store.root, month, me, cap) for month in months}
    mine = [state.outputs[me] for state in states.values() if me in state.outputs]
    accounted = sum((share.base + share.spent for share in mine), ZERO)
    start = _CentreStart(
        me=me,
        cap=cap,
        run_id=run_id,
        boot_id=boot_id(output),
        base=ZERO if mine else money(spent),
        recovery=Recovery(max(ZERO, money(spent) - accounted) if mine else ZERO),
    )
    left = ZERO
    for month, state in states.items():
        if month == this_month or me in state.outputs:
            record = record_at(store.root, f"{month}.json")
            left = record.update_now(partial(start.begin, last=month == this_month))
    return left


@dataclass(frozen=True, slots=True)
class _CentreStart:
    """A run that starts, month by month from the oldest."""

    me: str
    cap: Decimal
    run_id: str
    boot_id: str
    base: Decimal
    recovery: Recovery

    def begin(self, data: bytes | None, last: bool) -> tuple[bytes, Decimal]:
        """A month's record as the run leaves it, and what it has left."""
        state = read_centre(data, self.me, self.cap)
        found = self.recovery.of(state, self.boot_id)
        if last:  # what no lease explains was spent all the same
            found += self.recovery.unreported
        state = state.begun(self.run_id, self.boot_id, found, self.base if last else ZERO)
        return state.to_json(), state.left


def _peek(folder: str, month: str, me: str, cap: Decimal) -> CentreState:
    record = record_at(folder, f"{month}.json")
    return record.update_now(lambda data: (None, read_centre(data, me, cap)))


def _centre_folder(budget: BudgetSection) -> str:
    assert budget.cost_centre_folder is not None
    assert budget.cost_centre is not None
    return f"{budget.cost_centre_folder.rstrip('/')}/{budget.cost_centre}"


def _output_id(output: str) -> str:
    """The name under which an output's spending is known to cost centres; made when first asked for."""
    store, path = open_store(output), "budget/output_id"
    try:
        if not store.exists(path):
            store.create(path, secrets.token_hex(8).encode())
        return store.read(path).decode("ascii").strip()
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"{store.root}/{path} can't be used ({reason}): mend the disk") from None


def engine_caps(workload: Workload, run: RunContext, output: str, clock: Clock, holder: str) -> FurtherCaps:
    """A worker's part of all further caps.

    Its spending counts in the month in which it is opened.

    Raises:
        OutputError: a cap's record is missing or is for another limit.
    """
    members = [(spec, _leased(output, spec, clock, holder)) for spec in cap_specs(workload)]
    budget = workload.budget
    if budget.cost_centre is not None:
        members.append(_centre_member(budget, run, output, clock, holder))
    return Caps(members) if members else NoFurtherCaps()


def _leased(output: str, spec: CapSpec, clock: Clock, holder: str) -> LeasedBudget:
    state = read_budget(output, spec.file)
    if state is None or state.cap != spec.limit:
        raise OutputError(
            f"{output} has no record for the cap {spec.name!r} of {spec.limit.normalize():f}: it is written "
            f"when a run starts; start the run again"
        )
    return lease_from(output, state, holder, clock, PATIENCE_S, name=spec.file, sentence=spec.sentence)


def _centre_member(
    budget: BudgetSection, run: RunContext, output: str, clock: Clock, holder: str
) -> tuple[CapSpec, LeasedBudget]:
    me, cap, month = _output_id(output), money(budget.cost_centre_amount or ZERO), month_of(clock.now())
    spec = CapSpec(f"centre:{budget.cost_centre}", month, "amount", cap)
    sentence = (
        f"the cap of {cap.normalize():f} USD of cost centre {budget.cost_centre!r} in {month} would be "
        f"passed; no call was made"
    )
    record = record_at(_centre_folder(budget), f"{month}.json")
    read = reader(me, cap, run.run_id, boot_id(output))
    return spec, LeasedBudget(
        record,
        f"{me}/{holder}",
        clock,
        cap,
        read=read,
        epoch=run.run_id,
        sentence=sentence,
        patience_s=PATIENCE_S,
    )
