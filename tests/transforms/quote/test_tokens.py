"""Tokens of texts and answers, where nothing but their bytes is known."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import validate

from schemas.errors import ConfigurationError
from transforms.quote.tokens import (
    ARRAY_ITEMS,
    FRAME_TOKENS,
    RATIOS,
    SENTENCE_BYTES,
    TokenRatio,
    answer_bytes,
)

# o200k_base and the published tokenizer of Claude 2, measured over the corpora named in the bases.
MEASURED_OPENAI = {
    "docs": 4.28,
    "python": 3.31,
    "json": 4.18,
    "numbers": 1.63,
    "bengali": 5.17,
    "klingon": 2.35,
}
MEASURED_CLAUDE_2 = {"docs": 3.93, "python": 2.95, "bengali": 1.42, "numbers": 1.61, "spanish": 3.19}
OBJECT = {
    "type": "object",
    "required": ["topic"],
    "properties": {"topic": {"enum": ["a", "bcd"]}, "why": {"type": "string"}},
}


@pytest.mark.parametrize("provider", sorted(RATIOS))
@given(size=st.integers(0, 10_000_000))
def test_fewest_expected_and_most_tokens_are_in_order_and_below_one_a_byte(provider: str, size: int) -> None:
    ratio = RATIOS[provider]
    low, expected, high = ratio.low(size), ratio.expected_tokens(size), ratio.high(size)
    assert 0 <= low <= expected <= high <= size + 2 * FRAME_TOKENS


def test_every_measured_corpus_lies_in_the_stated_interval() -> None:
    for value in MEASURED_OPENAI.values():
        assert RATIOS["openai"].least <= value <= RATIOS["openai"].most
    for value in MEASURED_CLAUDE_2.values():
        assert RATIOS["anthropic"].least <= value <= RATIOS["anthropic"].most
        assert value / 1.35 <= RATIOS["anthropic"].most  # newer models make up to 1.35 times the tokens


def test_a_hand_computed_text() -> None:
    ratio = TokenRatio(2, 4, 5, "stated")
    assert (ratio.low(100), ratio.expected_tokens(100), ratio.high(100)) == (20, 25 + 8, 50 + 16)


def test_a_measured_ratio_has_the_requests_frame_in_it_already() -> None:
    ratio = TokenRatio(2, 4, 5, "measured", measured=True)
    assert (ratio.low(100), ratio.expected_tokens(100), ratio.high(100)) == (20, 25, 50)


@pytest.mark.parametrize(
    ("schema", "least", "typical"),
    [
        ({"type": "boolean"}, 4, 5),
        ({"type": "integer"}, 1, 3),
        ({"type": ["null", "integer"]}, 1, 3),
        ({"const": "abc"}, 5, 5),
        ({"enum": ["a", "abc"]}, 3, 4),
        ({"type": "string"}, 2, 2 + SENTENCE_BYTES),
        ({"type": "string", "minLength": 10, "maxLength": 20}, 12, 22),
        ({"type": "string", "minLength": 200}, 202, 202),
        ({"type": "array", "items": {"const": 1}}, 2, 2 + ARRAY_ITEMS * 2),
        ({"type": "array", "items": {"const": 1}, "minItems": 5}, 12, 12),
        ({"type": "array", "items": {"const": 1}, "maxItems": 1}, 2, 4),
        ({"anyOf": [{"const": 1}, {"const": "abc"}]}, 1, 5),
        # {"topic":"a"} is 2 + 7 + 2 + 3; the comma counts with the key
        (OBJECT, 2 + 9 + 3, 2 + 9 + 4 + (5 + 2 + 82)),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"const": 12}}}, 2, 2),
        ({}, 2, 2 + SENTENCE_BYTES),
        (True, 4, 4),
    ],
)
def test_the_size_of_an_answer_comes_from_its_schema(schema: Any, least: int, typical: int) -> None:
    assert answer_bytes(schema) == (least, typical)


def test_a_schema_that_stands_in_itself_ends() -> None:
    tree = {
        "type": "object",
        "required": ["next", "other"],
        "properties": {"next": {"$ref": "#"}, "other": {"$ref": "#/properties/next"}},
    }
    least, typical = answer_bytes(tree)
    assert 2 < least == typical < 100


def test_a_reference_that_points_nowhere_is_named() -> None:
    with pytest.raises(ConfigurationError, match="#/nowhere"):
        answer_bytes({"$ref": "#/nowhere"})


def test_the_shortest_answer_is_about_as_short_as_a_valid_one() -> None:
    shortest = {"topic": "a"}
    validate(shortest, OBJECT)
    least, _ = answer_bytes(OBJECT)
    assert least - 1 == len(json.dumps(shortest, separators=(",", ":")))


SCALARS = st.sampled_from(
    [{"type": "string"}, {"type": "integer"}, {"enum": ["x", "yy"]}, {"type": "boolean"}]
)
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: (
        st.builds(lambda i: {"type": "array", "items": i}, inner)
        | st.builds(
            lambda names: {"type": "object", "properties": names, "required": sorted(names)[:1]},
            st.dictionaries(st.sampled_from("abcd"), inner, min_size=1),
        )
    ),
    max_leaves=12,
)


@given(SCHEMAS)
def test_the_typical_answer_is_never_shorter_than_the_shortest(schema: dict[str, Any]) -> None:
    least, typical = answer_bytes(schema)
    assert 1 <= least <= typical
