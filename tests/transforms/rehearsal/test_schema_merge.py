import pytest

from transforms.rehearsal.scalars import UnsupportedSchemaError
from transforms.rehearsal.schema_merge import merged


@pytest.mark.parametrize(
    ("left", "right", "both"),
    [
        ({"minimum": 1, "maximum": 9}, {"minimum": 3, "maximum": 20}, {"minimum": 3, "maximum": 9}),
        ({"minLength": 2}, {"maxLength": 5}, {"minLength": 2, "maxLength": 5}),
        ({"type": ["string", "null"]}, {"type": "string"}, {"type": ["string"]}),
        ({"type": "number"}, {"type": "integer"}, {"type": ["integer"]}),
        ({"type": "integer"}, {"type": "number"}, {"type": ["integer"]}),
        ({"enum": [1, 2, 3]}, {"enum": [3, 4, 1]}, {"enum": [1, 3]}),
        ({"required": ["a"]}, {"required": ["b", "a"]}, {"required": ["a", "b"]}),
        (
            {"properties": {"a": {"minimum": 1}, "b": True}},
            {"properties": {"a": {"maximum": 2}, "b": {"const": 1}, "c": {}}},
            {"properties": {"a": {"minimum": 1, "maximum": 2}, "b": {"const": 1}, "c": {}}},
        ),
        ({"additionalProperties": True}, {"additionalProperties": False}, {"additionalProperties": False}),
        ({"uniqueItems": False}, {"uniqueItems": True}, {"uniqueItems": True}),
        ({"title": "old", "const": 1}, {"title": "new", "const": 1}, {"title": "new", "const": 1}),
    ],
)
def test_what_both_schemas_ask_for_holds(left, right, both):
    assert merged(left, right) == both


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"const": 1}, {"const": 2}),
        ({"type": "string"}, {"type": "integer"}),
        ({"enum": ["a"]}, {"enum": ["b"]}),
        ({"multipleOf": 2}, {"multipleOf": 3}),
        ({"anyOf": [{}]}, {"anyOf": [True]}),
    ],
)
def test_what_can_not_be_merged_is_refused(left, right):
    with pytest.raises(UnsupportedSchemaError):
        merged(left, right)


def test_merging_changes_neither_schema():
    left, right = {"properties": {"a": {"minimum": 1}}}, {"properties": {"a": {"maximum": 2}}}
    merged(left, right)
    assert (left, right) == ({"properties": {"a": {"minimum": 1}}}, {"properties": {"a": {"maximum": 2}}})
