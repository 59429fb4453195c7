"""From rows to the requests of a hosted route, as they are sent and as a quote measures them."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from schemas.outcomes import Assignment
from transforms.call.request import CallRequest
from transforms.prompt import CompiledPrompt, PromptError

_CONVERSION_ERRORS = (ValueError, OverflowError, pa.ArrowException)


def prompt_rows(
    table: pa.Table, positions: Sequence[int], prompt: CompiledPrompt
) -> list[dict[str, object] | None]:
    """What a prompt asks for, of some rows; None for a row with a value that Python can't hold."""
    columns = [name for name in table.column_names if name in prompt.variables]
    if not columns:
        return [{} for _ in positions]
    taken = _in_microseconds(table.select(columns).take(pa.array(positions, pa.int64())))
    try:
        return list(taken.to_pylist())
    except _CONVERSION_ERRORS:
        return [_row(taken, index) for index in range(len(positions))]


def _row(table: pa.Table, index: int) -> dict[str, object] | None:
    try:
        return dict(table.slice(index, 1).to_pylist()[0])
    except _CONVERSION_ERRORS:
        return None


def _in_microseconds(table: pa.Table) -> pa.Table:
    """Instants as Python knows them, which is to the microsecond."""
    for index, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            kind = pa.timestamp("us", field.type.tz)
            table = table.set_column(index, field.name, table.column(index).cast(kind, safe=False))
    return table


def prompt_request(
    prompt: CompiledPrompt,
    document_sha256: str,
    assignment: Assignment,
    row: dict[str, object] | None,
    shared: int | None,
) -> CallRequest:
    """The request for one row; `shared` as in `CallRequest`.

    Raises:
        PromptError: the template fails on the row, or the row has a value that no prompt can show.
    """
    if row is None:
        raise PromptError(f"a column of prompt {prompt.name!r} has a value outside of what a prompt can show")
    return CallRequest(
        assignment=assignment,
        system=prompt.prompt.system,
        prompt=prompt.render(row),
        json_schema=prompt.prompt.json_schema,
        document_sha256=document_sha256,
        prompt_sha256=prompt.sha256,
        repair=prompt.prompt.repair and prompt.prompt.json_schema is not None,
        shared=shared,
    )


def text_request(text: str, document_sha256: str, assignment: Assignment) -> CallRequest:
    """The request for a text's vector: the text itself."""
    return CallRequest(assignment, "", text, None, document_sha256, "")
