from typing import Any

import pyarrow as pa
import pytest

from schemas.errors import Problem
from transforms.expressions import Condition, ExpressionError, check_condition, compile_condition, evaluate

TABLE = pa.table(
    {
        "kind": pa.array(["a", "b", None, "A"], pa.large_string()),
        "size": pa.array([1, 2, None, 4], pa.int64()),
        "price": pa.array([0.5, float("nan"), None, 2.0]),
        "tags": pa.array([["x"], [], None, ["x", "y"]]),
        "Len": pa.array([1, 2, 3, 4]),
    }
)


def compiled(sql: str) -> Condition:
    return compile_condition("routes[0].when", sql)


def mask(sql: str, table: pa.Table = TABLE) -> list[bool]:
    (found,) = evaluate([compiled(sql)], table).masks
    return found


def check(sql: str, schema: pa.Schema = TABLE.schema) -> Problem | None:
    return check_condition(compiled(sql), schema)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("TRUE", [True, True, True, True]),
        ("FALSE", [False, False, False, False]),
        ("NULL", [False, False, False, False]),
        ("1 = 1", [True, True, True, True]),
        ("kind = 'a'", [True, False, False, False]),
        ("kind <> 'a'", [False, True, False, True]),
        ("LOWER(kind) = 'a'", [True, False, False, True]),
        ("kind IS NULL", [False, False, True, False]),
        ("size BETWEEN 2 AND 4", [False, True, False, True]),
        ("size IN (1, 4) OR kind IS NULL", [True, False, True, True]),
        ("NOT size > 1", [True, False, False, False]),
        ("kind LIKE '%a%'", [True, False, False, False]),
        ("kind ~ '^[ab]$'", [True, True, False, False]),
        ("LENGTH(kind) = 1", [True, True, False, True]),
        ("ARRAY_LENGTH(tags) > 1", [False, False, False, True]),
        ("CASE WHEN size > 1 THEN TRUE END", [False, True, False, True]),
        ("Len > 2", [False, False, True, True]),
    ],
)
def test_a_condition_is_true_for_these_rows_and_null_is_not_true(sql: str, expected: list[bool]) -> None:
    assert mask(sql) == expected
    assert check(sql) is None


@pytest.mark.parametrize("sql", ["TRUE", "size > 1"])
def test_a_table_without_rows_has_no_answers(sql: str) -> None:
    assert mask(sql, TABLE.slice(0, 0)) == []


@pytest.mark.parametrize("sql", ["TRUE", "size = 1"])
def test_a_table_of_one_row_has_one_answer(sql: str) -> None:
    assert mask(sql, TABLE.slice(0, 1)) == [True]


@pytest.mark.parametrize(
    "sql", ["size >", "size = 1; DROP TABLE x", "SELECT 1", "", "*", "no_function(size)", "'"]
)
def test_what_does_not_parse_names_key_and_expression(sql: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compiled(sql)
    assert caught.value.problem.where == "routes[0].when"
    assert caught.value.problem.value == repr(sql)
    assert caught.value.problem.allowed.startswith("not a SQL expression: ")


def test_an_unknown_column_is_named_with_those_that_are_read() -> None:
    problem = check("sise > 1")
    assert problem == Problem(
        "routes[0].when",
        "'sise > 1'",
        "column 'sise' is not read; known: kind, size, price, tags, Len",
        "add it to input.columns",
    )


@pytest.mark.parametrize(("sql", "kind"), [("size", "Int64"), ("kind", "String"), ("size + 1", "Int64")])
def test_an_expression_that_is_no_condition_is_refused(sql: str, kind: str) -> None:
    problem = check(sql)
    assert problem is not None
    assert problem.allowed == f"gives {kind}, must be true or false"


@pytest.mark.parametrize(
    "sql",
    [
        "COUNT(*) > 1", "size > AVG(size)", "FIRST(kind) = kind", "MAX(size) = size", "STDDEV(size) > 0",
        "SUM(size) OVER (PARTITION BY kind) > 1", "ROW_NUMBER() OVER (ORDER BY size) = 1",
        "RANK() OVER (ORDER BY size) = 1", "LAG(size) OVER (ORDER BY size) = 1", "CORR(size, price) > 0",
        "COVAR(size, price) > 0", "QUANTILE_CONT(size, 0.5) > 1", "UNNEST(tags) = 'x'",
        "STRING_AGG(kind, ',') = 'a'", "COUNT(DISTINCT kind) > 1", "size IN (SELECT 1)",
    ],
)  # fmt: skip
def test_an_expression_that_looks_at_other_rows_is_refused(sql: str) -> None:
    problem = check(sql)
    assert problem is not None
    assert "looks at other rows" in problem.allowed or "not read" in problem.allowed


@pytest.mark.parametrize(
    "sql", ["Len = 1", "kind = 'Agg'", "kind IN ('Over', 'Len')", 'ARRAY_SUM("Over") > 1']
)
def test_names_and_texts_that_sound_like_aggregates_are_none(sql: str) -> None:
    schema = TABLE.schema.append(pa.field("Over", pa.list_(pa.int64())))
    assert check(sql, schema) is None


@pytest.mark.parametrize("sql", ["NOW() IS NOT NULL", "CURRENT_TIMESTAMP IS NULL"])
def test_an_expression_that_depends_on_the_time_is_refused(sql: str) -> None:
    problem = check(sql)
    assert problem is not None
    assert "depends on the time" in problem.allowed


def test_an_expression_that_does_not_fit_its_columns_is_refused() -> None:
    problem = check("ARRAY_LENGTH(size) > 1")
    assert problem is not None
    assert "can't be evaluated" in problem.allowed


def test_only_the_rows_that_an_expression_fails_on_are_errors() -> None:
    table = pa.table({"kind": ["1", "two", "3", None], "size": [1, 2, 3, 4]})
    evaluation = evaluate([compiled("CAST(kind AS INT) > 1"), compiled("size > 1")], table)
    assert evaluation.masks == [[False, False, True, False], [False, True, True, True]]
    assert list(evaluation.errors) == [1]
    assert evaluation.errors[1].startswith("routes[0].when = 'CAST(kind AS INT) > 1': failed on this row: ")


@pytest.mark.parametrize(
    "sql",
    ["CAST(text AS INT) > 1", "CAST(text AS DATE) IS NULL", "REGEXP_LIKE('x', text)", "text::time > kind"],
)
def test_what_an_expression_says_of_a_row_quotes_nothing_of_it(sql: str) -> None:
    secret = "(confidential: the merger"
    for text in (secret, f"{secret} and much more of it {'x' * 200}"):
        errors = evaluate([compiled(sql)], pa.table({"text": [text], "kind": ["a"]})).errors
        assert "confidential" not in str(errors)
        assert "merger" not in str(errors)


def test_a_row_that_two_expressions_fail_on_keeps_the_first_reason() -> None:
    table = pa.table({"kind": ["x"]})
    one, two = (
        compile_condition("one", "CAST(kind AS INT) > 1"),
        compile_condition("two", "CAST(kind AS DATE) IS NULL"),
    )
    assert evaluate([one, two], table).errors[0].startswith("one = ")


def test_columns_of_types_that_polars_does_not_know_do_no_harm() -> None:
    kind: Any = pa.month_day_nano_interval()
    table = pa.table({"size": [1, 2], "odd": pa.array([None, None], kind)})
    assert mask("size > 1", table) == [False, True]
    assert mask("TRUE", table) == [True, True]
    assert check("size > 1", table.schema) is None
    problem = check("odd IS NULL", table.schema)
    assert problem is not None
    assert "can't be evaluated" in problem.allowed


def test_the_columns_of_an_expression_are_known() -> None:
    assert set(compiled("size > 1 AND kind = 'a' OR size < 0").columns) == {"size", "kind"}
