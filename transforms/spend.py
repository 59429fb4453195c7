"""What an output has cost so far, and the budget record that a run's workers start from.

The record is derived: commits and ledgers are the truth. So it is written anew at the start of every
run, and leases of workers that died with an earlier one are void.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.failures import FailureClass
from schemas.outcomes import ZERO
from schemas.workload import Workload
from transforms.attempt_keys import Keys, places_of, unpacked_keys
from transforms.batch_ids import name_of, packed_ids
from transforms.batchmode.standing import reserved
from transforms.call.budget_file import Records, open_budget, record_of
from transforms.call.caps import AMOUNT, CapSpec, cap_specs
from transforms.call.caps_file import start_cap_records, start_centre
from transforms.call.ledgers import read_spent
from transforms.commit_index import CommitIndex
from transforms.commit_survey import listing_is_cheaper
from transforms.commit_totals import entries
from transforms.layout import LEDGER, is_batch_id
from transforms.store import Store


@dataclass(slots=True)
class Spending:
    """What counts against caps already: money at list price, worst cases included; and by route.

    Tokens of a call without a known end count at their most.
    """

    amount: Decimal = ZERO
    by_route: dict[str, Decimal] = field(default_factory=lambda: defaultdict(lambda: ZERO))
    tokens_by_route: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def of(self, cap: CapSpec) -> Decimal:
        """What counts against a cap."""
        if cap.unit == "amount":
            return self.amount if cap.route is None else self.by_route[cap.route]
        tokens = self.tokens_by_route
        return Decimal(sum(tokens.values()) if cap.route is None else tokens[cap.route])


def start_caps(
    workload: Workload,
    store: Store,
    index: CommitIndex,
    run_id: str,
    now: datetime,
    *,
    parts: int = 1,
    records: Records = record_of,
) -> dict[str, Decimal]:
    """Write the records of all caps for a run that is about to start; what each has left, by its name.

    Counted at list price: everything committed, the answers and the worst cases of unknown ends in the
    ledgers of what is not. Device time of embedders is held by no cap. Each record but a cost centre's is in
    so many `parts`.
    """
    budget, specs = workload.budget, cap_specs(workload)
    if budget.amount is None and not specs and budget.cost_centre is None:
        return {}
    spending = count_spending(workload, store, index)
    left = {}
    if budget.amount is not None:
        left[AMOUNT] = open_budget(store.root, budget.amount, spending.amount, parts=parts, records=records)
    spent = {spec.name: spending.of(spec) for spec in specs}
    left.update(start_cap_records(store.root, workload, spent, parts, records))
    if budget.cost_centre is not None:
        centre = start_centre(store.root, budget, run_id, spending.amount, now)
        left[f"centre:{budget.cost_centre}"] = centre
    return left


def count_spending(workload: Workload, store: Store, index: CommitIndex) -> Spending:
    """What counts against all caps already. Writes nothing.

    An attempt that an earlier run began and did not commit may have cost something, whether or not it is
    due now. Requests that wait for a provider's batch count at their worst case. A batch with answers that
    nobody could price counts by its ledger, which has their worst case.
    """
    hosted = pa.array(sorted(workload.hosted_backends()), pa.string())
    spending, unpriced = Spending(), _unpriced(index, hosted)
    for table in index.tables(("batch_id", "totals", "ambiguous")):
        counted = pc.invert(pc.is_in(table.column("batch_id"), value_set=unpriced))
        _add_committed(spending, table.filter(counted), hosted)
    attempts = dict(_begun(store, index))
    attempts.update((batch.hex(), 1) for batch in unpriced.to_pylist())
    totals = read_spent(store.root, attempts, attempts)
    spending.amount += totals.spent
    for need in reserved(store).values():
        spending.amount += need.amount
        spending.by_route[need.route] += need.amount
        spending.tokens_by_route[need.route] += need.tokens
    for route, amount in totals.spent_by_route.items():
        spending.by_route[route] += amount
    for route, tokens in totals.tokens_by_route.items():
        spending.tokens_by_route[route] += tokens
    return spending


def _begun(store: Store, index: CommitIndex) -> Mapping[str, int]:
    """The attempts whose ledgers may hold what no commit record accounts for, by batch."""
    if index.begun is not None:
        begun = dict(_of_attempts(store, index.begun, len(index.committed)))
        # what comes back from a provider's batch is in the ledger before a run plans its attempt
        for row in np.flatnonzero(index.committed.failures_in([FailureClass.AWAITING_BATCH.value])):
            begun.setdefault(name_of(index.committed.ids[row]), int(index.committed.attempts[row]) + 1)
        return begun
    found = {batch: index.committed.get(batch) for batch in store.folders(LEDGER) if is_batch_id(batch)}
    return {
        batch: 1 if standing is None else standing.attempt + 1
        for batch, standing in found.items()
        if standing is None or standing.failures_by_class
    }


def _of_attempts(store: Store, begun: Keys, committed: int) -> Mapping[str, int]:
    """The lowest attempt of each batch; of many batches, only of those that have a ledger."""
    batches, attempts = unpacked_keys(begun)
    if listing_is_cheaper(len(begun), committed + len(begun)):
        there = np.sort(packed_ids([name for name in store.folders(LEDGER) if is_batch_id(name)]))
        has_ledger = places_of(batches, there) >= 0
        batches, attempts = batches[has_ledger], attempts[has_ledger]
    return dict(zip(map(name_of, batches[::-1]), map(int, attempts[::-1]), strict=True))


def _unpriced(index: CommitIndex, hosted: pa.Array) -> pa.Array:
    """The batches of which an attempt had answers without the tokens that they used, or without a price."""
    found = []
    for table in index.tables(("batch_id", "totals")):
        totals, rows = entries(table, "totals")
        unknown = pc.greater(totals.column("unknown"), 0)
        of_hosted = pc.is_in(totals.column("backend"), value_set=hosted)
        found.append(table.column("batch_id").take(rows.filter(pc.and_(unknown, of_hosted).combine_chunks())))
    chunks = [chunk for column in found for chunk in column.chunks]
    return pc.unique(pa.chunked_array(chunks, pa.binary(16)))


def _add_committed(spending: Spending, table: pa.Table, hosted: pa.Array) -> None:
    totals, _ = entries(table, "totals")
    totals = totals.filter(pc.is_in(totals.column("backend"), value_set=hosted))
    names = ("list_amount", "ambiguous_amount", "input_tokens", "output_tokens")
    for row in _sums_by_route(totals, names):
        amount = row["list_amount_sum"] + row["ambiguous_amount_sum"]
        spending.amount += amount
        spending.by_route[row["route"]] += amount
        spending.tokens_by_route[row["route"]] += row["input_tokens_sum"] + row["output_tokens_sum"]
    calls, _ = entries(table, "ambiguous")
    for row in _sums_by_route(calls, ("worst_tokens",)):
        spending.tokens_by_route[row["route"]] += row["worst_tokens_sum"]


def _sums_by_route(table: pa.Table, names: Sequence[str]) -> list[dict[str, Any]]:
    """Without threads: there are few routes, and tables come in pieces."""
    if len(table) == 0:
        return []
    grouped = table.group_by("route", use_threads=False).aggregate([(name, "sum") for name in names])
    rows: list[dict[str, Any]] = grouped.to_pylist()
    return rows
