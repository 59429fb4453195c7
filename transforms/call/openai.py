"""OpenAI's chat completions, and every server that is compatible with them.

Source: the API reference of chat completions and the types of the official SDK (3.54), against which
the tests check both directions. Structured output is native: `response_format` of type `json_schema`, strict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.backends import HostedBackend
from schemas.failures import FailureClass
from schemas.outcomes import Usage
from transforms.call.classify import body_of, classify_error
from transforms.call.request import CallRequest
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

_COMPLETE = frozenset({"stop"})


class OpenAICodec:
    """Wire format of `POST /chat/completions` below a base URL that ends in the API's version."""

    name = "openai"
    version = "openai.chat/1"
    default_base_url = "https://api.openai.com/v1"
    own_keys = frozenset({"model", "messages", "max_tokens", "max_completion_tokens", "stream", "n"})

    def path(self, backend: HostedBackend) -> str:  # noqa: ARG002
        """Path below the base URL."""
        return "/chat/completions"

    def headers(self) -> Mapping[str, str]:
        """Headers besides the key."""
        return JSON_HEADERS

    def auth(self) -> Auth:
        """The key goes into `authorization: Bearer`."""
        return "bearer"

    def body(self, backend: HostedBackend, request: CallRequest) -> dict[str, Any]:
        """The request as a JSON object.

        OpenAI itself takes `max_completion_tokens` (its reasoning models refuse the older name);
        compatible servers all know `max_tokens`, and some ignore the new name, which would lift the
        bound that the budget rests on.

        Raises:
            ConfigurationError: `parameters` sets a key of ours.
        """
        messages = [{"role": "system", "content": request.system}] if request.system else []
        messages += [{"role": turn.role, "content": turn.text} for turn in request.turns]
        limit = "max_completion_tokens" if backend.base_url is None else "max_tokens"
        own: dict[str, Any] = {
            "model": backend.model,
            "messages": messages,
            limit: backend.max_output_tokens,
        }
        if request.json_schema is not None:
            schema = {"name": "answer", "strict": True, "schema": request.json_schema}
            own["response_format"] = {"type": "json_schema", "json_schema": schema}
        return merged_parameters(self, backend, own)

    def marked(self, backend: HostedBackend, request: CallRequest, body: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """The body as it is: the provider caches shared prefixes by itself."""
        return body

    def decode(self, response: WireResponse) -> Answer | CallFailure:
        """The answer or the failure behind a response."""
        data = body_of(self.name, response)
        if isinstance(data, CallFailure):
            return data
        if data.get("error") and not data.get("choices"):
            return classify_error(self.name, response, data)
        usage = _usage(data.get("usage"))
        choice = _first_choice(data)
        if choice is None:
            if usage == Usage():
                return malformed(self.name, response.status, "choices[0].message or finish_reason is missing")
            return _answer(
                data, usage, {}, None, FailureClass.MALFORMED_RESPONSE, "no choice, or an incomplete one"
            )
        return _judge(data, usage, choice)


def _first_choice(data: dict[str, Any]) -> dict[str, Any] | None:
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        return None
    return choice if isinstance(choice.get("finish_reason"), str) else None


def _judge(data: dict[str, Any], usage: Usage, choice: dict[str, Any]) -> Answer:
    message, reason = choice["message"], choice["finish_reason"]
    text = text_or_none(message.get("content"))
    refusal = text_or_none(message.get("refusal"))
    if refusal or reason == "content_filter":
        why = f"the model refused: {refusal}" if refusal else "the provider's content filter cut the answer"
        return _answer(data, usage, choice, text or refusal, FailureClass.REFUSED, why)
    if reason == "length":
        why = f"the answer was cut off (finish_reason 'length', {usage.output_tokens} output tokens)"
        return _answer(data, usage, choice, text, FailureClass.TRUNCATED, why)
    if reason not in _COMPLETE:
        why = f"finish_reason {reason!r} does not end an answer (this does: {', '.join(sorted(_COMPLETE))})"
        return _answer(data, usage, choice, text, FailureClass.MALFORMED_RESPONSE, why)
    if not text or not text.strip():
        why = f"the answer has no text ({usage.output_tokens} output tokens were billed)"
        return _answer(data, usage, choice, text, FailureClass.EMPTY_ANSWER, why)
    return _answer(data, usage, choice, text, None, "")


def _answer(
    data: dict[str, Any],
    usage: Usage,
    choice: dict[str, Any],
    text: str | None,
    failure: FailureClass | None,
    message: str,
) -> Answer:
    reason = text_or_none(choice.get("finish_reason"))
    tier = data.get("service_tier")
    return Answer(
        text=text,
        usage=usage,
        response_model=text_or_none(data.get("model")),
        response_id=text_or_none(data.get("id")),
        finish_reasons=(reason,) if reason else (),
        price_context=(("service_tier", tier),) if isinstance(tier, str) and tier != "default" else (),
        failure=failure,
        message=message,
    )


def _usage(data: Any) -> Usage:
    if not isinstance(data, dict):
        return Usage()
    details = data.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    return Usage(
        count(data.get("prompt_tokens")),
        count(data.get("completion_tokens")),
        count(details.get("cached_tokens")),
        count(details.get("cache_write_tokens")),
    )
