"""What providers refuse in a JSON Schema before any model sees it.

Sources: OpenAI, "Structured model outputs", supported schemas (every object closed, every property
required, an object at the root); Anthropic, "Structured outputs", JSON Schema limitations (every
object closed).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jsonschema
import orjson

_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMA_MAPS = ("properties", "$defs", "definitions")


def not_a_schema(schema: dict[str, Any]) -> str:
    """Why this is no JSON Schema at all (`{"minimum": "x"}`); empty when it is one."""
    return _complaint(orjson.dumps(schema))


@lru_cache(maxsize=256)
def _complaint(schema_json: bytes) -> str:
    """Cached, because a route sends the same schema with every document and the check takes a while."""
    try:
        jsonschema.Draft202012Validator.check_schema(orjson.loads(schema_json))
    except jsonschema.SchemaError as problem:
        return f"{problem.json_path}: {problem.message}"
    return ""


def open_object(schema: Any) -> tuple[str, ...] | None:
    """Where the first object stands that doesn't say `additionalProperties: false`, or None."""
    for path, part in _objects(schema, ()):
        if part.get("additionalProperties") is not False:
            return path
    return None


def optional_property(schema: Any) -> tuple[tuple[str, ...], str] | None:
    """The first property that is not required: where its object stands, and its name; or None."""
    for path, part in _objects(schema, ()):
        required = part.get("required") or ()
        for name in part.get("properties") or ():
            if name not in required:
                return path, name
    return None


def _objects(schema: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" or "properties" in schema:
        yield path, schema
    for keyword, name, part in _parts(schema):
        yield from _objects(part, (*path, keyword, name) if name else (*path, keyword))


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for keyword in _SCHEMA_MAPS:
        named = schema.get(keyword)
        if isinstance(named, dict):
            yield from ((keyword, name, part) for name, part in named.items())
    for keyword in _SCHEMA_LISTS:
        listed = schema.get(keyword)
        if isinstance(listed, list):
            yield from ((keyword, str(index), part) for index, part in enumerate(listed))
    if "items" in schema:
        yield "items", "", schema["items"]
