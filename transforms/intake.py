"""The first look at a batch's rows: which of them can't be worked on, and why.

Whatever is wrong with one row becomes that row's failure; the rest goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.failures import FailureClass
from schemas.workload import Input
from transforms.expressions import Condition, evaluate


@dataclass(frozen=True, slots=True)
class Intake:
    """A batch's rows after the first look.

    `table` has the same rows with unusable strings set to NULL, so that it is safe to evaluate;
    `ids` are the document ids as strings; `skipped` are the positions that the filter leaves out;
    `faults` maps positions to (class, message).
    """

    table: pa.Table
    ids: list[str | None]
    skipped: frozenset[int]
    faults: dict[int, tuple[FailureClass, str]]


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What the input's filter says of a table, and the rows of which it can't say anything."""

    table: pa.Table
    skipped: frozenset[int]
    faults: dict[int, tuple[FailureClass, str]]


def inspect_rows(
    table: pa.Table, settings: Input, row_filter: Condition | None, duplicate_positions: Sequence[int]
) -> Intake:
    """Apply the input's filter and find the rows without a usable id or text."""
    look = look_at_rows(table, row_filter)
    table, skipped, faults = look.table, look.skipped, look.faults
    ids = _ids(table.column(settings.id))
    for position in duplicate_positions:
        message = f"the id {ids[position]!r} stands in an earlier row"
        faults.setdefault(position, (FailureClass.DUPLICATE_ID, message))
    _find_repeats(ids, skipped, faults)
    table = _without_long_texts(table, settings, faults)
    _find_bad_texts(table.column(settings.text), faults)
    return Intake(table, ids, skipped, {p: f for p, f in faults.items() if p not in skipped})


def look_at_rows(table: pa.Table, row_filter: Condition | None) -> FirstLook:
    """Apply the input's filter.

    A row with text that is no valid UTF-8, or that the filter fails on, is a failure and not skipped:
    what the filter says of it can't be known.
    """
    table, faults = _without_invalid_text(table)
    if row_filter is None:
        return FirstLook(table, frozenset(), faults)
    evaluation = evaluate([row_filter], table)
    for position, message in evaluation.errors.items():
        faults.setdefault(position, (FailureClass.EXPRESSION_ERROR, message))
    left_out = frozenset(p for p, kept in enumerate(evaluation.masks[0]) if not kept)
    return FirstLook(table, left_out - faults.keys(), faults)


def _without_invalid_text(table: pa.Table) -> tuple[pa.Table, dict[int, tuple[FailureClass, str]]]:
    faults: dict[int, tuple[FailureClass, str]] = {}
    for index, field in enumerate(table.schema):
        bad = _invalid_positions(table.column(index)) if _holds_text(field.type) else {}
        for position, shown in bad.items():
            message = f"column {field.name!r} is not valid UTF-8{shown}"
            faults.setdefault(position, (FailureClass.INVALID_TEXT, message))
        if bad:
            kept = [None if p in bad else p for p in range(table.num_rows)]
            cleaned = table.column(index).take(pa.array(kept, pa.int64()))
            table = table.set_column(index, field, cleaned)
    return table, faults


def _holds_text(kind: pa.DataType) -> bool:
    """Whether there are strings in values of this type."""
    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return True
    return any(_holds_text(kind.field(i).type) for i in range(kind.num_fields))


def _invalid_positions(column: pa.ChunkedArray) -> dict[int, str]:
    """Positions of values that are no valid UTF-8, with where that is; usually none."""
    if _is_valid(column):
        return {}
    bad = (p for p in range(len(column)) if not _is_valid(column.take(pa.array([p], pa.int64()))))
    return {position: _first_invalid(column, position) for position in bad}


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _first_invalid(column: pa.ChunkedArray, position: int) -> str:
    """The first byte that is wrong, and none of the text before it."""
    if not pa.types.is_large_string(column.type):
        return ""
    data = column.slice(position, 1).cast(pa.large_binary())[0].as_py()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f" (byte 0x{data[error.start]:02x} at {error.start})"
    return ""


def _ids(column: pa.ChunkedArray) -> list[str | None]:
    return [None if v is None else str(v) for v in column.to_pylist()]


def _find_repeats(
    ids: list[str | None], skipped: frozenset[int], faults: dict[int, tuple[FailureClass, str]]
) -> None:
    """Null ids, and ids that stand twice in the batch."""
    seen: set[str] = set()
    for position, document_id in enumerate(ids):
        if position in skipped:
            continue
        if document_id is None:
            faults.setdefault(position, (FailureClass.NULL_ID, "the document has no id"))
        elif document_id in seen:
            message = f"the id {document_id!r} stands in an earlier row"
            faults.setdefault(position, (FailureClass.DUPLICATE_ID, message))
        elif position not in faults:
            seen.add(document_id)


def _without_long_texts(
    table: pa.Table, settings: Input, faults: dict[int, tuple[FailureClass, str]]
) -> pa.Table:
    """The table without texts that are too long: none of what follows copies a gigabyte for nothing."""
    column = table.column(settings.text)
    lengths = pc.utf8_length(column)
    too_long = _true_positions(pc.greater(lengths, settings.max_text_chars))
    for position in too_long:
        message = (
            f"the text has {lengths[position].as_py():,} characters; "
            f"input.max_text_chars is {settings.max_text_chars:,}"
        )
        faults.setdefault(position, (FailureClass.TEXT_TOO_LONG, message))
    if not too_long:
        return table
    left_out = frozenset(too_long)
    kept = [None if p in left_out else p for p in range(table.num_rows)]
    cleaned = column.take(pa.array(kept, pa.int64()))
    return table.set_column(table.schema.get_field_index(settings.text), settings.text, cleaned)


def _find_bad_texts(column: pa.ChunkedArray, faults: dict[int, tuple[FailureClass, str]]) -> None:
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)
    for position in _true_positions(pc.is_null(column)):
        faults.setdefault(position, (FailureClass.NULL_TEXT, "the text is null"))
    for position in _true_positions(blank):
        faults.setdefault(position, (FailureClass.EMPTY_TEXT, "the text is empty or blank"))


def _true_positions(mask: pa.ChunkedArray) -> list[int]:
    return np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False)).tolist()
