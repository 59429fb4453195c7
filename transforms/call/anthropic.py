"""Anthropic's Messages API, direct and on Vertex: requests to bytes, bytes to answers.

Source: the API reference of Messages, "Claude on Vertex AI", "Prompt caching" and the types of the
official SDK (2.12), against which the tests check both directions. Structured output is native:
`output_config.format` of type `json_schema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.backends import HostedBackend
from schemas.errors import ConfigurationError
from schemas.failures import FailureClass
from schemas.outcomes import Usage
from transforms.call.caching import cached_prefix
from transforms.call.classify import body_of, classify_error
from transforms.call.request import CallRequest
from transforms.call.vertex import publisher_path
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

_COMPLETE = frozenset({"end_turn", "stop_sequence"})
_TRUNCATED = frozenset({"max_tokens", "model_context_window_exceeded", "pause_turn"})
_VERTEX_VERSION = "vertex-2023-10-16"
_HEADERS = {**JSON_HEADERS, "anthropic-version": "2023-06-01"}


@dataclass(frozen=True, slots=True)
class AnthropicCodec:
    """Wire format of `POST /v1/messages`; on Vertex of `rawPredict`, with the model in the path."""

    vertex: bool = False
    name: str = "anthropic"
    version: str = "anthropic.messages/1"
    default_base_url: str = "https://api.anthropic.com"
    own_keys: frozenset[str] = frozenset(
        {"model", "max_tokens", "messages", "system", "stream", "anthropic_version", "cache_control"}
    )

    def path(self, backend: HostedBackend) -> str:
        """Path below the base URL."""
        return f"{publisher_path(backend, 'anthropic')}:rawPredict" if self.vertex else "/v1/messages"

    def headers(self) -> Mapping[str, str]:
        """Headers besides the key."""
        return JSON_HEADERS if self.vertex else _HEADERS

    def auth(self) -> Auth:
        """The key goes into `x-api-key`; Vertex takes a token."""
        return "bearer" if self.vertex else "x-api-key"

    def body(self, backend: HostedBackend, request: CallRequest) -> dict[str, Any]:
        """The request as a JSON object.

        Raises:
            ConfigurationError: `parameters` sets a key of ours.
        """
        own: dict[str, Any] = (
            {"anthropic_version": _VERTEX_VERSION} if self.vertex else {"model": backend.model}
        )
        own["max_tokens"] = backend.max_output_tokens
        own["messages"] = [{"role": turn.role, "content": turn.text} for turn in request.turns]
        if request.system:
            own["system"] = request.system
        if request.json_schema is None:
            return merged_parameters(self, backend, own)
        given = dict(backend.parameters)
        config = given.pop("output_config", {})
        if not isinstance(config, dict) or "format" in config:
            raise ConfigurationError(
                f"parameters.output_config of the anthropic backend for {backend.model!r} sets the answer's "
                f"format, which comes from the prompt's json_schema: remove `format` from it"
            )
        own["output_config"] = {**config, "format": {"type": "json_schema", "schema": request.json_schema}}
        return merged_parameters(self, backend.model_copy(update={"parameters": given}), own)

    def marked(self, backend: HostedBackend, request: CallRequest, body: dict[str, Any]) -> dict[str, Any]:
        """The body with the text that all documents share marked for the prompt cache, where it pays."""
        prefix = cached_prefix(backend, request)
        if prefix is None:
            return body
        marked = dict(body)
        if not prefix.of_prompt:
            marked["system"] = [_cached_block(request.system)]
            return marked
        head, rest = request.prompt[: prefix.of_prompt], request.prompt[prefix.of_prompt :]
        blocks = [_cached_block(head), {"type": "text", "text": rest}]
        marked["messages"] = [{"role": "user", "content": blocks}, *body["messages"][1:]]
        return marked

    def decode(self, response: WireResponse) -> Answer | CallFailure:
        """The answer or the failure behind a response."""
        data = body_of(self.name, response)
        if isinstance(data, CallFailure):
            return data
        if data.get("type") == "error" or (data.get("error") and "content" not in data):
            return classify_error(self.name, response, data)
        usage = _usage(data.get("usage"))
        content = data.get("content")
        if not isinstance(content, list) or not isinstance(data.get("stop_reason"), str):
            if usage == Usage():
                return malformed(self.name, response.status, "content or stop_reason is missing")
            return _answer(data, usage, None, FailureClass.MALFORMED_RESPONSE, "no content or no stop_reason")
        return _judge(data, usage, _text(content))


def _cached_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}


def _judge(data: dict[str, Any], usage: Usage, text: str | None) -> Answer:
    reason = data["stop_reason"]
    if reason == "refusal":
        details = data.get("stop_details")
        why = text_or_none(details.get("explanation")) if isinstance(details, dict) else None
        return _answer(
            data, usage, text, FailureClass.REFUSED, f"the model refused: {why or 'no reason given'}"
        )
    if reason in _TRUNCATED:
        message = f"the answer was cut off (stop_reason {reason!r}, {usage.output_tokens} output tokens)"
        return _answer(data, usage, text, FailureClass.TRUNCATED, message)
    if reason not in _COMPLETE:
        message = f"stop_reason {reason!r} does not end an answer (these do: {', '.join(sorted(_COMPLETE))})"
        return _answer(data, usage, text, FailureClass.MALFORMED_RESPONSE, message)
    if not text or not text.strip():
        message = f"the answer has no text ({usage.output_tokens} output tokens were billed)"
        return _answer(data, usage, text, FailureClass.EMPTY_ANSWER, message)
    return _answer(data, usage, text, None, "")


def _answer(
    data: dict[str, Any], usage: Usage, text: str | None, failure: FailureClass | None, message: str
) -> Answer:
    reason = text_or_none(data.get("stop_reason"))
    return Answer(
        text=text,
        usage=usage,
        response_model=text_or_none(data.get("model")),
        response_id=text_or_none(data.get("id")),
        finish_reasons=(reason,) if reason else (),
        price_context=_price_context(data.get("usage")),
        failure=failure,
        message=message,
    )


def _text(content: list[Any]) -> str | None:
    """All text blocks together; thinking blocks are no part of the answer."""
    texts = [
        block.get("text") for block in content if isinstance(block, dict) and block.get("type") == "text"
    ]
    strings = [text for text in texts if isinstance(text, str)]
    return "".join(strings) if strings else None


def _usage(data: Any) -> Usage:
    """Anthropic counts cached tokens apart from `input_tokens`; ours counts all input tokens."""
    if not isinstance(data, dict):
        return Usage()
    plain = count(data.get("input_tokens"))
    read = count(data.get("cache_read_input_tokens"))
    written = count(data.get("cache_creation_input_tokens"))
    total = None if plain is None else plain + (read or 0) + (written or 0)
    return Usage(total, count(data.get("output_tokens")), read, written)


def _price_context(data: Any) -> tuple[tuple[str, str], ...]:
    speed = data.get("speed") if isinstance(data, dict) else None
    return (("speed", speed),) if isinstance(speed, str) and speed != "standard" else ()
