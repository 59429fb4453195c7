from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.batches import BackendTotals, CommitRecord, PartRef
from schemas.errors import ReconcileError, StoreError
from tests.support.records import AMBIGUOUS, commit_record, run_context
from transforms.commit_index import read_index
from transforms.commit_totals import add_totals
from transforms.layout import commit_path
from transforms.store import LocalStore
from transforms.tally import Sums, add_up, require_parts

BATCH, OTHER = "b" * 32, "c" * 32
FIRST = commit_record(parts=())
SECOND = commit_record(
    attempt=2,
    run_id="run-2",
    parts=(),
    assignments=3,
    results=1,
    failures=2,
    failures_by_class={"null_text": 2},
    failures_by_route={"": 2},
    ambiguous=(),
)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def put(store: LocalStore, *records: CommitRecord) -> None:
    for record in records:
        store.create(commit_path(record.batch_id, record.attempt), record.to_json())


def sums_of(store: LocalStore, *records: CommitRecord, run_id: str = "run-2") -> Sums:
    put(store, *records)
    return add_up(read_index(store), run_context(store.root, run_id=run_id))


def test_an_empty_output_adds_up_to_nothing(store: LocalStore) -> None:
    assert sums_of(store) == Sums()


def test_results_add_up_over_attempts_and_failures_are_those_of_the_newest(store: LocalStore) -> None:
    sums = sums_of(store, FIRST, SECOND, replace(FIRST, batch_id=OTHER))
    assert (sums.rows_in, sums.results) == (8, 3)
    assert sums.failures_by_class == {"null_text": 4, "timeout": 1}
    assert sums.failures_by_route == {"ask": 1, "": 4}
    assert sums.results_by_route == {"ask": 3}
    assert sums.batches == 2
    assert sums.ambiguous == [AMBIGUOUS, replace(AMBIGUOUS, batch_id=OTHER)]


def test_what_this_run_did_is_told_from_what_earlier_ones_did(store: LocalStore) -> None:
    totals = {"ask": {"mini": BackendTotals(calls=5, replayed=2)}}
    sums = sums_of(store, FIRST, replace(SECOND, totals=totals))
    assert (sums.by_this_run, sums.calls_by_this_run) == (1, 3)
    assert sums.totals["ask"]["mini"].calls == 8


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([SECOND], r"attempts \[2\], one is missing"),
        ([FIRST, replace(SECOND, attempt=3)], r"attempts \[1, 3\], one is missing"),
        ([FIRST, replace(SECOND, results=2)], "left 3 failures, attempt 2 accounts for 4"),
        ([FIRST, replace(SECOND, failures=1)], "left 3 failures, attempt 2 accounts for 2"),
        ([replace(FIRST, rows_in=5)], "5 rows in, 0 skipped, but only 4 assignments"),
    ],
)
def test_records_that_contradict_each_other_are_refused(
    store: LocalStore, records: list[CommitRecord], words: str
) -> None:
    with pytest.raises(ReconcileError, match=words):
        sums_of(store, *records)


def test_committed_results_that_are_not_there_are_named(store: LocalStore) -> None:
    part = PartRef("results", "ask", "_staging/x", "results/x.parquet", 1, 1, "")
    with pytest.raises(StoreError, match=r"results/x\.parquet was committed by run-1 and is not there"):
        require_parts(store, replace(FIRST, parts=(part,)))


def test_skipped_rows_are_counted_once(store: LocalStore) -> None:
    first = replace(FIRST, rows_in=6, rows_skipped=2)
    sums = sums_of(store, first, replace(SECOND, rows_in=6, rows_skipped=2))
    assert (sums.rows_in, sums.rows_skipped) == (6, 2)


AMOUNTS = st.decimals(0, 10**6, places=12).map(lambda d: f"{d:f}")
COUNTS = st.integers(0, 10**6)
TOTALS = st.builds(
    BackendTotals,
    documents=COUNTS,
    results=COUNTS,
    calls=COUNTS,
    replayed=COUNTS,
    ambiguous=COUNTS,
    ambiguous_amount=AMOUNTS,
    input_tokens=COUNTS,
    output_tokens=COUNTS,
    amount=AMOUNTS,
    list_amount=AMOUNTS,
    unknown=COUNTS,
    device_seconds=COUNTS.map(float),
    basis=st.just("tokens"),
)


@given(TOTALS, TOTALS, TOTALS)
def test_totals_add_up_in_any_order_and_grouping(
    a: BackendTotals, b: BackendTotals, c: BackendTotals
) -> None:
    assert add_totals(add_totals(a, b), c) == add_totals(a, add_totals(c, b))


def test_a_sum_names_the_first_basis_that_is_one() -> None:
    tokens, none = BackendTotals(basis="tokens"), BackendTotals()
    assert add_totals(none, tokens).basis == add_totals(tokens, none).basis == "tokens"
