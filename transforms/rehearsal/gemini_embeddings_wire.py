"""Gemini's embedContent: what comes in, what goes back.

Source: the API reference of `models.embedContent`; the shapes are checked against the types of the
official SDK.
"""

from __future__ import annotations

import orjson

from transforms.rehearsal.asks import Answer, Ask, HttpReply, HttpRequest, text_of_parts, tokens_of
from transforms.rehearsal.gemini_wire import (
    OVERLOADED,
    body_of,
    error,
    fault,
    model_in,
    refuse,
    require_key,
)
from transforms.rehearsal.vectors import LARGEST, unit_vector

__all__ = ["OVERLOADED", "error", "fault", "read", "reply"]

_USUAL_DIMENSIONS = 3072
_FIELDS = frozenset({"model", "content", "taskType", "title", "outputDimensionality"})


def read(request: HttpRequest, key: bytes) -> Ask:
    """What the request asks for; BadRequest where the provider would refuse it."""
    require_key(request, key)
    body = body_of(request, _FIELDS, key)
    text = text_of_parts(body.get("content"))
    if not text:
        refuse("* EmbedContentRequest.content: contents is not specified", key)
    dimensions = body.get("outputDimensionality", _USUAL_DIMENSIONS)
    if not isinstance(dimensions, int) or isinstance(dimensions, bool) or not 1 <= dimensions <= LARGEST:
        refuse("Invalid value at 'output_dimensionality'", key)
    return Ask(
        model=model_in(request.path),
        prompt=text,
        input_tokens=tokens_of(len(text)),
        max_output_tokens=None,
        texts=(text,),
        dimensions=dimensions,
    )


def reply(ask: Ask, answer: Answer, key: bytes) -> HttpReply:  # noqa: ARG001 - there is no text to give
    """The vector as an EmbedContentResponse."""
    assert ask.dimensions is not None
    values = [float(value) for value in unit_vector(ask.model, ask.prompt, ask.dimensions)]
    body = {"embedding": {"values": values}, "usageMetadata": {"promptTokenCount": ask.input_tokens}}
    return HttpReply(200, (), orjson.dumps(body), billed=True)
