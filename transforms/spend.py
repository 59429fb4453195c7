"""What an output has cost so far, and the budget record that a run's workers start from.

The record is derived: commits and ledgers are the truth. So it is written anew at the start of every
run, and leases of workers that died with an earlier one are void.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path

from schemas.batches import BatchRef, CommitRecord
from schemas.workload import Workload
from transforms.batchmode.standing import reserved_amount
from transforms.call.budget_file import open_budget
from transforms.call.ledger_file import read_spent
from transforms.layout import LEDGER, read_commit
from transforms.store import Store


def start_budget(
    workload: Workload, store: Store, commits: Mapping[str, CommitRecord], due: Iterable[BatchRef]
) -> Decimal | None:
    """Write the budget record for a run that is about to start; what was spent before, None without cap.

    Counted at list price: everything committed, the answers and the worst cases of unknown ends in the
    ledgers of what is not. Device time of embedders is not held by the budget.
    """
    if workload.budget.amount is None:
        return None
    spent = spent_so_far(workload, store, commits, due)
    open_budget(store.root, workload.budget.amount, spent)
    return spent


def spent_so_far(
    workload: Workload, store: Store, commits: Mapping[str, CommitRecord], due: Iterable[BatchRef]
) -> Decimal:
    """What counts against the budget already, at list price; see `start_budget`. Writes nothing.

    A batch whose failures an earlier run tried again and did not commit may have cost something,
    whether or not it is due now. Requests that wait for a provider's batch count at their worst case.
    """
    hosted = frozenset(workload.hosted_backends())
    committed = sum((_spent(r, hosted) for r in every_attempt(store, commits)), Decimal(0))
    attempts = {batch: record.attempt + 1 for batch, record in commits.items() if record.failures}
    attempts.update((ref.batch_id, ref.attempt) for ref in due)
    begun = {p.name for p in Path(store.root, LEDGER).glob("*") if p.name not in commits}
    waiting = reserved_amount(store)
    return committed + waiting + read_spent(store.root, begun | attempts.keys(), attempts).spent


def every_attempt(store: Store, newest: Mapping[str, CommitRecord]) -> Iterable[CommitRecord]:
    """The commit records of all attempts, given the newest of each batch."""
    for record in newest.values():
        yield record
        for attempt in range(1, record.attempt):
            yield read_commit(store, record.batch_id, attempt)


def _spent(record: CommitRecord, hosted: frozenset[str]) -> Decimal:
    return sum(
        (
            Decimal(totals.list_amount) + Decimal(totals.ambiguous_amount)
            for backends in record.totals.values()
            for name, totals in backends.items()
            if name in hosted
        ),
        Decimal(0),
    )
