"""Gemini's generateContent, at Google's Gemini API and on Vertex: requests to bytes, bytes to answers.

Source: the API reference of `models.generateContent` (v1beta) and the types of the official SDK
(google-genai 2.34), against which the tests check both directions. Structured output is native:
`generationConfig.responseJsonSchema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.backends import HostedBackend
from schemas.errors import ConfigurationError
from schemas.failures import FailureClass
from schemas.outcomes import Usage
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
    quoted_model,
    text_or_none,
)

_COMPLETE = frozenset({"STOP"})
_REFUSED = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
    }
)
_TOP_LEVEL = frozenset({"safetySettings", "tools", "toolConfig", "labels", "serviceTier"})
_OWN_CONFIG = frozenset(
    {
        "maxOutputTokens",
        "candidateCount",
        "responseMimeType",
        "responseSchema",
        "responseJsonSchema",
        "responseModalities",
    }
)


@dataclass(frozen=True, slots=True)
class GeminiCodec:
    """Wire format of `POST /models/MODEL:generateContent`; on Vertex below project and location."""

    vertex: bool = False
    name: str = "gemini"
    version: str = "gemini.generate/1"
    default_base_url: str = "https://generativelanguage.googleapis.com/v1beta"
    own_keys: frozenset[str] = (
        frozenset({"contents", "systemInstruction", "generationConfig", "model", "cachedContent"})
        | _OWN_CONFIG
    )

    def path(self, backend: HostedBackend) -> str:
        """Path below the base URL."""
        if self.vertex:
            return f"{publisher_path(backend, 'google')}:generateContent"
        return f"/{quoted_model(backend.model)}:generateContent"

    def headers(self) -> Mapping[str, str]:
        """Headers besides the key."""
        return JSON_HEADERS

    def auth(self) -> Auth:
        """The key goes into `x-goog-api-key`; Vertex takes a token."""
        return "bearer" if self.vertex else "x-goog-api-key"

    def body(self, backend: HostedBackend, request: CallRequest) -> dict[str, Any]:
        """The request as a JSON object; the model stands in the path.

        Parameters go into `generationConfig` (temperature, thinkingConfig, ...), but for those that
        stand beside it (safetySettings, tools, toolConfig, labels, serviceTier).

        Raises:
            ConfigurationError: `parameters` sets a key of ours.
        """
        clash = sorted(self.own_keys & backend.parameters.keys())
        if clash:
            raise ConfigurationError(
                f"parameters.{clash[0]} of the gemini backend for {backend.model!r}: Switchgear sets this "
                f"key itself (max_output_tokens is the backend's own setting, the answer's format comes from "
                f"the prompt's json_schema; write keys of generationConfig directly): remove it"
            )
        config: dict[str, Any] = {"maxOutputTokens": backend.max_output_tokens}
        if request.json_schema is not None:
            config["responseMimeType"] = "application/json"
            config["responseJsonSchema"] = request.json_schema
        beside = {name: value for name, value in backend.parameters.items() if name in _TOP_LEVEL}
        config.update((n, v) for n, v in backend.parameters.items() if n not in _TOP_LEVEL)
        body: dict[str, Any] = {"contents": _contents(request), "generationConfig": config, **beside}
        if request.system:
            body["systemInstruction"] = {"parts": [{"text": request.system}]}
        return body

    def marked(self, backend: HostedBackend, request: CallRequest, body: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """The body as it is: Gemini caches shared prefixes by itself."""
        return body

    def decode(self, response: WireResponse) -> Answer | CallFailure:
        """The answer or the failure behind a response."""
        data = body_of(self.name, response)
        if isinstance(data, CallFailure):
            return data
        if data.get("error") and not data.get("candidates"):
            return classify_error(self.name, response, data)
        usage = _usage(data.get("usageMetadata"))
        candidate = _first_candidate(data)
        if candidate is not None:
            return _judge(data, usage, candidate)
        if usage == Usage() and not _block_reason(data):
            return malformed(self.name, response.status, "candidates[0] or its finishReason is missing")
        return _without_candidate(data, usage)


def _contents(request: CallRequest) -> list[dict[str, Any]]:
    """The conversation: one question, and when an answer was rejected, that answer and what is wrong."""
    roles = {"user": "user", "assistant": "model"}
    return [{"role": roles[turn.role], "parts": [{"text": turn.text}]} for turn in request.turns]


def _first_candidate(data: dict[str, Any]) -> dict[str, Any] | None:
    candidates = data.get("candidates")
    candidate = candidates[0] if isinstance(candidates, list) and candidates else None
    ended = isinstance(candidate, dict) and isinstance(candidate.get("finishReason"), str)
    return candidate if ended else None


def _block_reason(data: dict[str, Any]) -> str | None:
    feedback = data.get("promptFeedback")
    return text_or_none(feedback.get("blockReason")) if isinstance(feedback, dict) else None


def _without_candidate(data: dict[str, Any], usage: Usage) -> Answer:
    blocked = _block_reason(data)
    if blocked:
        message = f"the provider blocked the prompt ({blocked})"
        return _answer(data, usage, blocked, None, FailureClass.REFUSED, message)
    return _answer(data, usage, None, None, FailureClass.MALFORMED_RESPONSE, "no candidate that has ended")


def _judge(data: dict[str, Any], usage: Usage, candidate: dict[str, Any]) -> Answer:
    reason = candidate["finishReason"]
    text = _text(candidate.get("content"))
    said = text_or_none(candidate.get("finishMessage"))
    more = f": {said}" if said else ""
    if reason in _REFUSED:
        message = f"the provider's filter ended the answer (finishReason {reason!r}){more}"
        return _answer(data, usage, reason, text, FailureClass.REFUSED, message)
    if reason == "MAX_TOKENS":
        message = f"the answer was cut off (finishReason 'MAX_TOKENS', {usage.output_tokens} output tokens)"
        return _answer(data, usage, reason, text, FailureClass.TRUNCATED, message)
    if reason not in _COMPLETE:
        message = f"finishReason {reason!r} does not end an answer (this does: STOP){more}"
        return _answer(data, usage, reason, text, FailureClass.MALFORMED_RESPONSE, message)
    if not text or not text.strip():
        message = f"the answer has no text ({usage.output_tokens} output tokens were billed)"
        return _answer(data, usage, reason, text, FailureClass.EMPTY_ANSWER, message)
    return _answer(data, usage, reason, text, None, "")


def _answer(
    data: dict[str, Any],
    usage: Usage,
    reason: str | None,
    text: str | None,
    failure: FailureClass | None,
    message: str,
) -> Answer:
    return Answer(
        text=text,
        usage=usage,
        response_model=text_or_none(data.get("modelVersion")),
        response_id=text_or_none(data.get("responseId")),
        finish_reasons=(reason,) if reason else (),
        failure=failure,
        message=message,
    )


def _text(content: Any) -> str | None:
    """All text parts together; thoughts are no part of the answer."""
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list):
        return None
    texts = [part.get("text") for part in parts if isinstance(part, dict) and not part.get("thought")]
    strings = [text for text in texts if isinstance(text, str)]
    return "".join(strings) if strings else None


def _usage(data: Any) -> Usage:
    """Thoughts are billed as output, and tools' results as input; cached tokens are part of the prompt's.

    Counts of zero are left out on Google's wire (proto3 JSON), so that beside a prompt's count a
    missing one is zero.
    """
    prompt = count(data.get("promptTokenCount")) if isinstance(data, dict) else None
    if prompt is None:
        return Usage()
    named = ("candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount")
    answer, thoughts, tools = (count(data.get(name)) or 0 for name in named)
    return Usage(prompt + tools, answer + thoughts, count(data.get("cachedContentTokenCount")))
