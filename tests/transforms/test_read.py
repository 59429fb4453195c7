import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.batches import BatchRef
from schemas.errors import BatchError, InputChangedError, UnreadableBatchError
from schemas.limits import Limits
from schemas.workload import Input
from tests.support.documents import rows, with_bad_utf8, write
from transforms.cut import cut_batches
from transforms.files import find_input
from transforms.probe import ReaderLimits
from transforms.read import BatchReader, place


def plan(
    folder: Path, columns: Sequence[str] = ("kind", "size"), **limits: int
) -> tuple[list[BatchRef], pa.Schema]:
    found = find_input(str(folder), Input(uri="in", id="id", text="text", columns=tuple(columns)))
    refs = list(cut_batches(found.files, Limits(**limits)))
    return refs, found.schema


def expected(ref: BatchRef, schema: pa.Schema) -> list[dict[str, object]]:
    table = pq.ParquetFile(ref.uri).read_row_group(ref.row_group, columns=schema.names)
    return table.slice(ref.first_row, ref.row_count).to_pylist()


def test_batches_in_order_are_the_rows_of_the_file(tmp_path: Path) -> None:
    table = rows(range(103))
    write(tmp_path / "a.parquet", table, row_group=40)
    refs, schema = plan(tmp_path, batch_rows=7)
    reader = BatchReader(schema)
    batches = [reader.read(ref) for ref in refs]
    assert pa.concat_tables(batches).to_pylist() == table.to_pylist()
    assert {b.column(0).num_chunks for b in batches} == {1}
    assert {b.schema for b in batches} == {schema}


@pytest.mark.parametrize("seed", range(5))
def test_batches_in_any_order_are_the_same_rows(tmp_path: Path, seed: int) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", rows([f"{name}{i}" for i in range(50)]), row_group=20)
    refs, schema = plan(tmp_path, batch_rows=6)
    shuffled = [*refs, *refs]
    Random(seed).shuffle(shuffled)
    reader = BatchReader(schema)
    for ref in shuffled:
        assert reader.read(ref).to_pylist() == expected(ref, schema)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=3), st.integers(1, 30), st.integers(1, 30))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_of_any_row_groups_gives_every_row_once(
    tmp_path: Path, counts: list[int], group: int, batch: int
) -> None:
    for number, count in enumerate(counts):
        write(tmp_path / f"{number}.parquet", rows([f"{number}-{i}" for i in range(count)]), row_group=group)
    for path in sorted(tmp_path.glob("*.parquet"))[len(counts) :]:
        path.unlink()
    refs, schema = plan(tmp_path, batch_rows=batch)
    reader = BatchReader(schema)
    read = [value for ref in refs for value in reader.read(ref).column("id").to_pylist()]
    assert read == [f"{n}-{i}" for n, count in enumerate(counts) for i in range(count)]


def test_neighbouring_batches_of_different_sizes_are_read_in_one_pass(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(range(40)))
    (whole,), schema = plan(tmp_path, batch_rows=40)
    reader = BatchReader(schema)
    read = []
    for first, count in [(0, 5), (5, 3), (8, 17), (30, 2), (32, 8)]:
        ref = replace(whole, first_row=first, row_count=count)
        read.append(reader.read(ref).column("size").to_pylist())
    assert read == [[*range(0, 5)], [*range(5, 8)], [*range(8, 25)], [30, 31], [*range(32, 40)]]


def test_only_the_needed_columns_are_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows([1, 2], unread=["x", "y"]))
    refs, schema = plan(tmp_path, columns=("size",))
    assert BatchReader(schema).read(refs[0]).column_names == ["id", "text", "size"]


def test_columns_are_read_as_the_plans_types(tmp_path: Path) -> None:
    odd = pa.array([None, 2], pa.int32())
    write(tmp_path / "a.parquet", rows([1, 2]).set_column(3, "size", odd))
    encoded = rows([3]).column("text").dictionary_encode()
    write(tmp_path / "b.parquet", rows([3]).set_column(1, "text", encoded))
    write(tmp_path / "c.parquet", rows([4]).set_column(2, "kind", pa.nulls(1)))
    view = rows([5]).column("text").cast(pa.string_view())
    write(tmp_path / "d.parquet", rows([5]).set_column(1, "text", view))
    refs, schema = plan(tmp_path)
    reader = BatchReader(schema)
    tables = [reader.read(ref) for ref in refs]
    assert {t.schema for t in tables} == {schema}
    assert [t.to_pylist() for t in tables] == [expected(ref, schema) for ref in refs]


def test_columns_with_dots_in_their_names_are_read(tmp_path: Path) -> None:
    table = rows([1, 2], **{"a.b": ["x", "y"], "a": [{"b": 1}, {"b": 2}]})
    write(tmp_path / "x.parquet", table)
    refs, schema = plan(tmp_path, columns=("a.b",))
    assert BatchReader(schema).read(refs[0]).column("a.b").to_pylist() == ["x", "y"]


def test_bytes_that_are_no_utf8_are_read_for_the_intake_to_find(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", with_bad_utf8(rows([1, 2]), "text", [1]))
    refs, schema = plan(tmp_path)
    table = BatchReader(schema).read(refs[0])
    assert table.column("text").cast(pa.large_binary())[1].as_py() == b"\xff\xfe bad"


# ---- files that change or break after they were planned


@pytest.fixture
def planned(tmp_path: Path) -> tuple[list[BatchRef], BatchReader, Path]:
    table = rows(range(3000), text=[f"{i} {Random(i).random()}" * 5 for i in range(3000)])
    path = write(tmp_path / "a.parquet", table, row_group=1500)
    refs, schema = plan(tmp_path, batch_rows=500)
    return refs, BatchReader(schema), path


Planned = tuple[list[BatchRef], BatchReader, Path]


def test_a_file_that_was_written_anew_is_noticed(planned: Planned) -> None:
    refs, reader, path = planned
    reader.read(refs[0])
    write(path, rows(range(3000)))
    with pytest.raises(
        InputChangedError, match=r"a\.parquet has changed since this run was planned.*run again"
    ):
        reader.read(refs[1])


def test_a_file_that_was_touched_is_noticed(planned: Planned) -> None:
    refs, reader, path = planned
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    with pytest.raises(InputChangedError):
        reader.read(refs[0])


def test_a_file_that_was_deleted_is_named_with_the_place(planned: Planned) -> None:
    refs, reader, path = planned
    path.unlink()
    with pytest.raises(UnreadableBatchError, match=r"row group 0, rows 0–499: can't be read .*No such file"):
        reader.read(refs[0])


def _with_same_time(path: Path, data: bytes) -> None:
    """Write in place so that neither size nor time tell: bit rot."""
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_damaged_pages_fail_their_batch_and_the_reader_goes_on(planned: Planned) -> None:
    refs, reader, path = planned
    data = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    start = (
        metadata.row_group(0).column(1).dictionary_page_offset
        or metadata.row_group(0).column(1).data_page_offset
    )
    data[start : start + 400] = b"\0" * 400
    _with_same_time(path, bytes(data))
    with pytest.raises(UnreadableBatchError, match=r"row group 0, rows 0–499: can't be read"):
        reader.read(refs[0])
    assert reader.read(refs[3]).num_rows == 500


def test_rows_behind_unreadable_ones_are_not_tried_again(planned: Planned) -> None:
    refs, reader, path = planned
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    data[start : start + 400] = b"\0" * 400
    sound = path.read_bytes()
    _with_same_time(path, bytes(data))
    with pytest.raises(UnreadableBatchError, match=r"rows 500–999: can't be read"):
        reader.read(refs[4])
    _with_same_time(path, sound)  # as if it were a matter of luck: it would be tried page by page, each time
    with pytest.raises(UnreadableBatchError, match=r"rows 1000–1499: can't be read \(given up at row 500: "):
        reader.read(refs[5])
    assert reader.read(refs[3]).num_rows == 500
    assert reader.read(refs[0]).num_rows == 500


def test_a_file_on_which_the_time_was_spent_in_vain_is_given_up_and_others_are_not(
    planned: Planned, tmp_path: Path
) -> None:
    refs, _, _ = planned
    write(tmp_path / "b.parquet", rows(range(3)))
    (*_, other), schema = plan(tmp_path, batch_rows=500)
    hurried = BatchReader(schema, ReaderLimits(seconds=0.001))
    with pytest.raises(UnreadableBatchError, match=r"no answer after 0\.001 s"):
        hurried.read(refs[0])
    with pytest.raises(UnreadableBatchError, match=r"was not tried, 0\.001 s were spent in vain on its file"):
        hurried.read(refs[3])
    with pytest.raises(UnreadableBatchError, match=r"b\.parquet.*no answer after"):
        hurried.read(other)


def test_a_reader_process_that_dies_costs_the_batch_that_it_was_reading(planned: Planned) -> None:
    refs, reader, _ = planned
    assert reader.read(refs[0]).num_rows == 500
    assert reader._reader is not None
    os.kill(reader._reader.pid, signal.SIGKILL)
    with pytest.raises(
        UnreadableBatchError, match=r"rows 500–999: can't be read \(the reader died: SIGKILL\)"
    ):
        reader.read(refs[1])
    assert reader.read(refs[3]).num_rows == 500


def test_a_row_group_with_fewer_rows_than_planned_is_noticed(planned: Planned) -> None:
    refs, reader, _ = planned
    with pytest.raises(UnreadableBatchError, match="footer promises 900 rows here, 500 can be read"):
        reader.read(replace(refs[2], row_count=900))


def test_batch_troubles_are_one_kind_of_error() -> None:
    assert issubclass(InputChangedError, BatchError)
    assert issubclass(UnreadableBatchError, BatchError)


def test_a_batch_is_named_by_file_row_group_and_rows() -> None:
    assert (
        place(BatchRef("b", "/in/a.parquet", "g", 2, 100, 50)) == "/in/a.parquet, row group 2, rows 100–149"
    )


def test_a_reader_that_is_closed_opens_again(planned: Planned) -> None:
    refs, reader, _ = planned
    reader.read(refs[0])
    reader.close()
    reader.close()
    assert reader.read(refs[1]).column("id")[0].as_py() == "500"
