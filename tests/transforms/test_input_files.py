"""Footers of many files: fetched side by side, read by a few readers, in order and in bounded memory."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InputError
from schemas.workload import Input
from tests.support.documents import rows
from tests.support.objects import BUCKET, Objects
from transforms.files import collect_files, describe
from transforms.gcs.inputs import MOST_END_BYTES, locate_in
from transforms.input_files import Files, InputFile, Names, RowGroup

SETTINGS = Input(uri="in", id="id", text="text", columns=("kind", "size"))


def parquet(table: pa.Table, row_group: int | None = None, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group, **options)
    return sink.getvalue()


SMALL = parquet(rows(range(5)), 2)
LONG = parquet(rows(range(700)), 2)  # whose footer is longer than what is fetched at first
LONGEST = parquet(rows(range(2000)), 2)  # and than what is fetched ahead at all


def described(objects: Objects, at_once: int) -> Iterator[InputFile | str]:
    return describe(objects.list(), locate_in(objects.fetch), SETTINGS.needed_columns, at_once)


# ---- side by side


def test_so_many_ends_are_fetched_at_once_and_no_more() -> None:
    meeting = threading.Barrier(8, timeout=60)  # passed only if eight are under way together
    objects = Objects(64, lambda _: SMALL, lambda _: meeting.wait())
    found = collect_files(described(objects, 8), SETTINGS)
    assert [(f.uri, f.generation, f.rows) for f in found.files] == [
        (f"{BUCKET}/in/{n:07}.parquet", f"gcs:{n + 1}", 5) for n in range(64)
    ]
    assert objects.most_at_once == 8


def test_a_footer_costs_one_request_and_a_long_one_two() -> None:
    data = [SMALL, LONG, SMALL, LONG]
    objects = Objects(4, data.__getitem__)
    found = collect_files(described(objects, 4), SETTINGS)
    assert [file.rows for file in found.files] == [5, 700, 5, 700]
    assert [objects.requests[f"in/{n:07}.parquet"] for n in range(4)] == [1, 2, 1, 2]


def test_a_footer_that_is_longer_than_what_is_fetched_ahead_is_read_all_the_same() -> None:
    assert int.from_bytes(LONGEST[-8:-4], "little") > MOST_END_BYTES
    (file,) = collect_files(described(Objects(1, lambda _: LONGEST), 4), SETTINGS).files
    assert (file.rows, len(file.row_groups)) == (2000, 1000)


@pytest.mark.parametrize("length", [0, 2**31, 2**32 - 1])
def test_a_file_that_lies_about_its_footers_length_is_refused(length: int) -> None:
    lie = SMALL[:-8] + length.to_bytes(4, "little") + b"PAR1"
    objects = Objects(2, lambda number: [lie, SMALL][number])
    one, other = described(objects, 4)
    assert isinstance(one, str)
    assert "in/0000000.parquet: no readable Parquet file" in one
    assert isinstance(other, InputFile)


def test_of_the_files_that_can_not_be_used_the_first_in_order_is_named_first() -> None:
    last = threading.Event()

    def wait_for_the_last(number: int) -> None:
        if number == 3:
            assert last.wait(60)
        if number == 30:
            last.set()

    bad = {3: b"no", 17: b"", 30: b"no"}
    objects = Objects(31, lambda number: bad.get(number, SMALL), wait_for_the_last)
    with pytest.raises(InputError) as caught:
        collect_files(described(objects, 8), SETTINGS)
    head, *lines = str(caught.value).splitlines()
    assert head == "3 of 31 input files can't be used:"
    assert [line.split(":")[1].removeprefix("//bucket/in/") for line in lines[:3]] == [
        f"{n:07}.parquet" for n in sorted(bad)
    ]


def test_a_listing_is_read_on_as_there_is_room_and_never_as_a_whole() -> None:
    objects = Objects(100_000, lambda _: SMALL)
    found = described(objects, 8)
    first = next(found)
    assert isinstance(first, InputFile)
    assert objects.listed < 1000
    found.close()  # type: ignore[attr-defined]
    assert objects.listed < 1000


def test_an_object_that_is_gone_since_it_was_listed_is_named() -> None:
    def gone(number: int) -> None:
        if number == 1:
            raise FileNotFoundError("gs://bucket/in/1 is not there")

    found = list(described(Objects(3, lambda _: SMALL, gone), 2))
    assert [isinstance(file, InputFile) for file in found] == [True, False, True]
    assert "in/0000001.parquet: no readable Parquet file (gs://bucket/in/1 is not there)" in found[1]


# ---- files as columns


SCHEMAS = [pa.schema([("id", kind)]) for kind in (pa.int32(), pa.int64(), pa.string())]
Groups = list[tuple[int, int]]
GROUPS = st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), max_size=3)
FILES = st.lists(st.tuples(GROUPS, st.integers(0, 2), st.integers(0, 2**62)), max_size=8)


@given(FILES)
def test_every_file_comes_back_as_it_was_taken_in(values: list[tuple[Groups, int, int]]) -> None:
    files = [
        InputFile(
            f"/ü{n}",
            f"sha256:{n}",
            n,
            mtime,
            SCHEMAS[kind],
            tuple(RowGroup(index, *group) for index, group in enumerate(groups)),
        )
        for n, (groups, kind, mtime) in enumerate(values)
    ]
    found = Files.of(files)
    assert list(found) == files
    assert [found[n] for n in range(-len(files), 0)] == files
    assert found[1:3] == tuple(files[1:3])
    assert (found.rows, found.bytes) == (
        sum(file.rows for file in files),
        sum(group.bytes for file in files for group in file.row_groups),
    )
    assert [found.schemas[number] for _, number in found.with_schema()] == [file.schema for file in files]
    assert [files[n].schema for n in found.first_of()] == found.schemas


@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, 9000])
def test_names_come_back_however_many_they_are(count: int) -> None:
    names = [f"/ü{n}" for n in range(count)]
    found = Names()
    for name in names:
        found.append(name)
    assert list(found) == names
    assert (len(found), found[count - 3 :]) == (count, names[count - 3 :])
    assert [found[n] for n in range(-min(count, 5), 0)] == names[-5:]


def test_a_file_that_is_not_there_is_no_file() -> None:
    with pytest.raises(IndexError):
        Files()[0]
