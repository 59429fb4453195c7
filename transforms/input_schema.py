"""The one schema that all files of an input can be read as."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from schemas.errors import InputError
from schemas.workload import Input
from transforms.input_files import Files

_LISTED = 10


def common_schema(files: Files, settings: Input) -> pa.Schema:
    """The schema of the needed columns that all files can be read as.

    Looks at each schema once, not at each file.

    Raises:
        InputError: a column is missing somewhere, or its types can't be brought together.
    """
    problems = [_problems(schema, settings) for schema in files.schemas]
    if any(problems):
        wrong = [f"{uri}: {problem}" for uri, number in files.with_schema() for problem in problems[number]]
        raise InputError(
            listing("columns that the workload names are missing, or stand twice:", wrong)
            + "\nMend input.id, input.text or input.columns, or the files"
        )
    _require_type(files, "input.text", settings.text, "string", _is_string)
    _require_type(
        files,
        "input.id",
        settings.id,
        "string or integer",
        lambda kind: _is_string(kind) or pa.types.is_integer(kind),
    )
    return pa.schema([_common_field(files, name) for name in settings.needed_columns])


def _problems(schema: pa.Schema, settings: Input) -> list[str]:
    """What is wrong with the columns that a workload names, in the files of one schema."""
    return [
        f"{'no' if count == 0 else count} column{'s' if count else ''} {name!r} "
        f"(has: {', '.join(schema.names[:20])})"
        for name in settings.needed_columns
        if (count := schema.names.count(name)) != 1
    ]


def _require_type(
    files: Files, key: str, name: str, wanted: str, is_wanted: Callable[[pa.DataType], bool]
) -> None:
    """A file in which all values are null may have the column as null, if another one has its type."""
    kinds = [_plain(schema.field(name).type) for schema in files.schemas]
    firsts = list(zip(files.first_of(), kinds, strict=True))
    wrong = [(first, kind) for first, kind in firsts if not (is_wanted(kind) or pa.types.is_null(kind))]
    if not wrong and all(pa.types.is_null(kind) for kind in kinds):
        wrong = firsts
    if wrong:
        first, kind = wrong[0]
        raise InputError(
            f"{key} column {name!r} is {kind} in {files.uris[first]}; it must be {wanted}. "
            "Name another column, or cast it"
        )


def _common_field(files: Files, name: str) -> pa.Field:
    field: pa.Field | None = None
    for first, schema in zip(files.first_of(), files.schemas, strict=True):
        found = pa.field(name, _plain(schema.field(name).type))
        try:
            schemas = [pa.schema([found])] if field is None else [pa.schema([field]), pa.schema([found])]
            field = pa.unify_schemas(schemas, promote_options="permissive").field(0)
        except pa.ArrowException:
            raise InputError(
                f"column {name!r} changes its type between files: {field.type if field else '?'} up to "
                f"{files.uris[max(0, first - 1)]}, {found.type} in {files.uris[first]}. "
                "Write the files with one schema"
            ) from None
    assert field is not None
    return pa.field(name, field.type)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Dictionary and view encodings are how values are stored, not what they are."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if kind in (pa.large_string(), pa.string_view(), pa.string()):
        return pa.large_string()
    return kind


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def listing(head: str, lines: Sequence[str]) -> str:
    """A sentence, and the first few of the lines that it is about."""
    shown = "".join(f"\n  {line}" for line in lines[:_LISTED])
    more = f"\n  … and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return f"{head}{shown}{more}"
