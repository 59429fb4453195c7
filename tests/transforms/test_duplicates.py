import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import InputError
from tests.support.documents import rows, with_bad_utf8, write
from transforms.duplicates import IdRun, Repeated, find_duplicates
from transforms.expressions import compile_condition
from transforms.repeated_hashes import RepeatedHashes

SCHEMA = pa.schema(
    [
        ("id", pa.large_string()),
        ("text", pa.large_string()),
        ("kind", pa.large_string()),
        ("size", pa.int64()),
    ]
)
INTEGERS = SCHEMA.set(0, pa.field("id", pa.int64()))


def find(
    *paths: Path,
    schema: pa.Schema = SCHEMA,
    sql: str | None = None,
    hashes: RepeatedHashes | None = None,
    **changes: Any,
) -> dict[tuple[str, int], set[int]]:
    """Duplicates in files by (name, row group); `changes` are `done` and `known` by name."""
    runs = []
    for path in paths:
        for group in range(pq.read_metadata(path).num_row_groups):
            runs.append(IdRun(str(path), group, **changes.get(path.stem, {})))
    condition = compile_condition("input.filter", sql) if sql else None
    found = find_duplicates(runs, schema, "id", condition, hashes)
    marked = {(Path(run.uri).stem, run.row_group): set(found.rows_of(n)) for n, run in enumerate(runs)}
    return {group: rows for group, rows in marked.items() if rows}


def test_ids_that_stand_once_are_no_duplicates(tmp_path: Path) -> None:
    assert find(write(tmp_path / "a.parquet", rows(range(1000)), row_group=300)) == {}


def test_no_rows_have_no_duplicates(tmp_path: Path) -> None:
    assert find(write(tmp_path / "a.parquet", rows([]))) == {}
    assert find() == {}


def test_later_rows_are_found_across_files_and_row_groups(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", rows(["x", "y", "x", "z", "y"]), row_group=2)
    b = write(tmp_path / "b.parquet", rows(["new", "z", "x"]))
    assert find(a, b) == {("a", 1): {0}, ("a", 2): {0}, ("b", 0): {1, 2}}


def test_null_ids_are_left_out(tmp_path: Path) -> None:
    assert find(write(tmp_path / "a.parquet", rows([None, "x", None, "x"]))) == {("a", 0): {3}}


def test_rows_that_the_filter_leaves_out_count_neither_as_first_nor_as_later(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows(["x", "x", "x", "x"], size=[0, 5, 0, 5]))
    assert find(path, sql="size > 1") == {("a", 0): {3}}


def test_a_row_that_the_filter_fails_on_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows(["x", "x", "x"], kind=["1", "no number", "0"]))
    assert find(path, sql="CAST(kind AS INT) > 0") == {("a", 0): {1}}


def test_bytes_that_are_no_utf8_do_no_harm(tmp_path: Path) -> None:
    table = with_bad_utf8(with_bad_utf8(rows(["x", "x", "x", "x"]), "id", [0, 1]), "kind", [2])
    assert find(write(tmp_path / "a.parquet", table), sql="kind = 'note'") == {("a", 0): {3}}


def test_the_same_integer_in_two_widths_is_one_id(tmp_path: Path) -> None:
    paths = []
    for name, kind in (("a", pa.int32()), ("b", pa.int64()), ("c", pa.uint8())):
        table = rows([1, 2]).set_column(0, "id", pa.array([7, ord(name)], kind))
        paths.append(write(tmp_path / f"{name}.parquet", table))
    assert find(*paths, schema=INTEGERS) == {("b", 0): {0}, ("c", 0): {0}}


def test_the_same_string_in_two_encodings_is_one_id(tmp_path: Path) -> None:
    table = rows(["x", "y"])
    a = write(tmp_path / "a.parquet", table)
    encoded = table.column("id").dictionary_encode()
    b = write(tmp_path / "b.parquet", table.set_column(0, "id", encoded))
    assert find(a, b) == {("b", 0): {0, 1}}


def test_committed_rows_come_before_files_that_sort_earlier(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", rows(["x", "y"]))
    b = write(tmp_path / "b.parquet", rows(["x", "z"]))
    assert find(a, b, b={"done": ((0, 2),)}) == {("a", 0): {0}}


def test_of_a_row_group_only_the_committed_rows_come_first(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", rows(["p", "q", "x", "y"]))
    b = write(tmp_path / "b.parquet", rows(["x", "q"]))
    done: dict[str, Any] = {"a": {"done": ((0, 2),)}, "b": {"done": ((0, 1),)}}
    assert find(a, b, **done) == {("a", 0): {2}, ("b", 0): {1}}


def test_a_row_that_was_left_as_a_duplicate_is_nobodys_first(tmp_path: Path) -> None:
    """Row 0 of b was the duplicate of row 0 of a, whose batch then failed: that document is due still."""
    a = write(tmp_path / "a.parquet", rows(["x"]))
    b = write(tmp_path / "b.parquet", rows(["x"]))
    assert find(a, b, b={"done": ((0, 1),), "known": frozenset({0})}) == {}


IDS = st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "e", None]), max_size=6), min_size=1, max_size=5)


@given(IDS, st.integers(1, 20))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exactly_the_rows_whose_id_stood_before_are_found_in_memory_and_on_disk_alike(
    tmp_path: Path, files: list[list[str | None]], in_memory: int
) -> None:
    paths = [write(tmp_path / f"{n}.parquet", rows(ids), row_group=3) for n, ids in enumerate(files)]
    seen: set[str] = set()
    expected: dict[tuple[str, int], set[int]] = defaultdict(set)
    for number, ids in enumerate(files):
        for row, value in enumerate(ids):
            if value in seen:
                expected[str(number), row // 3].add(row % 3)
            if value is not None:
                seen.add(value)
    assert find(*paths, hashes=RepeatedHashes(in_memory)) == expected


HASHES = st.lists(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**58, 2**64 - 1]), max_size=60)


@given(HASHES, st.integers(1, 30))
def test_the_places_of_hashes_that_repeat_are_found_whether_they_were_on_disk_or_not(
    hashes: list[int], in_memory: int
) -> None:
    with RepeatedHashes(in_memory) as found:
        for start in range(0, len(hashes), 7):
            piece = hashes[start : start + 7]
            found.add(np.array(piece, np.uint64), np.arange(start, start + len(piece)))
        places = found.repeated()
    assert list(places) == [n for n, value in enumerate(hashes) if hashes.count(value) > 1]


def test_a_folder_that_can_not_be_written_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with RepeatedHashes(1) as found, pytest.raises(InputError, match="name another folder in TMPDIR"):
        found.add(np.zeros(1, np.uint64), np.zeros(1, np.int64))


@given(
    st.sets(st.tuples(st.integers(0, 3), st.integers(0, 12))),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)), max_size=6),
)
def test_stretches_of_rows_get_the_repeated_ones_that_lie_in_them(
    rows: set[tuple[int, int]], stretches: list[tuple[int, int, int]]
) -> None:
    repeated = Repeated(np.array(sorted(run << 34 | row for run, row in rows), np.int64))
    runs, firsts, counts = np.array(stretches, np.int64).reshape(-1, 3).T
    assert repeated.inside(runs, firsts, counts).to_pylist() == [
        [row for row in range(first, first + count) if (run, row) in rows] for run, first, count in stretches
    ]
    assert [repeated.rows_of(run) for run in range(4)] == [
        [row for row in range(13) if (run, row) in rows] for run in range(4)
    ]
