"""OpenAI's embeddings: what comes in, what goes back.

Source: the API reference of Embeddings; the shapes are checked against the types of the official SDK.
"""

from __future__ import annotations

import base64
from typing import Any

import orjson

from transforms.rehearsal.asks import Answer, Ask, HttpReply, HttpRequest, tokens_of
from transforms.rehearsal.openai_wire import OVERLOADED, answer_headers, error, fault, key_and_body, refuse
from transforms.rehearsal.vectors import LARGEST, unit_vector

__all__ = ["OVERLOADED", "PATH", "error", "fault", "read", "reply"]

PATH = "/v1/embeddings"
_USUAL_DIMENSIONS = 1536
_MOST_INPUTS = 2048


def read(request: HttpRequest, key: bytes) -> Ask:
    """What the request asks for; BadRequest where the provider would refuse it."""
    body = key_and_body(request, key)
    texts = _texts(body.get("input"), key)
    dimensions = body.get("dimensions", _USUAL_DIMENSIONS)
    if not isinstance(dimensions, int) or isinstance(dimensions, bool) or not 1 <= dimensions <= LARGEST:
        refuse("Invalid 'dimensions': expected an integer >= 1.", key, "dimensions", "invalid_value")
    encoding = body.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        refuse("Invalid 'encoding_format'.", key, "encoding_format", "invalid_value")
    return Ask(
        model=body["model"],
        prompt=texts[0],
        input_tokens=sum(tokens_of(len(text)) for text in texts),
        max_output_tokens=None,
        texts=texts,
        dimensions=dimensions,
        encoding=encoding,
    )


def reply(ask: Ask, answer: Answer, key: bytes) -> HttpReply:  # noqa: ARG001 - there is no text to give
    """The vectors as a CreateEmbeddingResponse."""
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(ask, text)}
            for index, text in enumerate(ask.texts)
        ],
        "model": ask.model,
        "usage": {"prompt_tokens": ask.input_tokens, "total_tokens": ask.input_tokens},
    }
    return HttpReply(200, answer_headers(key), orjson.dumps(body), billed=True)


def _encoded(ask: Ask, text: str) -> str | list[float]:
    assert ask.dimensions is not None
    vector = unit_vector(ask.model, text, ask.dimensions)
    if ask.encoding == "base64":
        return base64.b64encode(vector.tobytes()).decode()
    return [float(value) for value in vector]


def _texts(given: Any, key: bytes) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        refuse("the rehearsal reads texts only", key, "input", "invalid_type")
    if not 1 <= len(texts) <= _MOST_INPUTS or not all(texts):
        refuse("'$.input' is invalid: 1 to 2048 texts, none of them empty.", key, "input")
    return tuple(texts)
