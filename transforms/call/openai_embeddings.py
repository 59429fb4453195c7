"""OpenAI's embeddings, and every server that is compatible with them (vLLM, TEI, Ollama, ...).

Source: the API reference of embeddings and the types of the official SDK (3.54), against which the
tests check both directions. Vectors are asked for as base64 of little-endian float32, as the SDK does
(a third of the bytes), unless `parameters` have another `encoding_format`, for servers that refuse it;
numbers are understood, too.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.backends import HostedBackend
from transforms.call.classify import body_of, classify_error
from transforms.call.request import CallRequest
from transforms.call.vectors import embedding_usage, judged, packed
from transforms.call.wire import (
    JSON_HEADERS,
    Answer,
    Auth,
    CallFailure,
    WireResponse,
    count,
    malformed,
    merged_parameters,
    text_or_none,
)


@dataclass(frozen=True, slots=True)
class OpenAIEmbeddingsCodec:
    """Wire format of `POST /embeddings`: one document, one request, one vector of so many dimensions."""

    dimensions: int
    name: str = "openai"
    version: str = "openai.embeddings/1"
    default_base_url: str = "https://api.openai.com/v1"
    own_keys: frozenset[str] = frozenset({"model", "input", "dimensions"})

    def path(self, backend: HostedBackend) -> str:  # noqa: ARG002
        """Path below the base URL."""
        return "/embeddings"

    def headers(self) -> Mapping[str, str]:
        """Headers besides the key."""
        return JSON_HEADERS

    def auth(self) -> Auth:
        """The key goes into `authorization: Bearer`."""
        return "bearer"

    def body(self, backend: HostedBackend, request: CallRequest) -> dict[str, Any]:
        """The request as a JSON object; ConfigurationError when `parameters` sets a key of ours."""
        own: dict[str, Any] = {"model": backend.model, "input": request.prompt}
        if "encoding_format" not in backend.parameters:
            own["encoding_format"] = "base64"
        if backend.send_dimensions:
            own["dimensions"] = self.dimensions
        return merged_parameters(self, backend, own)

    def marked(self, backend: HostedBackend, request: CallRequest, body: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """The body as it is: there is nothing to cache."""
        return body

    def decode(self, response: WireResponse) -> Answer | CallFailure:
        """The vector or the failure behind a response."""
        data = body_of(self.name, response)
        if isinstance(data, CallFailure):
            return data
        if data.get("error") and not data.get("data"):
            return classify_error(self.name, response, data)
        usage = data.get("usage")
        tokens = count(usage.get("prompt_tokens")) if isinstance(usage, dict) else None
        vector = _vector(data.get("data"))
        if vector is None and tokens is None:
            return malformed(self.name, response.status, "data[0].embedding is missing")
        said = Answer(None, embedding_usage(tokens), text_or_none(data.get("model")))
        return judged(vector, self.dimensions, said)


def _vector(data: Any) -> bytes | None:
    """The one vector; several, or an entry of another kind, are none."""
    entry = data[0] if isinstance(data, list) and len(data) == 1 else None
    embedding = entry.get("embedding") if isinstance(entry, dict) else None
    if not isinstance(embedding, str):
        return packed(embedding)
    try:
        return base64.b64decode(embedding, validate=True)
    except (binascii.Error, ValueError):
        return None
