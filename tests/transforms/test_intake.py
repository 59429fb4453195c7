from typing import Any

import pyarrow as pa
import pytest

from schemas.failures import FailureClass
from schemas.workload import Input
from tests.support.documents import rows, with_bad_utf8
from transforms.expressions import compile_condition
from transforms.intake import Intake, inspect_rows, look_at_rows
from transforms.probe_rows import read_table_as

NULL_ID, DUPLICATE = FailureClass.NULL_ID, FailureClass.DUPLICATE_ID
NULL_TEXT, EMPTY = FailureClass.NULL_TEXT, FailureClass.EMPTY_TEXT
LONG, INVALID = FailureClass.TEXT_TOO_LONG, FailureClass.INVALID_TEXT


def as_read(table: pa.Table) -> pa.Table:
    """A table as a reader gives it: strings large."""
    fields = [pa.field(f.name, pa.large_string()) if f.type == pa.string() else f for f in table.schema]
    return read_table_as(table, pa.schema(fields))


def inspect(
    table: pa.Table, sql: str | None = None, duplicates: tuple[int, ...] = (), **changes: Any
) -> Intake:
    settings = Input(**{"uri": "in", "id": "id", "text": "text", "columns": ("kind", "size"), **changes})
    condition = compile_condition("input.filter", sql) if sql else None
    return inspect_rows(as_read(table), settings, condition, duplicates)


def classes(intake: Intake) -> dict[int, FailureClass]:
    return {position: failure for position, (failure, _) in intake.faults.items()}


def test_sound_rows_have_ids_and_no_faults() -> None:
    intake = inspect(rows(["a", "b"]))
    assert (intake.ids, intake.skipped, intake.faults) == (["a", "b"], frozenset(), {})
    assert intake.table.num_rows == 2


def test_integer_ids_are_written_out() -> None:
    table = rows([1, 2]).set_column(0, "id", pa.array([7, None], pa.int32()))
    intake = inspect(table)
    assert intake.ids == ["7", None]
    assert classes(intake) == {1: NULL_ID}


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        (None, NULL_TEXT), ("", EMPTY), (" \t\n", EMPTY), ("\u2003\u00a0", EMPTY), ("x" * 11, LONG),
        ("ä" * 11, LONG), ("ä" * 10, None), ("x", None),
    ],
)  # fmt: skip
def test_texts_that_can_not_be_sent_are_faults(text: str | None, failure: FailureClass | None) -> None:
    found = classes(inspect(rows([1, 2], text=["fine", text]), max_text_chars=10))
    assert found == ({} if failure is None else {1: failure})


def test_a_text_that_is_too_long_says_by_how_much() -> None:
    _, message = inspect(rows([1], text="x" * 1234), max_text_chars=1000).faults[0]
    assert message == "the text has 1,234 characters; input.max_text_chars is 1,000"


def test_an_id_that_stands_twice_in_a_batch_is_a_fault_the_second_time() -> None:
    intake = inspect(rows(["a", "b", "a", "a"]))
    assert classes(intake) == {2: DUPLICATE, 3: DUPLICATE}
    assert intake.faults[2][1] == "the id 'a' stands in an earlier row"


def test_a_row_that_can_not_be_read_is_not_the_first_of_its_id() -> None:
    intake = inspect(with_bad_utf8(rows(["a", "a", "a"]), "kind", [0]))
    assert classes(intake) == {0: INVALID, 2: DUPLICATE}


def test_rows_that_the_plan_found_to_be_duplicates_are_faults() -> None:
    assert classes(inspect(rows(["a", "b"]), duplicates=(1,))) == {1: DUPLICATE}


def test_null_ids_are_not_duplicates_of_each_other() -> None:
    assert classes(inspect(rows([None, None]))) == {0: NULL_ID, 1: NULL_ID}


def test_a_row_with_two_troubles_has_the_first_one() -> None:
    assert classes(inspect(rows([None, "a"], text=[None, "x"]))) == {0: NULL_ID}


@pytest.mark.parametrize("column", ["id", "text", "kind"])
def test_bytes_that_are_no_utf8_are_that_rows_fault(column: str) -> None:
    intake = inspect(with_bad_utf8(rows(["a", "b", "c"]), column, [1]))
    assert classes(intake) == {1: INVALID}
    message = f"column {column!r} is not valid UTF-8 (byte 0xff at 0)"
    assert intake.faults[1][1] == message
    assert intake.table.column(column)[1].as_py() is None
    assert intake.table.column(column)[2].as_py() == rows(["a", "b", "c"]).column(column)[2].as_py()
    intake.table.validate(full=True)


def bad_strings() -> pa.Array:
    return pa.array([b"ok", b"\xff", b"ok"], pa.binary()).view(pa.string())


@pytest.mark.parametrize(
    "values",
    [
        pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), bad_strings()),
        pa.StructArray.from_arrays([bad_strings()], names=["a"]),
        pa.MapArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), pa.array(["k"] * 3), bad_strings()),
    ],
    ids=["list", "struct", "map"],
)
def test_bytes_that_are_no_utf8_inside_nested_values_are_that_rows_fault(values: pa.Array) -> None:
    intake = inspect(rows(["a", "b", "c"]).append_column("deep", values), columns=("deep",))
    assert classes(intake) == {1: INVALID}
    assert intake.faults[1][1] == "column 'deep' is not valid UTF-8"
    assert intake.table.column("deep").null_count == 1
    assert len(intake.table.to_pylist()) == 3


def test_a_filter_leaves_rows_out_of_everything() -> None:
    table = rows(["a", "a", None, "b"], size=[1, 5, 1, 1], text=[None, "x", "x", ""])
    intake = inspect(table, "size > 1")
    assert intake.skipped == {0, 2, 3}
    assert intake.faults == {}


def test_a_filter_that_is_null_leaves_the_row_out() -> None:
    assert inspect(rows(["a", "b"], size=[None, 2]), "size > 1").skipped == {0}


def test_a_row_that_is_left_out_is_not_the_first_of_its_id() -> None:
    intake = inspect(rows(["a", "a"], size=[1, 2]), "size > 1")
    assert (intake.skipped, intake.faults) == ({0}, {})


def test_a_row_with_invalid_text_is_a_fault_whatever_the_filter_says() -> None:
    intake = inspect(with_bad_utf8(rows(["a", "b"], size=1), "kind", [0]), "size > 1")
    assert (intake.skipped, classes(intake)) == ({1}, {0: INVALID})


def test_a_row_that_the_filter_fails_on_is_a_fault_and_others_are_judged() -> None:
    table = rows(["a", "b", "c"], kind=["1", "x", "3"])
    intake = inspect(table, "CAST(kind AS INT) > 1")
    assert intake.skipped == {0}
    assert classes(intake) == {1: FailureClass.EXPRESSION_ERROR}


def test_an_empty_batch_is_inspected() -> None:
    intake = inspect(rows([]), "size > 1")
    assert (intake.ids, intake.skipped, intake.faults) == ([], frozenset(), {})


def test_a_first_look_needs_neither_id_nor_text() -> None:
    look = look_at_rows(pa.table({"size": [1, 2]}), compile_condition("input.filter", "size > 1"))
    assert (look.skipped, look.faults) == ({0}, {})
