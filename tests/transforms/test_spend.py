from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from schemas.batches import BackendTotals, CommitRecord
from tests.support.records import REF, commit_record
from tests.support.workloads import EMBEDDER, workload
from transforms.call.budget_file import record_path
from transforms.call.ledger import encode_frame, header
from transforms.call.ledger_file import ledger_path
from transforms.commit_index import no_commits, read_index
from transforms.layout import commit_path
from transforms.spend import count_spending, start_caps
from transforms.store import LocalStore

BATCH = REF.batch_id
CAPPED = workload(budget__amount="10", backends__emb=EMBEDDER)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def committed(store: LocalStore, attempt: int, amount: str, **changes: Any) -> CommitRecord:
    """An attempt of which the hosted part cost this much, half of it in calls without a known end."""
    half = str(Decimal(amount) / 2)
    totals = {
        "ask": {"mini": BackendTotals(list_amount=half, amount="99", ambiguous_amount=half)},
        "vec": {"emb": BackendTotals(list_amount="77")},
    }
    record = commit_record(attempt=attempt, totals=totals, **changes)
    store.create(commit_path(record.batch_id, attempt), record.to_json())
    return record


def ledger(store: LocalStore, batch_id: str, *attempts: int) -> None:
    """A ledger with a call of unknown end, worth 0.5 at most, in each of these attempts."""
    frames = [header(batch_id, "live")]
    for number, attempt in enumerate(attempts, start=1):
        call = {"row": 1, "route": "ask", "backend": "mini", "call": 1, "request": "f" * 64, "worst": "0.5"}
        at = "2026-11-22T09:00:00+00:00"
        frames.append({"kind": "intended", "id": number, "attempt": attempt, "at": at, **call})
    path = ledger_path(store.root, batch_id)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(map(encode_frame, frames)))


def spent(store: LocalStore) -> Decimal:
    return count_spending(CAPPED, store, read_index(store)).amount


def test_a_new_output_has_spent_nothing(store: LocalStore) -> None:
    assert spent(store) == 0


def test_every_committed_attempt_counts_at_list_price_with_its_ambiguous_calls(store: LocalStore) -> None:
    committed(store, 1, "3")
    committed(store, 2, "4", failures=0, failures_by_class={})
    assert spent(store) == 7


def test_a_batch_that_was_begun_and_not_committed_counts_from_its_ledger(store: LocalStore) -> None:
    ledger(store, BATCH, 1)
    assert spent(store) == Decimal("0.5")


def test_of_a_further_attempt_the_ledger_counts_once_and_the_commit_once(store: LocalStore) -> None:
    ledger(store, BATCH, 1, 2)
    committed(store, 1, "3")
    assert spent(store) == Decimal("3.5")


def test_a_batch_that_is_through_counts_by_its_commit_alone(store: LocalStore) -> None:
    ledger(store, BATCH, 1)
    committed(store, 1, "3", failures=0, failures_by_class={})
    assert spent(store) == 3


def test_an_answer_without_usage_counts_at_its_worst_after_its_commit_too(store: LocalStore) -> None:
    """Its commit record has no amount for it; the ledger has the worst case."""
    ledger(store, BATCH, 1, 2)
    totals = {"ask": {"mini": BackendTotals(calls=1, unknown=1)}}
    record = commit_record(attempt=1, totals=totals)
    store.create(commit_path(BATCH, 1), record.to_json())
    assert spent(store) == 1


def test_an_attempt_that_was_priced_counts_by_the_ledger_too_when_another_of_its_batch_was_not(
    store: LocalStore,
) -> None:
    ledger(store, BATCH, 1, 2)
    committed(store, 1, "3")
    totals = {"ask": {"mini": BackendTotals(calls=1, unknown=1)}}
    record = commit_record(attempt=2, totals=totals, failures=0, failures_by_class={})
    store.create(commit_path(BATCH, 2), record.to_json())
    assert spent(store) == 1


def test_only_a_workload_with_a_cap_has_a_budget_record(store: LocalStore) -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    assert start_caps(workload(), store, no_commits(), "run-1", now) == {}
    assert not record_path(store.root).exists()
    ledger(store, BATCH, 1)
    assert start_caps(CAPPED, store, read_index(store), "run-1", now) == {"amount": Decimal("9.5")}
    assert record_path(store.root).exists()
