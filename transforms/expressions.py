"""SQL expressions over the input's columns, by Polars: compiled once, evaluated on whole tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from schemas.errors import Problem, first_line


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
    if _looks_at_other_rows(json.loads(condition.expression.meta.serialize(format="json"))):
        allowed = "looks at other rows (an aggregate or a window); a document is judged by itself"
        return Problem(condition.where, repr(condition.sql), allowed, "use the row's own columns only")
    frame = pl.DataFrame(schema.empty_table())
    try:
        kind = frame.select(condition.expression.alias("_")).schema["_"]
    except BaseException as error:
        _reraise_exit(error)
        return Problem(condition.where, repr(condition.sql), f"can't be evaluated: {first_line(error)}")
    if kind not in (pl.Boolean, pl.Null):
        return Problem(condition.where, repr(condition.sql), f"gives {kind}, must be true or false")
    return None


def _looks_at_other_rows(node: Any) -> bool:
    """Whether an expression's tree holds an aggregate, a window or the table's length."""
    if isinstance(node, dict):
        return any(
            key in ("Agg", "Over") or (key != "Literal" and _looks_at_other_rows(value))
            for key, value in node.items()
        )
    if isinstance(node, list):
        return any(_looks_at_other_rows(item) for item in node)
    return node == "Len"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """For each condition one bool a row: whether it is true there; `errors` are rows it fails on."""

    masks: list[list[bool]]
    errors: dict[int, str]


def evaluate(conditions: Sequence[Condition], table: pa.Table) -> Evaluation:
    """Evaluate conditions on whole columns; only if that fails, row by row to find the culprits."""
    frame = pl.DataFrame(table)
    masks: list[list[bool]] = []
    errors: dict[int, str] = {}
    for condition in conditions:
        try:
            masks.append(_evaluate_one(condition, frame))
        except ExpressionError:
            masks.append(_evaluate_each_row(condition, frame, errors))
    return Evaluation(masks, errors)


def _evaluate_each_row(condition: Condition, frame: pl.DataFrame, errors: dict[int, str]) -> list[bool]:
    mask = [False] * frame.height
    for position in range(frame.height):
        try:
            mask[position] = _evaluate_one(condition, frame.slice(position, 1))[0]
        except ExpressionError as error:
            errors.setdefault(position, str(error))
    return mask


def _evaluate_one(condition: Condition, frame: pl.DataFrame) -> list[bool]:
    try:
        column = frame.select(condition.expression.cast(pl.Boolean).fill_null(False).alias("_"))["_"]
    except BaseException as error:
        _reraise_exit(error)
        message = f"failed on this row: {first_line(error)}"
        raise ExpressionError(Problem(condition.where, repr(condition.sql), message)) from None
    if len(column) == 1 and frame.height != 1:  # a constant such as TRUE
        return [bool(column[0])] * frame.height
    return column.to_list()


def _reraise_exit(error: BaseException) -> None:
    """Polars panics derive from BaseException; only what really ends a process may pass."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
        raise error
