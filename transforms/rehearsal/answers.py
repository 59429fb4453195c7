"""The answer of the model that isn't there: words of the document, fitted to what was asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from transforms.rehearsal.asks import CHARACTERS_PER_TOKEN, Answer, Ask, tokens_of
from transforms.rehearsal.document import document_in, opening, words_of
from transforms.rehearsal.faults import Fault
from transforms.rehearsal.schema_values import value_for

PLAIN_PREFIX = "Rehearsal, no model was asked. The text begins: "
REFUSAL = "Rehearsal of a refusal: I can't help with that."
_QUOTED_CHARACTERS = 240


def answer_to(ask: Ask, key: bytes, fault: Fault | None) -> Answer:
    """The answer to a request; the same for the same `ask`, `key` and `fault`.

    Like a real one it is cut off at `max_output_tokens`. UnsupportedSchemaError where no value for
    the schema can be made.
    """
    if fault == "refusal":
        return Answer(REFUSAL, "refused", tokens_of(len(REFUSAL)))
    answer = _whole_answer(ask, key)
    if fault == "invalid_json" and ask.schema is not None:
        broken = f"Here is the JSON you asked for: {answer.text[:-1]}"
        return Answer(broken, "stop", tokens_of(len(broken)), {"rehearsal": "this does not fit the schema"})
    if fault == "max_tokens":
        return _cut(answer, max(1, answer.output_tokens // 2), ask.max_output_tokens)
    if ask.max_output_tokens is not None and answer.output_tokens > ask.max_output_tokens:
        return _cut(answer, ask.max_output_tokens, ask.max_output_tokens)
    return answer


def _whole_answer(ask: Ask, key: bytes) -> Answer:
    document = document_in(ask.prompt)
    words = words_of(document)
    if ask.schema is None:
        text, value = PLAIN_PREFIX + opening(words, _QUOTED_CHARACTERS), None
    else:
        value = value_for(ask.schema, document, words, key)
        text = orjson.dumps(value).decode()
    return Answer(text, "stop", tokens_of(len(text)), value)


def _cut(answer: Answer, tokens: int, billed: int | None) -> Answer:
    """The first `tokens` of an answer, billed as what the request allowed."""
    return replace(
        answer,
        text=answer.text[: tokens * CHARACTERS_PER_TOKEN],
        finish="length",
        output_tokens=tokens if billed is None else billed,
        value=_first_properties(answer.value),
    )


def _first_properties(value: Any) -> Any:
    """What a tool call that was cut off still carries: its first half."""
    return dict(list(value.items())[: len(value) // 2]) if isinstance(value, dict) else value
