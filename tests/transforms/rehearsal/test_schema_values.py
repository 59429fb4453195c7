import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.rehearsal.document import words_of
from transforms.rehearsal.draws import request_key
from transforms.rehearsal.scalars import UnsupportedSchemaError
from transforms.rehearsal.schema_values import value_for

DOCUMENT = (
    "Join two tables on a key column. The result has the columns of both; rows without a match are dropped."
)
NAMES = st.sampled_from(["topic", "summary", "tags", "score", "a/b", "x~y", "ä", "reason", "n", "m", "items"])


def numbers(kind: str) -> st.SearchStrategy[dict]:
    values = (
        st.integers(-1000, 1000) if kind == "integer" else st.floats(-1e6, 1e6).map(lambda f: round(f, 3))
    )
    low = st.fixed_dictionaries({}, optional={"minimum": values})
    open_low = st.fixed_dictionaries({"exclusiveMinimum": values})
    high = st.fixed_dictionaries({}, optional={"width": st.integers(2, 500)})

    def schema(parts: tuple[dict, dict, bool]) -> dict:
        below, above, strict = parts
        result = {"type": kind, **below}
        start = below.get("minimum", below.get("exclusiveMinimum"))
        if "width" in above and start is not None:
            result["exclusiveMaximum" if strict else "maximum"] = start + above["width"]
        return result

    return st.tuples(low | open_low, high, st.booleans()).map(schema)


MULTIPLES = st.builds(
    lambda step, start: {
        "type": "integer",
        "multipleOf": step,
        "minimum": start,
        "maximum": start + 2 * step,
    },
    st.integers(1, 50),
    st.integers(-200, 200),
)
STRINGS = st.builds(
    lambda least, more: {
        "type": "string",
        "minLength": least,
        **({"maxLength": least + more} if more >= 0 else {}),
    },
    st.integers(0, 300),
    st.integers(-1, 40),
)
LITERALS = st.one_of(
    st.builds(
        lambda v: {"enum": v}, st.lists(st.none() | st.booleans() | st.integers() | st.text(), min_size=1)
    ),
    st.builds(lambda v: {"const": v}, st.none() | st.integers() | st.text() | st.lists(st.integers())),
)
SCALARS = st.one_of(
    numbers("integer"),
    numbers("number"),
    MULTIPLES,
    STRINGS,
    LITERALS,
    st.sampled_from(["boolean", "null"]).map(lambda kind: {"type": kind}),
    st.lists(st.sampled_from(["string", "null", "integer", "boolean"]), min_size=1, unique=True).map(
        lambda kinds: {"type": kinds}
    ),
    st.sampled_from(["date", "uuid", "email", "date-time"]).map(
        lambda name: {"type": "string", "format": name}
    ),
    st.just({"$ref": "#/$defs/leaf"}),
)


def nested(inner: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    objects = st.dictionaries(NAMES, inner, max_size=4).flatmap(
        lambda properties: st.builds(
            lambda required, closed: {
                "type": "object",
                "properties": properties,
                "required": required,
                **({"additionalProperties": False} if closed else {}),
            },
            st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([]),
            st.booleans(),
        )
    )
    arrays = st.builds(
        lambda items, least, more: {
            "type": "array",
            "items": items,
            "minItems": least,
            "maxItems": least + more,
        },
        inner,
        st.integers(0, 4),
        st.integers(0, 4),
    )
    choices = st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches})
    nullable = inner.map(
        lambda schema: {"anyOf": [schema, {"type": "null"}], "description": "may be missing"}
    )
    return objects | arrays | choices | nullable


SCHEMAS = st.recursive(SCALARS, nested, max_leaves=12).map(
    lambda schema: {**schema, "$defs": {"leaf": {"type": "string", "maxLength": 20}}}
)


@given(schema=SCHEMAS, seed=st.integers(0, 10**6))
def test_every_answer_fits_the_schema_that_was_asked_for(schema, seed):
    key = request_key(seed, "/", b"")
    value = value_for(schema, DOCUMENT, words_of(DOCUMENT), key)
    jsonschema.Draft202012Validator(schema).validate(value)


@given(schema=SCHEMAS, seed=st.integers(0, 10**6))
def test_the_same_request_gets_the_same_value(schema, seed):
    key = request_key(seed, "/", b"")
    words = words_of(DOCUMENT)
    assert value_for(schema, DOCUMENT, words, key) == value_for(schema, DOCUMENT, list(words), bytes(key))


def fits(schema: dict, document: str = DOCUMENT, seeds: int = 50) -> list:
    """Values for many seeds, each checked against the schema."""
    validator = jsonschema.Draft202012Validator(schema)
    values = [
        value_for(schema, document, words_of(document), request_key(seed, "/", b"")) for seed in range(seeds)
    ]
    for value in values:
        validator.validate(value)
    return values


def test_a_summary_is_the_first_sentence_of_the_document():
    schema = {"type": "object", "properties": {"summary": {"type": "string"}}, "required": ["summary"]}
    assert {value["summary"] for value in fits(schema)} == {"Join two tables on a key column."}


def test_other_strings_are_words_of_the_document():
    schema = {"type": "object", "properties": {"tag": {"type": "string"}}, "required": ["tag"]}
    for value in fits(schema):
        assert value["tag"] in DOCUMENT


def test_an_enum_value_that_the_document_names_is_chosen():
    schema = {"enum": ["network", "tables", "other"]}
    assert set(fits(schema)) == {"tables"}


def test_an_enum_value_is_drawn_when_the_document_names_none():
    schema = {"enum": ["red", "green", "blue"]}
    assert set(fits(schema, "nothing of that kind")) == {"red", "green", "blue"}


def test_a_nullable_value_is_mostly_there_and_sometimes_null():
    values = fits({"type": ["string", "null"]}, seeds=200)
    assert 0 < values.count(None) < 100


def test_one_of_gives_a_value_that_fits_exactly_one_branch():
    schema = {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "number", "minimum": -5, "maximum": 5}]}
    assert len(set(fits(schema))) > 1


def test_all_of_and_the_neighbours_of_a_reference_hold_together():
    schema = {
        "$defs": {"base": {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}},
        "allOf": [
            {"$ref": "#/$defs/base"},
            {"properties": {"n": {"type": "integer", "minimum": 3}, "m": {"const": 1}}, "required": ["m"]},
        ],
    }
    assert all(value["n"] >= 3 and value["m"] == 1 for value in fits(schema))


def test_a_schema_that_refers_to_itself_comes_to_an_end():
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#"}},
            "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "required": ["name", "children", "next"],
        "additionalProperties": False,
    }
    assert all(set(value) == {"name", "children", "next"} for value in fits(schema, seeds=10))


def test_unique_items_differ():
    schema = {
        "type": "array",
        "items": {"enum": ["a", "b", "c"]},
        "uniqueItems": True,
        "minItems": 3,
        "maxItems": 3,
    }
    assert all(sorted(value) == ["a", "b", "c"] for value in fits(schema))


def test_a_tuple_has_its_items_in_order():
    schema = {
        "type": "array",
        "prefixItems": [{"const": "x"}, {"type": "integer"}],
        "items": False,
        "minItems": 2,
    }
    assert all(value[0] == "x" and len(value) == 2 for value in fits(schema))


def test_required_names_without_a_property_and_a_least_number_of_properties_are_filled_up():
    schema = {
        "type": "object",
        "required": ["free"],
        "minProperties": 3,
        "additionalProperties": {"type": "integer", "maximum": -1},
    }
    assert all(len(value) == 3 and max(value.values()) < 0 for value in fits(schema))


def test_fractions_keep_to_multiple_of_and_to_open_bounds():
    schema = {"type": "number", "multipleOf": 0.25, "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    assert set(fits(schema)) == {0.25, 0.5, 0.75}


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ({"type": "string", "pattern": "^a+$"}, "pattern is not supported"),
        ({"type": "object", "properties": {"x": {"not": {}}}, "required": ["x"]}, "/x: not is not supported"),
        ({"type": "integer", "minimum": 3, "exclusiveMaximum": 3}, "no integer between"),
        ({"type": "number", "minimum": 3, "exclusiveMaximum": 3}, "no number between"),
        ({"$ref": "https://example.com/schema"}, "leads out of the schema"),
        ({"$ref": "#/$defs/gone"}, "leads nowhere"),
        ({"enum": []}, "the enum is empty"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "exclude each other"),
        (
            {"type": "array", "items": {"const": 1}, "uniqueItems": True, "minItems": 2},
            "not enough different",
        ),
        ({"$ref": "#"}, "endless nesting"),
        ({"type": "object", "required": ["x"], "additionalProperties": False}, "no value is allowed"),
    ],
)
def test_a_schema_beyond_the_rehearsal_is_refused_by_name(schema, complaint):
    with pytest.raises(UnsupportedSchemaError, match=complaint):
        value_for(schema, DOCUMENT, words_of(DOCUMENT), request_key(0, "/", b""))
