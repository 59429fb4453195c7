from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from schemas.failures import FailureClass
from schemas.outcomes import Outcome, Usage, money
from tests.support.batches import part_writer, staged, work_batch
from tests.support.records import REF, answered, failed, run_context
from tests.support.workloads import workload
from transforms.commit import commit
from transforms.failures import failures_left
from transforms.previous import Previous, load_previous
from transforms.store import LocalStore

AGAIN = replace(REF, attempt=2, previous_attempt=1)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "out"))


def commit_attempt(
    store: LocalStore, ref: object, outcomes: list[Outcome], previous: Previous | None
) -> None:
    more = {} if previous is None else {"carried": previous.carried, "prior": previous.retry}
    batch = work_batch(ref, outcomes, **more)  # type: ignore[arg-type]
    commit(store, staged(part_writer(workload(), run_context(store.root), store), batch))


def paid_timeout(row: int, amount: str | None = "0.01", **changes: object) -> Outcome:
    charge = answered(row).charge
    if amount is None:
        charge = replace(charge, amount=None, list_amount=None, certainty="unknown")
    else:
        charge = replace(charge, amount=money(amount), list_amount=money(amount))
    return answered(row, failure=FailureClass.TIMEOUT, charge=charge, **changes)  # type: ignore[arg-type]


def load(store: LocalStore, attempt: int = 2, **changes: object) -> Previous:
    ref = replace(REF, attempt=attempt, previous_attempt=attempt - 1, **changes)  # type: ignore[arg-type]
    previous = load_previous(store, ref)
    assert previous is not None
    return previous


def cost_of(store: LocalStore, kind: str, attempt: int, row: int) -> dict[str, object]:
    (found,) = [r for r in rows_of(store, kind, attempt) if r["lineage"]["source"]["row"] == row]
    return {**found["cost"], **found["gen_ai"]["usage"]}


def rows_of(store: LocalStore, kind: str, attempt: int) -> list[dict[str, Any]]:
    if kind == "failures":
        return failures_left(store, REF.batch_id, attempt).to_pylist()
    (path,) = [p for p in store.list(kind) if f".{attempt:04d}." in p]
    return pq.read_table(store.local_path(path), partitioning=None).to_pylist()


def test_a_first_attempt_has_nothing_before_it(store: LocalStore) -> None:
    assert load_previous(store, REF) is None


def test_retryable_failures_are_tried_again_and_the_rest_is_carried(store: LocalStore) -> None:
    outcomes = [
        answered(100),
        failed(101, FailureClass.TIMEOUT),
        failed(102, FailureClass.REFUSED),
        failed(103, FailureClass.NO_ROUTE, ""),
    ]
    commit_attempt(store, REF, outcomes, None)
    previous = load(store)
    assert set(previous.retry) == {(101, "ask")}
    assert previous.carried.column("document_id").to_pylist() == ["doc-102", "doc-103"]


def test_classes_that_are_asked_for_are_tried_again_too(store: LocalStore) -> None:
    outcomes = [failed(r, c) for r, c in [(100, FailureClass.REFUSED), (101, FailureClass.TRUNCATED)]]
    commit_attempt(store, REF, [*outcomes, failed(102, FailureClass.NO_ROUTE, "")], None)
    previous = load(store, retry_classes=("refused", "no_route"))
    assert set(previous.retry) == {(100, "ask"), (102, "")}
    assert previous.carried.column("document_id").to_pylist() == ["doc-101"]


def test_what_was_spent_before_comes_back_exactly(store: LocalStore) -> None:
    spent = paid_timeout(
        101, "0.123456789012", calls=3, replayed_calls=1, ambiguous_calls=2, ambiguous_amount=money("0.5")
    )
    commit_attempt(store, REF, [spent], None)
    prior = load(store).retry[101, "ask"]
    assert (prior.usage, prior.charge) == (spent.usage, spent.charge)
    assert (prior.calls, prior.replayed_calls, prior.ambiguous_calls) == (3, 1, 2)
    assert Decimal(prior.ambiguous_amount) == Decimal("0.5")


def test_cost_and_usage_add_up_over_three_attempts(store: LocalStore) -> None:
    commit_attempt(
        store, REF, [paid_timeout(101, "0.01", ambiguous_calls=1, ambiguous_amount=money("0.3"))], None
    )
    commit_attempt(store, AGAIN, [paid_timeout(101, "0.02", calls=2)], load(store))
    third = replace(REF, attempt=3, previous_attempt=2)
    commit_attempt(store, third, [answered(101, amount="0.04", usage=Usage(7, None))], load(store, 3))
    cost = cost_of(store, "results", 3, 101)
    assert (cost["amount"], cost["list_amount"]) == (Decimal("0.07"), Decimal("0.07"))
    assert (cost["calls"], cost["ambiguous_calls"], cost["ambiguous_amount"]) == (4, 1, Decimal("0.3"))
    assert (cost["input_tokens"], cost["output_tokens"]) == (207, 20)


def test_a_price_that_was_unknown_once_stays_unknown(store: LocalStore) -> None:
    commit_attempt(store, REF, [paid_timeout(101, None)], None)
    commit_attempt(store, AGAIN, [answered(101)], load(store))
    cost = cost_of(store, "results", 2, 101)
    assert (cost["amount"], cost["certainty"]) == (None, "unknown")


def test_an_attempt_that_was_never_sent_adds_nothing(store: LocalStore) -> None:
    commit_attempt(store, REF, [paid_timeout(101, "0.01")], None)
    commit_attempt(store, AGAIN, [failed(101, FailureClass.BUDGET_EXHAUSTED)], load(store))
    cost = cost_of(store, "failures", 2, 101)
    assert (cost["amount"], cost["basis"], cost["calls"]) == (Decimal("0.01"), "tokens", 1)


def test_carried_rows_keep_their_cost_and_their_attempt(store: LocalStore) -> None:
    refused = answered(102, failure=FailureClass.REFUSED, amount="0.05")
    commit_attempt(store, REF, [refused, failed(101, FailureClass.TIMEOUT)], None)
    before = rows_of(store, "failures", 1)
    commit_attempt(store, AGAIN, [answered(101)], load(store))
    assert rows_of(store, "failures", 2) == [r for r in before if r["document_id"] == "doc-102"]


def test_a_row_on_two_routes_is_two_things_to_try(store: LocalStore) -> None:
    routes = [{"name": n, "backends": ["mini"], "prompt": "topic"} for n in ("ask", "other")]
    outcomes = [answered(100), failed(100, FailureClass.TIMEOUT, "other")]
    writer = part_writer(workload(routes=routes, match="all"), run_context(store.root), store)
    commit(store, staged(writer, work_batch(REF, outcomes)))
    assert set(load(store).retry) == {(100, "other")}
