"""Structured answers: strict in what is a result."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.errors import ConfigurationError
from schemas.failures import FailureClass
from schemas.outcomes import Usage
from tests.transforms.call.fakes import LABEL_SCHEMA
from transforms.call.structured import SchemaBook
from transforms.call.wire import Answer

F = FailureClass


def check(text: str | None, schema: dict[str, Any] | None = LABEL_SCHEMA, **answer: Any) -> Answer:
    return SchemaBook().check(Answer(text, Usage(), **answer), schema)


def test_an_answer_that_fits_becomes_the_typed_output() -> None:
    assert check(' {"label": "a"}\n').output == {"label": "a"}


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("label: a", F.INVALID_JSON),
        ('```json\n{"label": "a"}\n```', F.INVALID_JSON),
        ('{"label": "a"} and more', F.INVALID_JSON),
        ('{"label": NaN}', F.INVALID_JSON),
        ("[" * 100_000, F.INVALID_JSON),
        ('"a"', F.SCHEMA_MISMATCH),
        ("null", F.SCHEMA_MISMATCH),
        ("{}", F.SCHEMA_MISMATCH),
        ('{"label": "z"}', F.SCHEMA_MISMATCH),
        ('{"label": "a", "more": 1}', F.SCHEMA_MISMATCH),
    ],
)
def test_anything_else_is_a_failure_that_keeps_the_raw_answer(text: str, failure: FailureClass) -> None:
    answer = check(text)
    assert (answer.failure, answer.output, answer.text) == (failure, None, text)
    assert 0 < len(answer.message) < 500


def test_the_message_names_the_place_that_does_not_fit() -> None:
    schema = {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string"}}}}
    assert "['tags'][1]" in check('{"tags": ["x", 5]}', schema).message


def test_the_message_says_what_is_asked_for_and_nothing_of_the_answer() -> None:
    assert "'label' is a required property" in check("{}").message
    for text in (
        '{"label": "from the document"}',
        '{"label": ["from the document"]}',
        '{"label": "a", "from the document": 1}',
    ):
        assert "from the document" not in check(text).message
    assert "`enum` must be ['a', 'b']" in check('{"label": "z"}').message


def test_without_a_schema_or_with_a_failure_nothing_is_parsed() -> None:
    assert check("no json", None).failure is None
    assert check("half", failure=F.TRUNCATED).failure is F.TRUNCATED


def test_a_reference_to_elsewhere_is_never_fetched() -> None:
    answer = check('{"label": "a"}', {"$ref": "http://127.0.0.1:1/schema.json"})
    assert answer.failure is F.SCHEMA_MISMATCH


def test_a_schema_that_refers_to_itself_without_end_is_that_answers_failure() -> None:
    schema = {"$defs": {"loop": {"$ref": "#/$defs/loop"}}, "$ref": "#/$defs/loop"}
    assert check('{"label": "a"}', schema).failure is F.SCHEMA_MISMATCH


def test_a_schema_that_is_none_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match="json_schema"):
        SchemaBook().validator({"type": "no such type"})


def test_a_schema_is_compiled_once() -> None:
    book = SchemaBook()
    assert book.validator(LABEL_SCHEMA) is book.validator(LABEL_SCHEMA)
    assert book.validator({"type": "object"}) is not book.validator({"type": "object"})
