"""SQL expressions over the input's columns, by Polars: compiled once, evaluated on whole tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from schemas.errors import Problem, first_line
from transforms.row_texts import repeats


@dataclass(frozen=True, slots=True)
class Condition:
    """A SQL expression that is true, false or NULL for a row; NULL counts as not true."""

    where: str
    sql: str
    expression: pl.Expr

    @property
    def columns(self) -> list[str]:
        """The columns that the expression reads."""
        return self.expression.meta.root_names()


class ExpressionError(ValueError):
    """An expression that can't be parsed or evaluated; carries the problem to show."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


def compile_condition(where: str, sql: str) -> Condition:
    """Parse an expression; `where` is its key path in the workload.

    Raises:
        ExpressionError: it does not parse.
    """
    try:
        return Condition(where, sql, pl.sql_expr(sql))
    except BaseException as error:
        _reraise_exit(error)
        raise ExpressionError(
            Problem(where, repr(sql), f"not a SQL expression: {first_line(error)}", "see Polars SQL")
        ) from None


def check_condition(condition: Condition, schema: pa.Schema) -> Problem | None:
    """What is wrong with an expression for columns of this schema; None if it can be evaluated."""
    unknown = [c for c in condition.columns if c not in schema.names]
    if unknown:
        allowed = f"column {unknown[0]!r} is not read; known: {', '.join(schema.names)}"
        return Problem(condition.where, repr(condition.sql), allowed, "add it to input.columns")
    tree = condition.expression.meta.serialize(format="json")
    if _looks_at_other_rows(json.loads(tree)):
        allowed = "looks at other rows (an aggregate or a window); a document is judged by itself"
        return Problem(condition.where, repr(condition.sql), allowed, "use the row's own columns only")
    if tree != pl.sql_expr(condition.sql).meta.serialize(format="json"):
        allowed = "depends on the time; a document must be routed the same way whenever it is tried"
        return Problem(condition.where, repr(condition.sql), allowed, "write the date into the expression")
    return _check_result(condition, schema)


def _check_result(condition: Condition, schema: pa.Schema) -> Problem | None:
    try:
        frame = _frame(condition, schema.empty_table())
        kind = frame.select(condition.expression.alias("_")).schema["_"]
    except BaseException as error:
        _reraise_exit(error)
        return Problem(condition.where, repr(condition.sql), f"can't be evaluated: {first_line(error)}")
    if kind not in (pl.Boolean, pl.Null):
        return Problem(condition.where, repr(condition.sql), f"gives {kind}, must be true or false")
    return None


_OTHER_ROWS = frozenset({"Agg", "Over", "Explode", "Len", "Correlation", "Quantile", "Rank"})
"""What Polars' SQL turns aggregates, windows, UNNEST, COUNT(*), CORR, COVAR, QUANTILE_* and RANK into."""


def _looks_at_other_rows(node: Any) -> bool:
    """Whether an expression's tree holds anything that looks at more than one row."""
    if isinstance(node, dict):
        names = node.keys() - {"Literal", "Column", "Alias"}
        inner = [node[name] for name in names] + [a[0] for a in [node.get("Alias")] if a]
        return bool(names & _OTHER_ROWS) or any(map(_looks_at_other_rows, inner))
    if isinstance(node, list):
        return any(map(_looks_at_other_rows, node))
    return node in _OTHER_ROWS


@dataclass(frozen=True, slots=True)
class Evaluation:
    """For each condition one bool a row: whether it is true there; `errors` are rows it fails on."""

    masks: list[list[bool]]
    errors: dict[int, str]


def evaluate(conditions: Sequence[Condition], table: pa.Table) -> Evaluation:
    """Evaluate conditions on whole columns; only if that fails, row by row to find the culprits."""
    masks: list[list[bool]] = []
    errors: dict[int, str] = {}
    for condition in conditions:
        try:
            masks.append(_evaluate_one(condition, table))
        except ExpressionError:
            masks.append(_evaluate_each_row(condition, table, errors))
    return Evaluation(masks, errors)


def _evaluate_each_row(condition: Condition, table: pa.Table, errors: dict[int, str]) -> list[bool]:
    mask = [False] * table.num_rows
    for position in range(table.num_rows):
        try:
            mask[position] = _evaluate_one(condition, table.slice(position, 1))[0]
        except ExpressionError as error:
            errors.setdefault(position, str(error))
    return mask


def _evaluate_one(condition: Condition, table: pa.Table) -> list[bool]:
    expression = condition.expression.cast(pl.Boolean).fill_null(False)
    try:
        column = _frame(condition, table).select(expression.alias("_"))["_"]
    except BaseException as error:
        _reraise_exit(error)
        message = f"failed on this row: {_without_values(error, table.slice(0, 1))}"
        raise ExpressionError(Problem(condition.where, repr(condition.sql), message)) from None
    if not condition.columns:  # a constant such as TRUE
        return [bool(column[0])] * table.num_rows
    return column.to_list()


def _without_values(error: BaseException, row: pa.Table) -> str:
    """What is wrong, without the values that Polars quotes."""
    said = first_line(error).split(" values: ")[0]
    return type(error).__name__ if repeats(said, row.to_pylist()) else said


def _frame(condition: Condition, table: pa.Table) -> pl.DataFrame:
    """The columns that an expression reads; others may be of types that Polars does not know."""
    return pl.DataFrame(table.select(list(dict.fromkeys(condition.columns))))


def _reraise_exit(error: BaseException) -> None:
    """Polars panics derive from BaseException; only what really ends a process may pass."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
        raise error
