"""One JSON Schema out of two that hold at once: `allOf`, and what stands beside `$ref` or `anyOf`."""

from __future__ import annotations

from typing import Any

from transforms.rehearsal.scalars import UnsupportedSchemaError

_GREATEST = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_LEAST = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})


def merged(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """A schema whose values fit both; UnsupportedSchemaError where that is beyond a simple merge."""
    result = dict(left)
    for keyword, value in right.items():
        result[keyword] = _both(keyword, result[keyword], value) if keyword in result else value
    return result


def _both(keyword: str, left: Any, right: Any) -> Any:
    if left == right:
        return left
    if keyword in _GREATEST:
        return max(left, right)
    if keyword in _LEAST:
        return min(left, right)
    combine = _COMBINERS.get(keyword)
    if combine is not None:
        return combine(left, right)
    return right  # annotations: title, description, default, examples


def _types(left: Any, right: Any) -> Any:
    wide, narrow = as_list(left), as_list(right)
    if "number" in wide and "integer" in narrow:
        wide = [*wide, "integer"]
    if "number" in narrow and "integer" in wide:
        narrow = [*narrow, "integer"]
    return _some([name for name in wide if name in narrow], "type")


def _some(values: list[Any], keyword: str) -> list[Any]:
    if not values:
        raise UnsupportedSchemaError(f"two values of {keyword} exclude each other")
    return values


def _properties(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    return {**left, **{n: _schemas(left[n], s) if n in left else s for n, s in right.items()}}


def _schemas(left: Any, right: Any) -> Any:
    if isinstance(left, dict) and isinstance(right, dict):
        return merged(left, right)
    if left is False or right is False:
        return False
    return right if left is True else left


def _refuse(left: Any, right: Any) -> Any:
    raise UnsupportedSchemaError(f"{left!r} and {right!r} at once")


_COMBINERS: dict[str, Any] = {
    "type": _types,
    "enum": lambda left, right: _some([value for value in left if value in right], "enum"),
    "required": lambda left, right: [*left, *(name for name in right if name not in left)],
    "properties": _properties,
    "items": _schemas,
    "additionalProperties": _schemas,
    "uniqueItems": lambda left, right: left or right,
    "allOf": lambda left, right: [*left, *right],
    "anyOf": _refuse,
    "oneOf": _refuse,
    "const": _refuse,
    "$ref": _refuse,
    "multipleOf": _refuse,
    "prefixItems": _refuse,
}


def as_list(value: Any) -> list[Any]:
    """`value` itself when it is a list, else a list of it alone."""
    return value if isinstance(value, list) else [value]
