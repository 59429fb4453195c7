"""From a JSON Schema to an Arrow type, and from a parsed answer to a value of that type.

Supported: objects with `properties`, arrays with `items`, strings, enums, booleans, integers,
numbers, `null` beside one other type, and references inside the document. What has no single
Arrow type (free-form objects, unions of several types) is kept as JSON text in a string column,
so that no answer is refused for being hard to type.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from schemas.errors import ConfigurationError

_SCALARS = {
    "string": pa.string(),
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "number": pa.float64(),
}
_JSON_TEXT = pa.string()


def arrow_type(schema: dict[str, Any]) -> pa.DataType:
    """The Arrow type of a structured output: a struct with one field per property.

    Raises:
        ConfigurationError: the schema is not that of an object with properties, or a reference in it
            points nowhere.
    """
    kind = _type_of(schema, schema, ("#",))
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


def _type_of(schema: Any, root: dict[str, Any], inside: tuple[str, ...]) -> pa.DataType:
    """The type of a sub-schema; `inside` are the references that it stands in."""
    if not isinstance(schema, dict):
        return _JSON_TEXT
    if "$ref" in schema:
        return _referenced(str(schema["$ref"]), root, inside)
    arm = _only_arm(schema)
    if arm is not None:
        return _type_of(arm, root, inside)
    name = _type_name(schema)
    if name == "object":
        return _struct(schema, root, inside)
    if name == "array":
        return pa.list_(_type_of(schema.get("items"), root, inside))
    return _SCALARS.get(name, _JSON_TEXT)


def _referenced(reference: str, root: dict[str, Any], inside: tuple[str, ...]) -> pa.DataType:
    if reference in inside:  # a schema inside itself has no finite type
        return _JSON_TEXT
    return _type_of(resolve_reference(reference, root), root, (*inside, reference))


def _type_name(schema: dict[str, Any]) -> str:
    """The one type that the schema's values have besides null; empty if there is none."""
    names = schema.get("type")
    if names is None:
        return "object" if "properties" in schema else _enum_type(schema.get("enum", []))
    different = {names} if isinstance(names, str) else set(names) - {"null"}
    if different == {"integer", "number"}:
        return "number"
    return str(different.pop()) if len(different) == 1 else ""


def _struct(schema: dict[str, Any], root: dict[str, Any], inside: tuple[str, ...]) -> pa.DataType:
    properties = schema.get("properties") or {}
    if not properties:
        return _JSON_TEXT
    return pa.struct([pa.field(name, _type_of(sub, root, inside)) for name, sub in properties.items()])


def _enum_type(values: list[Any]) -> str:
    kinds = {type(v) for v in values if v is not None}
    simple = {frozenset({bool}): "boolean", frozenset({int}): "integer", frozenset({float}): "number"}
    return simple.get(frozenset(kinds), "")


def resolve_reference(reference: str, root: dict[str, Any]) -> Any:
    """The schema behind a reference into the same document (a JSON Pointer, RFC 6901).

    Raises:
        ConfigurationError: it points nowhere.
    """
    target: Any = root
    try:
        if not reference.startswith("#"):
            raise KeyError(reference)
        for part in filter(None, unquote(reference).removeprefix("#").split("/")):
            key = part.replace("~1", "/").replace("~0", "~")
            target = target[int(key)] if isinstance(target, list) else target[key]
    except (KeyError, IndexError, ValueError, TypeError):
        raise ConfigurationError(
            f"the reference {reference!r} points nowhere in the JSON Schema; "
            "it must be the path of a part of it, such as '#/$defs/Name'"
        ) from None
    return target


def _only_arm(schema: dict[str, Any]) -> Any:
    """X of `anyOf: [X, null]`: every Arrow value may be NULL. None if there is no such arm."""
    if "type" in schema:
        return None
    for key in ("anyOf", "oneOf", "allOf"):
        arms = [arm for arm in schema.get(key, []) if arm != {"type": "null"}]
        if len(arms) == 1:
            return arms[0]
    return None
