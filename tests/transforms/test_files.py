import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from schemas.errors import InputError
from schemas.workload import Input
from tests.support.documents import rows, with_bad_utf8, write
from transforms.files import find_input, list_files, refuse_own_results
from transforms.input_files import InputFiles, RowGroup


def settings(**changes: Any) -> Input:
    return Input(**{"uri": "in", "id": "id", "text": "text", "columns": ("size",), **changes})


def find(uri: Path | str, **changes: Any) -> InputFiles:
    return find_input(str(uri), settings(**changes))


def refusal(uri: Path | str, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        find(uri, **changes)
    return str(caught.value)


def names(found: list[str]) -> list[str]:
    return [Path(p).name for p in found]


# ---- which files


def test_a_file_a_folder_and_a_glob_are_inputs(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "deep/c.parquet", "notes.txt"):
        write(tmp_path / name, rows([1]))
    assert names(list_files(str(tmp_path / "notes.txt"))) == ["notes.txt"]
    assert names(list_files(str(tmp_path))) == ["a.parquet", "b.parquet", "c.parquet"]
    assert names(list_files(str(tmp_path / "*.parquet"))) == ["a.parquet", "b.parquet"]
    assert names(list_files(str(tmp_path / "**" / "*.parquet"))) == ["a.parquet", "b.parquet", "c.parquet"]


def test_hidden_names_and_folders_that_are_called_like_files_are_left_out(tmp_path: Path) -> None:
    for name in (".a.parquet", "_b.parquet", "_temporary/c.parquet", ".d/e.parquet", "out.parquet/f.parquet"):
        write(tmp_path / name, rows([1]))
    assert names(list_files(str(tmp_path))) == ["f.parquet"]


def test_a_folder_below_a_hidden_one_may_be_named_itself(tmp_path: Path) -> None:
    write(tmp_path / ".cache" / "in" / "a.parquet", rows([1]))
    assert names(list_files(str(tmp_path / ".cache" / "in"))) == ["a.parquet"]


def test_a_name_with_odd_characters_is_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a [1] ü\n.parquet", rows([1]))
    assert list_files(str(path)) == [str(path)]
    assert list_files(str(tmp_path)) == [str(path)]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("none", "no file or folder has that name"),
        ("*.none", "as a glob it matches nothing"),
        ("", "no *.parquet"),
    ],
)
def test_an_input_that_matches_nothing_says_what_to_give(tmp_path: Path, uri: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        list_files(str(tmp_path / uri))
    assert words in str(caught.value)
    assert "Give a Parquet file, a folder of them, or a glob" in str(caught.value)


def test_the_output_is_no_input(tmp_path: Path) -> None:
    write(tmp_path / "docs" / "a.parquet", rows([1]))
    write(tmp_path / "docs" / "out" / "results" / "b.parquet", rows([1]))
    found = find(tmp_path / "docs")
    with pytest.raises(InputError, match="results would be read as documents"):
        refuse_own_results(found, str(tmp_path / "docs" / "out"))
    refuse_own_results(found, str(tmp_path / "docs" / "ou"))


# ---- what a footer says


def test_a_file_is_described_by_its_footer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows(range(25)), row_group=10)
    (file,) = find(tmp_path).files
    stat = path.stat()
    assert (file.uri, file.size, file.mtime_ns, file.rows) == (str(path), stat.st_size, stat.st_mtime_ns, 25)
    assert [(g.index, g.rows) for g in file.row_groups] == [(0, 10), (1, 10), (2, 5)]


def test_bytes_are_those_of_the_columns_that_are_read(tmp_path: Path) -> None:
    table = rows(range(100), text="x" * 1000, unread=["y" * 5000] * 100)
    write(tmp_path / "a.parquet", table, compression="none", use_dictionary=False)
    (group,) = find(tmp_path).files[0].row_groups
    assert 100_000 < group.bytes < 110_000


def test_bytes_of_nested_columns_and_of_names_with_dots_are_counted(tmp_path: Path) -> None:
    table = rows(
        range(100),
        **{"a.b": ["x" * 1000] * 100, "deep": [{"list": ["y" * 1000]}] * 100, "a": ["z" * 9000] * 100},
    )
    write(tmp_path / "a.parquet", table, compression="none", use_dictionary=False)
    (group,) = find(tmp_path, columns=("a.b", "deep")).files[0].row_groups
    assert 200_000 < group.bytes < 220_000


def test_a_generation_is_of_the_content_alone(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", rows([1, 2]))
    (tmp_path / "b.parquet").write_bytes(first.read_bytes())
    write(tmp_path / "c.parquet", rows([1, 3]))
    os.utime(first, (1, 1))
    a, b, c = find(tmp_path).files
    assert a.generation == b.generation != c.generation
    assert a.generation.startswith("sha256:")
    assert len(a.generation) == len("sha256:") + 32


def test_files_and_row_groups_without_rows_are_readable(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows([]))
    write(tmp_path / "b.parquet", rows([1]))
    assert [file.rows for file in find(tmp_path).files] == [0, 1]
    assert [g.rows for g in find(tmp_path / "a.parquet").files[0].row_groups] in ([0], [])


def test_row_groups_are_plain_values() -> None:
    assert RowGroup(0, 1, 2) == RowGroup(0, 1, 2)


# ---- files that can't be read


def test_what_is_no_parquet_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("id,text\n1,hello\n")
    (tmp_path / "b.parquet").write_bytes(b"")
    write(tmp_path / "c.parquet", rows([1]))
    said = refusal(tmp_path)
    assert said.startswith("2 of 3 input files can't be used:")
    assert f"{tmp_path}/a.parquet: no readable Parquet file (" in said
    assert f"{tmp_path}/b.parquet: the file is empty (0 bytes)" in said
    assert 'input.unreadable_files = "skip"' in said


def test_a_file_cut_off_anywhere_is_unreadable(tmp_path: Path) -> None:
    data = write(tmp_path / "whole.parquet", rows(range(100)), row_group=30).read_bytes()
    (tmp_path / "whole.parquet").unlink()
    lengths = [
        1,
        4,
        7,
        8,
        11,
        12,
        len(data) // 4,
        len(data) // 2,
        len(data) - 9,
        len(data) - 8,
        len(data) - 1,
    ]
    for length in lengths:
        (tmp_path / f"{length:06}.parquet").write_bytes(data[:length])
    said = refusal(tmp_path)
    assert said.startswith(f"{len(lengths)} of {len(lengths)} input files can't be used:")
    assert said.count("no readable Parquet file") == 10  # then a line with how many more
    assert "… and 1 more" in said


def test_unreadable_files_are_skipped_and_listed_where_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no")
    write(tmp_path / "b.parquet", rows([1]))
    found = find(tmp_path, unreadable_files="skip")
    assert names([file.uri for file in found.files]) == ["b.parquet"]
    assert [line.split(":")[0] for line in found.skipped] == [f"{tmp_path}/a.parquet"]


def test_an_input_of_unreadable_files_alone_is_refused_even_then(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no")
    assert refusal(tmp_path, unreadable_files="skip").startswith("1 of 1 input files can't be used")


def test_a_link_to_nowhere_is_a_file_that_can_not_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").symlink_to(tmp_path / "gone")
    assert "a.parquet: no readable Parquet file ([Errno 2]" in refusal(tmp_path)


# ---- columns


def test_a_missing_column_is_named_with_its_files_and_what_they_have(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows([1]))
    write(tmp_path / "b.parquet", rows([1]).drop_columns(["size"]))
    said = refusal(tmp_path, columns=("size", "more"))
    assert f"{tmp_path}/a.parquet: no column 'more' (has: id, text, kind, size)" in said
    assert f"{tmp_path}/b.parquet: no column 'size' (has: id, text, kind)" in said
    assert "Mend input.id, input.text or input.columns, or the files" in said


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    table = rows([1])
    write(tmp_path / "a.parquet", table.append_column("size", table.column("size")))
    assert "a.parquet: 2 columns 'size'" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("key", "column", "values", "kind"),
    [
        ("text", "text", pa.array([1, 2]), "int64"),
        ("text", "text", pa.array([b"x", b"y"]), "binary"),
        ("text", "text", pa.array([None, None]), "null"),
        ("id", "id", pa.array([1.5, 2.5]), "double"),
        ("id", "id", pa.array([["a"], ["b"]]), "list<element: string>"),
    ],
)
def test_a_column_of_an_unusable_type_is_refused(
    tmp_path: Path, key: str, column: str, values: pa.Array, kind: str
) -> None:
    write(tmp_path / "a.parquet", rows([1, 2]))
    table = rows([1, 2])
    write(tmp_path / "b.parquet", table.set_column(table.schema.get_field_index(column), column, values))
    if kind == "null":
        (tmp_path / "a.parquet").unlink()
    assert f"input.{key} column {column!r} is {kind} in {tmp_path}/b.parquet; it must be string" in refusal(
        tmp_path
    )


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int64(), pa.int32(), pa.int64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.int32(), pa.float64(), pa.float64()),
        (pa.null(), pa.string(), pa.large_string()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("ns")),
        (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.large_string()),
    ],
)
def test_types_that_widen_without_loss_are_brought_together(
    tmp_path: Path, one: pa.DataType, other: pa.DataType, both: pa.DataType
) -> None:
    for name, kind in (("a", one), ("b", other)):
        write(tmp_path / f"{name}.parquet", rows([1]).append_column("x", pa.array([None], kind)))
    assert find(tmp_path, columns=("x",)).schema.field("x").type == both


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.int64(), pa.string()),
        (pa.string(), pa.int32()),
        (pa.date32(), pa.timestamp("us")),
        (pa.bool_(), pa.int8()),
    ],
)
def test_types_that_do_not_go_together_are_refused_with_both_files(
    tmp_path: Path, one: pa.DataType, other: pa.DataType
) -> None:
    for name, kind in (("a", one), ("b", other)):
        write(tmp_path / f"{name}.parquet", rows([1]).append_column("x", pa.array([None], kind)))
    said = refusal(tmp_path, columns=("x",))
    assert "column 'x' changes its type between files" in said
    assert f"{tmp_path}/a.parquet" in said
    assert f"{tmp_path}/b.parquet. Write the files with one schema" in said


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_way_to_store_strings_is_string(tmp_path: Path, kind: pa.DataType) -> None:
    table = rows([1])
    text = table.column("text").cast(kind)
    write(tmp_path / "a.parquet", table.set_column(1, "text", text))
    assert find(tmp_path).schema.field("text").type == pa.large_string()


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint64()])
def test_integers_are_ids(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path / "a.parquet", rows([1]).set_column(0, "id", pa.array([1], kind)))
    assert find(tmp_path).schema.field("id").type == kind


def test_the_text_may_be_the_id(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows([1]))
    assert find(tmp_path, id="text").schema.names == ["text", "size"]


def test_bytes_that_are_no_utf8_do_not_stop_the_listing(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", with_bad_utf8(rows([1, 2]), "text", [1]))
    assert find(tmp_path).files[0].rows == 2
