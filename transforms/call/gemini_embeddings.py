"""Gemini's embedContent: one document, one request, one vector.

Source: the API reference of `models.embedContent` (v1beta) and the types of the official SDK
(google-genai 2.34), against which the tests check both directions. Tokens are counted in
`usageMetadata`, and in results of batches in `tokenCount`. Some models' responses carry no count: their
price is then unknown, and the worst case stays counted.
"""

from __future__ import annotations

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
    quoted_model,
)


@dataclass(frozen=True, slots=True)
class GeminiEmbeddingsCodec:
    """Wire format of `POST /models/MODEL:embedContent`."""

    dimensions: int
    name: str = "gemini"
    version: str = "gemini.embed/1"
    default_base_url: str = "https://generativelanguage.googleapis.com/v1beta"
    own_keys: frozenset[str] = frozenset({"model", "content", "outputDimensionality"})

    def path(self, backend: HostedBackend) -> str:
        """Path below the base URL."""
        return f"/{quoted_model(backend.model)}:embedContent"

    def headers(self) -> Mapping[str, str]:
        """Headers besides the key."""
        return JSON_HEADERS

    def auth(self) -> Auth:
        """The key goes into `x-goog-api-key`."""
        return "x-goog-api-key"

    def body(self, backend: HostedBackend, request: CallRequest) -> dict[str, Any]:
        """The request as a JSON object; ConfigurationError when `parameters` sets a key of ours."""
        own: dict[str, Any] = {"content": {"parts": [{"text": request.prompt}]}}
        if backend.send_dimensions:
            own["outputDimensionality"] = self.dimensions
        return merged_parameters(self, backend, own)

    def marked(self, backend: HostedBackend, request: CallRequest, body: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """The body as it is: there is nothing to cache."""
        return body

    def decode(self, response: WireResponse) -> Answer | CallFailure:
        """The vector or the failure behind a response."""
        data = body_of(self.name, response)
        if isinstance(data, CallFailure):
            return data
        if data.get("error") and "embedding" not in data:
            return classify_error(self.name, response, data)
        embedding = data.get("embedding")
        vector = packed(embedding.get("values")) if isinstance(embedding, dict) else None
        usage = data.get("usageMetadata")
        tokens = count(usage.get("promptTokenCount") if isinstance(usage, dict) else data.get("tokenCount"))
        if vector is None and tokens is None:
            return malformed(self.name, response.status, "embedding.values is missing")
        return judged(vector, self.dimensions, Answer(None, embedding_usage(tokens)))
