"""References of batches as columns: what went in comes out, however it was sliced, filtered and written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrow import PLAN_SCHEMA
from schemas.batches import BatchRef
from schemas.ids import batch_id
from schemas.limits import Limits
from transforms.batch_refs import BatchRefs
from transforms.cut import cut_batches
from transforms.input_files import InputFile, RowGroup
from transforms.plan_file import ROW_GROUP, plan_bytes, read_group, read_plan
from transforms.store import LocalStore

NUMBERS = st.integers(0, 2**62)
REFS = st.lists(
    st.builds(
        BatchRef,
        batch_id=st.binary(min_size=16, max_size=16).map(bytes.hex),
        uri=st.text(st.characters(codec="utf-8"), max_size=5),
        generation=st.sampled_from(["gcs:1", "sha256:00"]),
        row_group=st.integers(0, 2**31 - 1),
        first_row=NUMBERS,
        row_count=NUMBERS,
        attempt=st.integers(1, 2**31 - 1),
        previous_attempt=st.none() | st.integers(1, 2**31 - 1),
        duplicate_rows=st.lists(NUMBERS, max_size=3).map(tuple),
        retry_classes=st.lists(st.sampled_from(["refused", "ü"]), max_size=2).map(tuple),
        size=NUMBERS,
        mtime_ns=NUMBERS,
    ),
    max_size=12,
)


@given(REFS, st.data())
def test_references_come_back_as_they_went_in(refs: list[BatchRef], data: st.DataObject) -> None:
    found = BatchRefs.of(refs)
    assert list(found) == refs
    assert (len(found), bool(found)) == (len(refs), bool(refs))
    assert [found[n] for n in range(-len(refs), 0)] == refs
    assert [bytes(i).ljust(16, b"\0").hex() for i in found.ids] == [ref.batch_id for ref in refs]
    start, stop = data.draw(st.tuples(st.integers(-15, 15), st.integers(-15, 15)))
    assert list(found[start:stop]) == refs[start:stop]
    mask = data.draw(st.lists(st.booleans(), min_size=len(refs), max_size=len(refs)))
    kept = found.where(np.array(mask, bool))
    assert list(kept) == [ref for ref, is_kept in zip(refs, mask, strict=True) if is_kept]
    assert [bytes(i).ljust(16, b"\0").hex() for i in kept[1:].ids] == [ref.batch_id for ref in list(kept)[1:]]


def test_a_batch_that_is_not_there_is_none() -> None:
    with pytest.raises(IndexError):
        BatchRefs.of([])[0]


GROUPS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10**6)), max_size=3)


@given(st.lists(GROUPS, max_size=6), st.integers(1, 20), st.integers(1024, 10**6))
def test_batches_are_cut_as_their_files_say(
    files: list[list[tuple[int, int]]], batch_rows: int, batch_bytes: int
) -> None:
    described = [
        InputFile(
            f"/{n}", f"g{n}", n, -n, pa.schema([]), tuple(RowGroup(i, *g) for i, g in enumerate(groups))
        )
        for n, groups in enumerate(files)
    ]
    refs = list(cut_batches(described, Limits(batch_rows=batch_rows, batch_bytes=batch_bytes)))
    assert [
        (r.uri, r.row_group, row) for r in refs for row in range(r.first_row, r.first_row + r.row_count)
    ] == [
        (file.uri, group.index, row)
        for file in described
        for group in file.row_groups
        for row in range(group.rows)
    ]
    for ref in refs:
        file = described[int(ref.uri[1:])]
        place = (ref.uri, file.generation, ref.row_group, ref.first_row, ref.row_count)
        assert ref == BatchRef(batch_id(*place), *place, size=file.size, mtime_ns=file.mtime_ns)


# ---- a plan that is larger than what is read of it


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, BatchRefs]:
    """Three row groups of a plan."""
    groups = tuple(RowGroup(index, 4 * ROW_GROUP, 0) for index in range(5))
    file = InputFile("/in/ü.parquet", "gcs:1", 1, 2, pa.schema([]), groups)
    refs = cut_batches([file], Limits(batch_rows=8))
    store = LocalStore(str(tmp_path_factory.mktemp("plan")))
    store.create("plan", plan_bytes(refs, pa.schema([("id", pa.int64())])))
    return store, refs


@pytest.mark.parametrize(("group", "groups"), [(0, 1), (0, 7), (3, 7), (6, 7), (199, 200), (1, 2)])
def test_a_group_reads_its_batches_and_no_other_part_of_the_plan(
    plan: tuple[LocalStore, BatchRefs], group: int, groups: int
) -> None:
    store, refs = plan
    assert len(refs) == 2.5 * ROW_GROUP
    found, schema = read_group(store, "plan", group, groups)
    size, rest = divmod(len(refs), groups)
    start = group * size + min(group, rest)
    assert list(found) == list(refs[start : start + size + (group < rest)])
    assert schema == pa.schema([("id", pa.int64())])


def test_what_a_group_does_not_need_is_not_even_opened(
    plan: tuple[LocalStore, BatchRefs], tmp_path: Path
) -> None:
    """The first row group of the plan is damaged: the last group does not notice."""
    store, refs = plan
    data = bytearray(store.read("plan"))
    chunk = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(0).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + 200] = bytes(200)
    damaged = LocalStore(str(tmp_path))
    damaged.create("plan", bytes(data))
    assert len(read_group(damaged, "plan", 9, 10)[0]) == len(refs) // 10
    with pytest.raises((OSError, pa.ArrowException)):
        read_group(damaged, "plan", 0, 10)


def test_the_plan_is_read_as_ever_by_whoever_looks_at_it(plan: tuple[LocalStore, BatchRefs]) -> None:
    store, refs = plan
    with store.open("plan") as stream:
        table = pq.read_table(stream)
    assert table.schema.names == PLAN_SCHEMA.names
    assert [field.type for field in table.schema] == [field.type for field in PLAN_SCHEMA]
    assert table.slice(40_000, 1).to_pylist() == [
        {
            "batch_id": refs[40_000].batch_id,
            "uri": "/in/ü.parquet",
            "generation": "gcs:1",
            "row_group": 4,
            "first_row": (40_000 - 2 * ROW_GROUP) * 8 % (4 * ROW_GROUP),
            "row_count": 8,
            "attempt": 1,
            "previous_attempt": None,
            "duplicate_rows": [],
            "retry_classes": [],
            "size": 1,
            "mtime_ns": 2,
        }
    ]
    assert list(read_plan(store, "plan")[0][-3:]) == list(refs[-3:])
