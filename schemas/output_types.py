"""From a JSON Schema to an Arrow type, and from a parsed answer to a value of that type.

Supported: objects with `properties`, arrays with `items`, strings, enums, booleans, integers,
numbers, `null` beside one other type, and references inside the document. What has no single
Arrow type (free-form objects, unions of several types) is kept as JSON text in a string column,
so that no answer is refused for being hard to type.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from schemas.errors import ConfigurationError

_SCALARS = {
    "string": pa.string(),
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "number": pa.float64(),
}
_JSON_TEXT = pa.string()
_MAX_DEPTH = 24


def arrow_type(schema: dict[str, Any]) -> pa.DataType:
    """The Arrow type of a structured output: a struct with one field per property.

    Raises:
        ConfigurationError: the schema is not that of an object with properties.
    """
    kind = _type_of(schema, schema, 0)
    if not pa.types.is_struct(kind):
        raise ConfigurationError(
            "the JSON Schema must describe an object with `properties`: each becomes a typed column"
        )
    return kind


def arrow_value(value: Any, kind: pa.DataType) -> Any:
    """`value`, which is valid by the schema, in the shape that `kind` wants."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: arrow_value(value.get(field.name), field.type) for field in kind}
    if pa.types.is_list(kind):
        return [arrow_value(item, kind.value_type) for item in value]
    if pa.types.is_string(kind) and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    if pa.types.is_floating(kind):
        return float(value)
    return int(value) if pa.types.is_integer(kind) else value


def _type_of(schema: Any, root: dict[str, Any], depth: int) -> pa.DataType:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return _JSON_TEXT
    schema = _without_null(_resolved(schema, root))
    names = schema.get("type")
    if isinstance(names, list):
        names = next(iter([n for n in names if n != "null"] or ["null"])) if len(names) <= 2 else None
    if names == "object" or "properties" in schema:
        return _struct(schema, root, depth)
    if names == "array":
        return pa.list_(_type_of(schema.get("items"), root, depth + 1))
    if names is None and "enum" in schema:
        return _enum_type(schema["enum"])
    return _SCALARS.get(str(names), _JSON_TEXT)


def _struct(schema: dict[str, Any], root: dict[str, Any], depth: int) -> pa.DataType:
    properties = schema.get("properties") or {}
    if not properties:
        return _JSON_TEXT
    return pa.struct([pa.field(name, _type_of(sub, root, depth + 1)) for name, sub in properties.items()])


def _enum_type(values: list[Any]) -> pa.DataType:
    kinds = {type(v) for v in values if v is not None}
    simple = {frozenset({bool}): "boolean", frozenset({int}): "integer", frozenset({float}): "number"}
    return _SCALARS[simple.get(frozenset(kinds), "string")]


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """The schema behind `$ref`, when it points into the same document."""
    for _ in range(_MAX_DEPTH):
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return schema
        target: Any = root
        for part in filter(None, reference.removeprefix("#").split("/")):
            target = target.get(part.replace("~1", "/").replace("~0", "~"), {})
        schema = target
    return {}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """`anyOf: [X, null]` is X: every Arrow value may be NULL."""
    for key in ("anyOf", "oneOf"):
        arms = [arm for arm in schema.get(key, []) if arm != {"type": "null"}]
        if len(arms) == 1:
            return arms[0]
    return schema
