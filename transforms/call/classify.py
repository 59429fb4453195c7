"""Error responses of the providers, and the failure class that each one is.

The tables follow the providers' error pages (Anthropic: API errors; OpenAI: error codes); where a
server is only compatible, the HTTP status decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.failures import FailureClass
from transforms.call.wire import CallFailure, WireResponse, parse_object, retry_after_s

_LONGEST_MESSAGE = 500

BY_STATUS: dict[int, FailureClass] = {
    400: FailureClass.BAD_REQUEST,
    401: FailureClass.AUTHENTICATION,
    402: FailureClass.QUOTA_EXHAUSTED,
    403: FailureClass.PERMISSION,
    404: FailureClass.NOT_FOUND,
    408: FailureClass.PROVIDER_ERROR,
    409: FailureClass.PROVIDER_ERROR,
    413: FailureClass.REQUEST_TOO_LARGE,
    422: FailureClass.BAD_REQUEST,
    429: FailureClass.RATE_LIMITED,
    503: FailureClass.OVERLOADED,
    529: FailureClass.OVERLOADED,
}

BY_KIND: dict[str, FailureClass] = {
    "invalid_request_error": FailureClass.BAD_REQUEST,
    "authentication_error": FailureClass.AUTHENTICATION,
    "billing_error": FailureClass.QUOTA_EXHAUSTED,
    "permission_error": FailureClass.PERMISSION,
    "not_found_error": FailureClass.NOT_FOUND,
    "request_too_large": FailureClass.REQUEST_TOO_LARGE,
    "rate_limit_error": FailureClass.RATE_LIMITED,
    "rate_limit_exceeded": FailureClass.RATE_LIMITED,
    "overloaded_error": FailureClass.OVERLOADED,
    "api_error": FailureClass.PROVIDER_ERROR,
    "server_error": FailureClass.PROVIDER_ERROR,
    "timeout_error": FailureClass.PROVIDER_ERROR,
}
"""Error types, for error bodies that come with HTTP 200."""

BY_CODE: dict[str, FailureClass] = {
    # an account that may not spend more: waiting does not help (Anthropic error_code, OpenAI code)
    "enforced_spend_limit_reached": FailureClass.QUOTA_EXHAUSTED,
    "contract_spend_limit_reached": FailureClass.QUOTA_EXHAUSTED,
    "linked_organization_spend_limit_reached": FailureClass.QUOTA_EXHAUSTED,
    "linked_organization_billing_unavailable": FailureClass.QUOTA_EXHAUSTED,
    "insufficient_quota": FailureClass.QUOTA_EXHAUSTED,
    "billing_hard_limit_reached": FailureClass.QUOTA_EXHAUSTED,
    "billing_not_active": FailureClass.QUOTA_EXHAUSTED,
    "context_length_exceeded": FailureClass.REQUEST_TOO_LARGE,
    "string_above_max_length": FailureClass.REQUEST_TOO_LARGE,
    "request_body_too_large_after_decoding": FailureClass.REQUEST_TOO_LARGE,
    "content_filter": FailureClass.REFUSED,
    "content_policy_violation": FailureClass.REFUSED,
}
"""Codes that say more than the status does."""

# Anthropic gives these two no code of their own, only HTTP 400 and a sentence.
_PHRASES_OF_400 = (
    ("prompt is too long", FailureClass.REQUEST_TOO_LARGE),
    ("credit balance is too low", FailureClass.QUOTA_EXHAUSTED),
)


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What an error body says: the broad type, the precise code, the sentence."""

    kind: str = ""
    code: str = ""
    message: str = ""


def error_body(data: Mapping[str, Any] | None) -> ErrorBody | None:
    """The error in a parsed body; None when it holds none.

    Reads both shapes, `{"error": {type, message, details: {error_code}}}` and
    `{"error": {type, code, message}}`, and a bare `{"error": "sentence"}`.
    """
    error = data.get("error") if data else None
    if not error:
        return None
    if not isinstance(error, dict):
        return ErrorBody(message=str(error)[:_LONGEST_MESSAGE])
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, dict) else None
    return ErrorBody(
        kind=str(error.get("type") or ""),
        code=str(code or error.get("code") or ""),
        message=str(error.get("message") or "")[:_LONGEST_MESSAGE],
    )


def failure_of(status: int, error: ErrorBody) -> FailureClass:
    """The class of an error; `status` 200 means that the body alone speaks."""
    for word in (error.code, error.kind):
        if word in BY_CODE:
            return BY_CODE[word]
    if status < 300:
        if error.code.isdecimal():  # gateways put the upstream's status there
            return failure_of(int(error.code), ErrorBody(message=error.message))
        return BY_KIND.get(error.kind) or BY_KIND.get(error.code) or FailureClass.PROVIDER_ERROR
    if status == 400:
        for phrase, failure in _PHRASES_OF_400:
            if phrase in error.message:
                return failure
    if status in BY_STATUS:
        return BY_STATUS[status]
    return FailureClass.PROVIDER_ERROR if status >= 500 else FailureClass.BAD_REQUEST


def classify_error(provider: str, response: WireResponse, data: dict[str, Any] | None = None) -> CallFailure:
    """The failure behind an error response: a definite one, nothing was billed."""
    if 300 <= response.status < 400:
        return CallFailure(
            FailureClass.NOT_FOUND,
            f"{provider} answered HTTP {response.status}, a redirect; keys are never carried along one: "
            f"set base_url to where the API really is",
        )
    error = error_body(data if data is not None else parse_object(response.body)) or ErrorBody()
    words = " ".join(dict.fromkeys(word for word in (error.kind, error.code) if word))
    said = f" ({words})" if words else ""
    message = f"{provider} answered HTTP {response.status}{said}"
    if error.message:
        message = f"{message}: {error.message}"
    return CallFailure(failure_of(response.status, error), message, retry_after_s(response.headers))
