import pytest

from transforms.rehearsal.schema_rules import open_object, optional_property

CLOSED = {
    "type": "object",
    "properties": {"x": {"type": "string"}},
    "required": ["x"],
    "additionalProperties": False,
}
OPEN = {"type": "object", "properties": {}}
PLACES = [
    (lambda part: {**CLOSED, "properties": {"x": part}}, ("properties", "x")),
    (lambda part: {**CLOSED, "$defs": {"leaf": part}}, ("$defs", "leaf")),
    (lambda part: {"type": "array", "items": part}, ("items",)),
    (lambda part: {"anyOf": [{"type": "null"}, part]}, ("anyOf", "1")),
    (lambda part: {"type": "array", "prefixItems": [part]}, ("prefixItems", "0")),
]


@pytest.mark.parametrize(("around", "where"), PLACES)
def test_an_open_object_is_found_wherever_it_stands(around, where):
    assert open_object(around(OPEN)) == where
    assert open_object(around(CLOSED)) is None


@pytest.mark.parametrize(("around", "where"), PLACES)
def test_an_optional_property_is_found_wherever_it_stands(around, where):
    assert optional_property(around({**CLOSED, "required": []})) == (where, "x")
    assert optional_property(around(CLOSED)) is None


def test_schemas_that_are_true_or_false_have_no_objects():
    assert open_object({**CLOSED, "properties": {"x": True}}) is None
    assert optional_property(False) is None
