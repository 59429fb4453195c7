"""Which codec and which address a backend has."""

from __future__ import annotations

from schemas.backends import HostedBackend
from transforms.call.anthropic import AnthropicCodec
from transforms.call.gemini import GeminiCodec
from transforms.call.gemini_embeddings import GeminiEmbeddingsCodec
from transforms.call.openai import OpenAICodec
from transforms.call.openai_embeddings import OpenAIEmbeddingsCodec
from transforms.call.vertex import vertex_base_url
from transforms.call.wire import Codec

CODECS: dict[str, Codec] = {
    "anthropic": AnthropicCodec(),
    "openai": OpenAICodec(),
    "gemini": GeminiCodec(),
}
"""Chat at the providers' own addresses."""

_VERTEX: dict[str, Codec] = {"anthropic": AnthropicCodec(vertex=True), "gemini": GeminiCodec(vertex=True)}


def codec_of(backend: HostedBackend) -> Codec:
    """The wire format of a backend."""
    if backend.operation == "embeddings":
        assert backend.dimensions is not None  # a workload without them is refused
        if backend.provider == "gemini":
            return GeminiEmbeddingsCodec(backend.dimensions)
        return OpenAIEmbeddingsCodec(backend.dimensions)
    return (_VERTEX if backend.platform == "vertex" else CODECS)[backend.provider]


def base_url_of(backend: HostedBackend) -> str:
    """Where a backend is, as the workload says or by default."""
    if backend.base_url is not None:
        return backend.base_url
    return vertex_base_url(backend) if backend.platform == "vertex" else codec_of(backend).default_base_url


def default_base_url(backend: HostedBackend) -> str:
    """Where the backend would be without a `base_url` of the workload's."""
    return base_url_of(backend.model_copy(update={"base_url": None}))
