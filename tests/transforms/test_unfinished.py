"""Attempts that were not committed, as columns, and what a manifest says of them."""

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.batches import BatchReport
from tests.support.records import REF, commit_record
from transforms.batch_refs import BatchRefs
from transforms.commit import recover
from transforms.committed import Committed
from transforms.store import Store
from transforms.table_file import write_pieces
from transforms.unfinished import LeftOpen, Unfinished, note_left_open

REPORTS = st.lists(
    st.builds(
        BatchReport,
        st.sampled_from([f"{n:032x}" for n in range(3)]),
        st.integers(1, 3),
        st.just("failed"),
        st.sampled_from(["", "no disk", "reset"]),
    ),
    max_size=6,
)


@given(REPORTS, REPORTS)
def test_reports_come_back_as_they_were(first: list[BatchReport], second: list[BatchReport]) -> None:
    every = first + second
    found = Unfinished.joined([Unfinished.of(first), Unfinished.of(second)])
    assert list(found) == every
    assert list(found[1:4]) == every[1:4]
    assert [found[n] for n in range(-len(every), len(every))] == every * 2


def test_all_of_some_batches_are_left_for_one_reason() -> None:
    refs = [replace(REF, batch_id=f"{n:032x}", attempt=n + 1) for n in range(3)]
    found = Unfinished.all_of(BatchRefs.of(refs)[1:], "it was killed")
    assert list(found) == [BatchReport(r.batch_id, r.attempt, "failed", "it was killed") for r in refs[1:]]


def test_a_hundred_thousand_take_a_few_megabytes() -> None:
    refs = BatchRefs.of(replace(REF, batch_id=f"{n:032x}") for n in range(1000))
    found = Unfinished.joined(Unfinished.all_of(refs, "it was stopped") for _ in range(100))
    assert len(found) == 100_000
    assert found.nbytes < 3_000_000


def test_nothing_is_left_of_what_is_committed_whatever_was_said_of_it(store: Store) -> None:
    committed = Committed.of([commit_record(batch_id=REF.batch_id)])
    said = [BatchReport(REF.batch_id, 1, "failed", "disk trouble")]
    assert note_left_open(store, "r1", BatchRefs.of([REF]), committed, said) == LeftOpen(0, ())
    assert list(store.list("runs")) == []


def test_a_file_that_breaks_off_is_never_seen_and_is_swept(store: Store) -> None:
    schema = pa.schema([("n", pa.int64())])

    def pieces() -> Iterator[pa.Table]:
        yield pa.table({"n": [1]})
        raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError):
        write_pieces(store, "runs/r1/x.parquet", schema, pieces())
    assert not store.exists("runs/r1/x.parquet")
    recover(store)
    assert list(store.list("_staging")) == []
    write_pieces(store, "runs/r1/x.parquet", schema, [pa.table({"n": [1, 2]})])
    assert pq.read_table(store.open("runs/r1/x.parquet")).to_pydict() == {"n": [1, 2]}
