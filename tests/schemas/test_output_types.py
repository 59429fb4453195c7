import json
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.errors import ConfigurationError
from schemas.output_types import arrow_type, arrow_value

TEXT = pa.string()


def typed(**properties: Any) -> pa.DataType:
    return arrow_type({"type": "object", "properties": properties})


def field_type(schema: dict[str, Any], **more: Any) -> pa.DataType:
    return arrow_type({"type": "object", "properties": {"x": schema}, **more}).field("x").type


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string"}, TEXT),
        ({"type": "boolean"}, pa.bool_()),
        ({"type": "integer"}, pa.int64()),
        ({"type": "number"}, pa.float64()),
        ({"type": "array", "items": {"type": "integer"}}, pa.list_(pa.int64())),
        ({"type": "array"}, pa.list_(TEXT)),
        ({"type": ["string", "null"]}, TEXT),
        ({"type": ["null", "integer"]}, pa.int64()),
        ({"type": ["integer", "number"]}, pa.float64()),
        ({"type": ["number", "integer", "null"]}, pa.float64()),
        ({"type": ["integer", "string"]}, TEXT),
        ({"type": ["object", "string"], "properties": {"a": {"type": "integer"}}}, TEXT),
        ({"enum": ["a", "b"]}, TEXT),
        ({"enum": [1, 2, None]}, pa.int64()),
        ({"enum": [True, False]}, pa.bool_()),
        ({"enum": [0.5, 1.5]}, pa.float64()),
        ({"enum": [1, "a"]}, TEXT),
        ({"enum": [1, 0.5]}, TEXT),
        ({"const": 5}, TEXT),
        ({}, TEXT),
        ({"type": "object"}, TEXT),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, pa.int64()),
        ({"oneOf": [{"type": "null"}, {"type": "boolean"}]}, pa.bool_()),
        ({"allOf": [{"type": "number"}]}, pa.float64()),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, TEXT),
        ({"anyOf": [True, {"type": "null"}]}, TEXT),
        ({"type": "integer", "anyOf": [{"minimum": 1}]}, pa.int64()),
        ({"properties": {"a": {"type": "integer"}}}, pa.struct([("a", pa.int64())])),
    ],
)
def test_a_schema_has_one_arrow_type_or_is_kept_as_json_text(
    schema: dict[str, Any], kind: pa.DataType
) -> None:
    assert field_type(schema) == kind


TOPIC = {"type": "object", "properties": {"name": {"type": "string"}}}
TOPIC_TYPE = pa.struct([("name", pa.string())])


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/Topic"},
        {"anyOf": [{"$ref": "#/$defs/Topic"}, {"type": "null"}]},
        {"allOf": [{"$ref": "#/$defs/Topic"}]},
        {"$ref": "#/$defs/Also"},
        {"$ref": "#/$defs/A~1B"},
        {"$ref": "#/$defs/A%20b"},
        {"$ref": "#/$defs/Many/anyOf/0"},
    ],
)
def test_references_inside_the_document_are_followed(schema: dict[str, Any]) -> None:
    definitions = {
        "Topic": TOPIC,
        "Also": {"$ref": "#/$defs/Topic"},
        "A/B": TOPIC,
        "A b": TOPIC,
        "Many": {"anyOf": [TOPIC]},
    }
    assert field_type(schema, **{"$defs": definitions}) == TOPIC_TYPE


@pytest.mark.parametrize("reference", ["#/$defs/None", "#/properties/x/items/0", "http://example.org/x.json"])
def test_a_reference_that_points_nowhere_is_refused_before_anything_is_paid(reference: str) -> None:
    with pytest.raises(ConfigurationError, match=r"points nowhere"):
        field_type({"$ref": reference})


def test_a_tree_of_itself_ends_as_json_text() -> None:
    node = {
        "type": "object",
        "properties": {"left": {"$ref": "#/$defs/Node"}, "right": {"$ref": "#"}, "size": {"type": "integer"}},
    }
    kind = arrow_type({**node, "$defs": {"Node": node}})
    left = pa.struct([("left", TEXT), ("right", TEXT), ("size", pa.int64())])
    assert kind == pa.struct([("left", left), ("right", TEXT), ("size", pa.int64())])


@pytest.mark.parametrize("schema", [{"type": "string"}, {"type": "object"}, {"type": "array"}, {}])
def test_an_answer_that_is_no_object_with_properties_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="must describe an object with `properties`"):
        arrow_type(schema)


def test_a_number_that_may_be_whole_is_never_cut() -> None:
    kind = typed(x={"type": ["integer", "number"]})
    assert arrow_value({"x": 3.7}, kind) == {"x": 3.7}


def test_what_has_no_type_of_its_own_is_kept_as_json() -> None:
    kind = typed(x={}, y={"type": "object"})
    value = arrow_value({"x": [1, {"b": None, "a": "ä"}], "y": {"z": 1.5}}, kind)
    assert value == {"x": '[1, {"a": "ä", "b": null}]', "y": '{"z": 1.5}'}


def test_absent_properties_and_null_are_null() -> None:
    kind = typed(x={"type": ["integer", "null"]}, y={"type": "array", "items": {"type": "number"}})
    assert arrow_value({"x": None}, kind) == {"x": None, "y": None}


def test_whole_floats_are_integers_where_the_schema_says_so() -> None:
    kind = typed(x={"type": "integer"}, y={"type": "number"})
    assert arrow_value({"x": 3.0, "y": 2}, kind) == {"x": 3, "y": 2.0}


# A schema with a strategy for its valid instances, side by side.
Pair = tuple[dict[str, Any], st.SearchStrategy[Any]]
_INTEGERS = st.integers(-(2**70), 2**70)
_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.text() | _INTEGERS, lambda x: st.lists(x, max_size=3), max_leaves=5
)
_SCALARS: list[Pair] = [
    ({"type": "string"}, st.text()),
    ({"type": "integer"}, _INTEGERS),
    ({"type": "number"}, _FLOATS | _INTEGERS),
    ({"type": "boolean"}, st.booleans()),
    ({"type": ["string", "null"]}, st.none() | st.text()),
    ({"type": ["integer", "string"]}, _INTEGERS | st.text()),
    ({"anyOf": [{"type": "number"}, {"type": "null"}]}, st.none() | _FLOATS),
    ({"enum": ["a", "b", None]}, st.sampled_from(["a", "b", None])),
    ({"enum": [1, 2]}, st.sampled_from([1, 2, 1.0])),
    ({}, _ANYTHING),
]


def _list_of(pair: Pair) -> Pair:
    return {"type": "array", "items": pair[0]}, st.lists(pair[1], max_size=3)


def _object_of(pairs: dict[str, Pair]) -> Pair:
    schema = {"type": "object", "properties": {name: schema for name, (schema, _) in pairs.items()}}
    return schema, st.fixed_dictionaries({}, optional={name: values for name, (_, values) in pairs.items()})


PAIRS = st.recursive(
    st.sampled_from(_SCALARS),
    lambda inner: (
        inner.map(_list_of)
        | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=4).map(_object_of)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(min_size=1, max_size=8), PAIRS, min_size=1, max_size=4).map(_object_of)
SCHEMA_AND_VALUE = OBJECTS.flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1]))


@given(SCHEMA_AND_VALUE)
@example(({"type": "object", "properties": {"n": {"type": "integer"}}}, {"n": 2**63}))
@example(({"type": "object", "properties": {"n": {"type": "number"}}}, {"n": 10**400}))
@example(({"type": "object", "properties": {"s": {"type": "string"}}}, {"s": "\ud800"}))
def test_every_valid_answer_is_stored_without_loss_or_refused_as_a_value_error(
    pair: tuple[dict, Any],
) -> None:
    schema, value = pair
    jsonschema.validate(value, schema)
    kind = arrow_type(schema)
    try:
        stored = pa.array([arrow_value(value, kind)], kind)[0].as_py()
    except (pa.ArrowException, OverflowError, ValueError):
        assert _holds_what_arrow_can_not(value)
        return
    assert _same(value, stored)


def _holds_what_arrow_can_not(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_what_arrow_can_not, value.values()))
    if isinstance(value, list):
        return any(map(_holds_what_arrow_can_not, value))
    if isinstance(value, str):
        return any("\ud800" <= c <= "\udfff" for c in value)
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _same(value: Any, stored: Any) -> bool:
    if isinstance(stored, dict):
        return all(_same(value.get(name), stored[name]) for name in stored) and set(value) <= set(stored)
    if isinstance(value, list) and isinstance(stored, list):
        return len(value) == len(stored) and all(map(_same, value, stored))
    if isinstance(stored, str) and not isinstance(value, str):
        return json.loads(stored) == value
    if isinstance(stored, float):
        return float(value) == stored
    return value == stored
