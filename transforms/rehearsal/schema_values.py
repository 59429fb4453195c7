"""A value that fits a JSON Schema, made of a document's words: the structured answer of a rehearsal.

Understood: `type` (also a list), `enum`, `const`, `properties`, `required`, `additionalProperties`,
`items`, `prefixItems`, `anyOf`, `oneOf`, `allOf`, `$ref` into the same schema, bounds of numbers,
lengths, counts, `multipleOf`, `uniqueItems`, common `format`s. Anything else that restricts values
is refused by name instead of answered wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jsonschema

from transforms.rehearsal import scalars
from transforms.rehearsal.draws import draw
from transforms.rehearsal.scalars import UnsupportedSchemaError
from transforms.rehearsal.schema_merge import as_list, merged

_REFUSED = frozenset(
    {"pattern", "patternProperties", "propertyNames", "not", "if", "then", "else", "contains"}
    | {"dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "$dynamicRef"}
)
_COMFORTABLE_DEPTH = 6  # deeper than this, only what is required is made
_DEEPEST = 40
_USUAL_ITEMS = 3
_ITEM_TRIES = 64
_HINTS = (
    ("object", ("properties", "required", "additionalProperties", "minProperties")),
    ("array", ("items", "prefixItems", "minItems")),
    ("number", ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
)


def value_for(schema: dict[str, Any], document: str, words: list[str], key: bytes) -> Any:
    """A value for `schema`, the same for the same arguments.

    `words` are used in strings; an `enum` value that `document` names is preferred to the others.
    UnsupportedSchemaError names the path and the keyword that can't be satisfied.
    """
    return _Maker(schema, document.lower(), words, key).value(schema, "", 0)


@dataclass(frozen=True, slots=True)
class _Maker:
    root: dict[str, Any]
    document: str
    words: list[str]
    key: bytes

    def value(self, schema: Any, path: str, depth: int) -> Any:
        if depth > _DEEPEST:
            raise UnsupportedSchemaError(f"{path}: the schema requires endless nesting")
        if schema is True:
            schema = {"type": "string"}
        if not isinstance(schema, dict):
            raise UnsupportedSchemaError(f"{path or '/'}: no value is allowed")
        refused = _REFUSED & schema.keys()
        if refused:
            raise UnsupportedSchemaError(f"{path or '/'}: {', '.join(sorted(refused))} is not supported")
        if "$ref" in schema or "allOf" in schema:
            return self.value(self._flat(schema, path), path, depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._one_of_enum(schema, path)
        if "anyOf" in schema or "oneOf" in schema:
            return self._branch(schema, path, depth)
        return self._typed(schema, path, depth)

    def _typed(self, schema: dict[str, Any], path: str, depth: int) -> Any:
        kind = self._kind(schema, path, depth)
        if kind == "object":
            return self._object(schema, path, depth)
        if kind == "array":
            return self._array(schema, path, depth)
        if kind == "string":
            return scalars.string(schema, self.words, self.key, path)
        if kind == "integer":
            return scalars.integer(schema, self.key, path)
        if kind == "number":
            return scalars.number(schema, self.key, path)
        return None if kind == "null" else bool(draw(self.key, path) & 1)

    def _kind(self, schema: dict[str, Any], path: str, depth: int) -> str:
        kinds = as_list(schema.get("type") or _kind_by_hint(schema))
        if "null" in kinds and depth > _COMFORTABLE_DEPTH:
            return "null"
        solid = [kind for kind in kinds if kind != "null"]
        if not solid or ("null" in kinds and draw(self.key, f"{path}?") % 8 == 0):
            return "null"
        return str(solid[draw(self.key, f"{path}:") % len(solid)])

    def _flat(self, schema: dict[str, Any], path: str) -> dict[str, Any]:
        """The schema with one level of `$ref` and `allOf` merged into it."""
        result = {name: value for name, value in schema.items() if name not in ("$ref", "allOf")}
        parts = list(schema.get("allOf", ()))
        if "$ref" in schema:
            parts.append(self._target(schema["$ref"], path))
        for part in parts:
            if part is False:
                raise UnsupportedSchemaError(f"{path or '/'}: no value is allowed")
            result = merged(result, part if isinstance(part, dict) else {})
        return result

    def _target(self, reference: Any, path: str) -> Any:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise UnsupportedSchemaError(f"{path}: $ref {reference!r} leads out of the schema")
        target: Any = self.root
        for step in reference.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or name not in target:
                raise UnsupportedSchemaError(f"{path}: $ref {reference!r} leads nowhere")
            target = target[name]
        return target

    def _one_of_enum(self, schema: dict[str, Any], path: str) -> Any:
        """The value that the document names first; without one, any."""
        values = schema["enum"]
        if not values:
            raise UnsupportedSchemaError(f"{path}: the enum is empty")
        named = [
            (self.document.find(value.lower().replace("_", " ")), value)
            for value in values
            if isinstance(value, str) and len(value) > 2
        ]
        found = [(place, value) for place, value in named if place >= 0]
        return min(found)[1] if found else values[draw(self.key, path) % len(values)]

    def _branch(self, schema: dict[str, Any], path: str, depth: int) -> Any:
        keyword = "anyOf" if "anyOf" in schema else "oneOf"
        base = {name: value for name, value in schema.items() if name != keyword}
        problem: UnsupportedSchemaError | None = None
        for branch in self._in_turn(schema[keyword], path, depth):
            try:
                value = self.value(_with_base(base, branch, path), path, depth + 1)
            except UnsupportedSchemaError as error:
                problem = error
                continue
            if keyword == "anyOf" or self._fits_one(schema["oneOf"], value):
                return value
        raise problem or UnsupportedSchemaError(f"{path}: no value fits exactly one of oneOf")

    def _in_turn(self, branches: list[Any], path: str, depth: int) -> Iterator[Any]:
        """The branches from a drawn one on; null last unless the nesting has to end."""
        start = draw(self.key, f"{path}|") % max(1, len(branches))
        turned = [*branches[start:], *branches[:start]]
        deep = depth > _COMFORTABLE_DEPTH
        yield from sorted(turned, key=_nesting if deep else _is_null)

    def _fits_one(self, branches: list[Any], value: Any) -> bool:
        shared = {name: self.root[name] for name in ("$defs", "definitions") if name in self.root}
        wrapped = ({**shared, "allOf": [branch]} for branch in branches)
        return sum(jsonschema.Draft202012Validator(branch).is_valid(value) for branch in wrapped) == 1

    def _object(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        names = [name for name in properties if name in required or depth <= _COMFORTABLE_DEPTH]
        most = schema.get("maxProperties", math.inf)
        names = [n for i, n in enumerate(names) if n in required or i < most - len(required)]
        result: dict[str, Any] = {}
        for name in [*names, *(name for name in required if name not in properties)]:
            part = properties.get(name, schema.get("additionalProperties", True))
            try:
                result[name] = self.value(part, f"{path}/{name}", depth + 1)
            except UnsupportedSchemaError:
                if name in required:
                    raise
        return self._filled(result, schema, path, depth)

    def _filled(
        self, result: dict[str, Any], schema: dict[str, Any], path: str, depth: int
    ) -> dict[str, Any]:
        """With further properties up to `minProperties`."""
        number = 0
        while len(result) < schema.get("minProperties", 0):
            number += 1
            name = f"extra_{number}"
            part = schema.get("properties", {}).get(name, schema.get("additionalProperties", True))
            result[name] = self.value(part, f"{path}/{name}", depth + 1)
        return result

    def _array(self, schema: dict[str, Any], path: str, depth: int) -> list[Any]:
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", max(least, _USUAL_ITEMS))
        first = schema.get("prefixItems", [])
        items = schema.get("items", True)
        wanted = least if depth > _COMFORTABLE_DEPTH else min(most, max(least, 1 + draw(self.key, path) % 3))
        result: list[Any] = []
        for attempt in range(max(_ITEM_TRIES, 2 * wanted)):
            if len(result) >= wanted:
                break
            part = first[len(result)] if len(result) < len(first) else items
            try:
                item = self.value(part, f"{path}/{attempt}", depth + 1)
            except UnsupportedSchemaError:
                if len(result) < least:
                    raise
                break
            if not schema.get("uniqueItems") or not any(_same(item, other) for other in result):
                result.append(item)
        if len(result) < least:
            raise UnsupportedSchemaError(f"{path}: not enough different items")
        return result


def _kind_by_hint(schema: dict[str, Any]) -> str:
    for kind, keywords in _HINTS:
        if any(keyword in schema for keyword in keywords):
            return kind
    return "string"


def _with_base(base: dict[str, Any], branch: Any, path: str) -> dict[str, Any]:
    if branch is False:
        raise UnsupportedSchemaError(f"{path}: no value is allowed")
    return merged(base, branch) if isinstance(branch, dict) else base


def _is_null(branch: Any) -> bool:
    return isinstance(branch, dict) and branch.get("type") == "null"


def _nesting(branch: Any) -> int:
    """How likely a branch is to nest further: null, then scalars, then the others."""
    if _is_null(branch):
        return 0
    if not isinstance(branch, dict) or {"$ref", "anyOf", "oneOf", "allOf"} & branch.keys():
        return 2
    return 2 if branch.get("type") in ("object", "array") or "properties" in branch else 1


def _same(left: Any, right: Any) -> bool:
    """Equality as JSON Schema has it: true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)
