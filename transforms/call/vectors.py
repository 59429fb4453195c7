"""Vectors of hosted embeddings: checked, packed, and the space that they live in."""

from __future__ import annotations

import array
import sys
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from schemas.backends import HostedBackend
from schemas.failures import FailureClass
from schemas.ids import canonical_json, sha256_hex
from schemas.outcomes import Usage
from transforms.call.wire import Answer

SPACE_VERSION = "hosted-space/1"
_FLOAT_BYTES = 4


def packed(values: Any) -> bytes | None:
    """A JSON array of numbers as little-endian float32; None when it is no such array."""
    if not isinstance(values, list):
        return None
    try:
        vector = array.array("f", values)
    except (TypeError, OverflowError):
        return None
    if sys.byteorder == "big":
        vector.byteswap()
    return vector.tobytes()


def judged(vector: bytes | None, dimensions: int, answer: Answer) -> Answer:
    """`answer` with its vector, or as malformed when that has another length or holds no numbers.

    Paid either way.
    """
    if vector is None:
        return malformed_vector(answer, "it holds no vector")
    found = len(vector) / _FLOAT_BYTES
    if found != dimensions:
        return malformed_vector(
            answer, f"its vector has {found:g} dimensions, and the backend's `dimensions` is {dimensions}"
        )
    if not np.isfinite(np.frombuffer(vector, "<f4")).all():
        return malformed_vector(answer, "its vector holds what is no finite number")
    return Answer(
        text=None,
        usage=answer.usage,
        response_model=answer.response_model,
        response_id=answer.response_id,
        vector=vector,
    )


def malformed_vector(answer: Answer, why: str) -> Answer:
    """The answer as one that is no result."""
    return Answer(
        text=None,
        usage=answer.usage,
        response_model=answer.response_model,
        response_id=answer.response_id,
        failure=FailureClass.MALFORMED_RESPONSE,
        message=f"the response is no embedding: {why}",
    )


def embedding_usage(tokens: int | None) -> Usage:
    """Usage of an embedding: it has no output."""
    return Usage(input_tokens=tokens)


def vector_space(backend: HostedBackend, base_url: str, *, rehearsal: bool) -> str:
    """Fingerprint of the space that a hosted backend's vectors live in.

    It covers provider, model, dimensions, the host that serves it, and whether it was a rehearsal:
    the vectors of a stand-in are comparable with nothing.
    """
    content = {
        "provider": backend.provider,
        "model": backend.model,
        "dimensions": backend.dimensions,
        "parameters": backend.parameters,
        "host": urlsplit(base_url).netloc,
        "rehearsal": rehearsal,
    }
    return f"{SPACE_VERSION}:{sha256_hex(canonical_json(content))[:32]}"
