"""What an output has cost so far, and the budget record that a run's workers start from.

The record is derived: commits and ledgers are the truth. So it is written anew at the start of every
run, and leases of workers that died with an earlier one are void.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from schemas.batches import BatchRef, CommitRecord
from schemas.outcomes import ZERO
from schemas.workload import Workload
from transforms.batchmode.standing import reserved
from transforms.call.budget_file import open_budget, read_budget
from transforms.call.caps import AMOUNT, CapSpec, cap_specs
from transforms.call.caps_file import start_cap_records, start_centre
from transforms.call.ledgers import read_spent
from transforms.layout import LEDGER, read_commit
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
    commits: Mapping[str, CommitRecord],
    due: Iterable[BatchRef],
    run_id: str,
    now: datetime,
) -> dict[str, Decimal]:
    """Write the records of all caps for a run that is about to start; what each has left, by its name.

    Counted at list price: everything committed, the answers and the worst cases of unknown ends in the
    ledgers of what is not. Device time of embedders is held by no cap.
    """
    budget, specs = workload.budget, cap_specs(workload)
    if budget.amount is None and not specs and budget.cost_centre is None:
        return {}
    spending = count_spending(workload, store, commits, due)
    left = {}
    if budget.amount is not None:
        open_budget(store.root, budget.amount, spending.amount)
        state = read_budget(store.root)
        left[AMOUNT] = ZERO if state is None else state.left
    left.update(start_cap_records(store.root, workload, {spec.name: spending.of(spec) for spec in specs}))
    if budget.cost_centre is not None:
        centre = start_centre(store.root, budget, run_id, spending.amount, now)
        left[f"centre:{budget.cost_centre}"] = centre
    return left


def spent_so_far(
    workload: Workload, store: Store, commits: Mapping[str, CommitRecord], due: Iterable[BatchRef]
) -> Decimal:
    """What counts against the budget already, at list price; see `start_caps`. Writes nothing."""
    return count_spending(workload, store, commits, due).amount


def count_spending(
    workload: Workload, store: Store, commits: Mapping[str, CommitRecord], due: Iterable[BatchRef]
) -> Spending:
    """What counts against all caps already. Writes nothing.

    A batch whose failures an earlier run tried again and did not commit may have cost something,
    whether or not it is due now. Requests that wait for a provider's batch count at their worst case.
    A batch with answers that nobody could price counts by its ledger, which has their worst case.
    """
    hosted = frozenset(workload.hosted_backends())
    spending = Spending()
    records = list(every_attempt(store, commits))
    unpriced = {record.batch_id for record in records if _is_unpriced(record, hosted)}
    for record in records:
        if record.batch_id not in unpriced:
            _add_committed(spending, record, hosted)
    attempts = {batch: record.attempt + 1 for batch, record in commits.items() if record.failures}
    attempts.update((ref.batch_id, ref.attempt) for ref in due)
    attempts.update(dict.fromkeys(unpriced, 1))
    begun = {name for name in store.folders(LEDGER) if name not in commits}
    totals = read_spent(store.root, begun | attempts.keys(), attempts)
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


def every_attempt(store: Store, newest: Mapping[str, CommitRecord]) -> Iterable[CommitRecord]:
    """The commit records of all attempts, given the newest of each batch."""
    for record in newest.values():
        yield record
        for attempt in range(1, record.attempt):
            yield read_commit(store, record.batch_id, attempt)


def _is_unpriced(record: CommitRecord, hosted: frozenset[str]) -> bool:
    """Whether some of its answers came without the tokens that they used, or without a price."""
    every = (item for backends in record.totals.values() for item in backends.items())
    return any(name in hosted and totals.unknown for name, totals in every)


def _add_committed(spending: Spending, record: CommitRecord, hosted: frozenset[str]) -> None:
    for route, backends in record.totals.items():
        for name, totals in backends.items():
            if name in hosted:
                amount = Decimal(totals.list_amount) + Decimal(totals.ambiguous_amount)
                spending.amount += amount
                spending.by_route[route] += amount
                spending.tokens_by_route[route] += totals.input_tokens + totals.output_tokens
    for call in record.ambiguous:
        spending.tokens_by_route[call.route] += call.worst_tokens
