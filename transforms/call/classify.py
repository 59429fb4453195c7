"""Error responses of the providers, and the failure class that each one is.

The tables follow the providers' error pages (Anthropic: API errors; OpenAI: error codes; Google:
`google.rpc.Status` with its details, and Gemini's troubleshooting guide); where a server is only
compatible, the HTTP status decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.failures import FailureClass
from transforms.call.wire import (
    CallFailure,
    WireResponse,
    malformed,
    parse_object,
    retry_after_s,
    seconds_or_none,
)

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
    499: FailureClass.PROVIDER_ERROR,  # Google's CANCELLED
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
    # google.rpc.Code
    "INVALID_ARGUMENT": FailureClass.BAD_REQUEST,
    "UNAUTHENTICATED": FailureClass.AUTHENTICATION,
    "PERMISSION_DENIED": FailureClass.PERMISSION,
    "NOT_FOUND": FailureClass.NOT_FOUND,
    "RESOURCE_EXHAUSTED": FailureClass.RATE_LIMITED,
    "UNAVAILABLE": FailureClass.OVERLOADED,
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
    # reasons in google.rpc.ErrorInfo
    "API_KEY_INVALID": FailureClass.AUTHENTICATION,
    "API_KEY_EXPIRED": FailureClass.AUTHENTICATION,
    "BILLING_DISABLED": FailureClass.QUOTA_EXHAUSTED,
    # what a violated quota of google.rpc.QuotaFailure is read as: it does not come back within the run
    "quota_of_a_day": FailureClass.QUOTA_EXHAUSTED,
}
"""Codes that say more than the status does."""

# These have no code of their own, only HTTP 400 and a sentence.
_PHRASES_OF_400 = (
    ("prompt is too long", FailureClass.REQUEST_TOO_LARGE),  # Anthropic
    ("credit balance is too low", FailureClass.QUOTA_EXHAUSTED),
    ("exceeds the maximum number of tokens", FailureClass.REQUEST_TOO_LARGE),  # Gemini
    ("API key not valid", FailureClass.AUTHENTICATION),
    ("API key expired", FailureClass.AUTHENTICATION),
    ("User location is not supported", FailureClass.PERMISSION),
)


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What an error body says: the broad type, the precise code, the sentence, seconds to wait."""

    kind: str = ""
    code: str = ""
    message: str = ""
    retry_after_s: float | None = None


def error_body(data: Mapping[str, Any] | None) -> ErrorBody | None:
    """The error in a parsed body; None when it holds none.

    Reads `{"error": {type, message, details: {error_code}}}`, `{"error": {type, code, message}}`,
    Google's `{"error": {code, message, status, details: [...]}}` and a bare `{"error": "sentence"}`.
    """
    error = data.get("error") if data else None
    if not error:
        return None
    if not isinstance(error, dict):
        return ErrorBody(message=str(error)[:_LONGEST_MESSAGE])
    details = error.get("details")
    message = str(error.get("message") or "")[:_LONGEST_MESSAGE]
    if isinstance(error.get("status"), str):
        parts = _google_details(details)
        return ErrorBody(error["status"], _google_code(parts), message, _google_delay_s(parts))
    code = details.get("error_code") if isinstance(details, dict) else None
    return ErrorBody(
        kind=str(error.get("type") or ""),
        code=str(code or error.get("code") or ""),
        message=message,
    )


def _google_details(details: Any) -> dict[str, dict[str, Any]]:
    """The details of a `google.rpc.Status` by the last word of their type."""
    parts = details if isinstance(details, list) else []
    return {str(part.get("@type", "")).rpartition(".")[2]: part for part in parts if isinstance(part, dict)}


def _google_code(parts: Mapping[str, dict[str, Any]]) -> str:
    violations = parts.get("QuotaFailure", {}).get("violations")
    for violation in violations if isinstance(violations, list) else ():
        if isinstance(violation, dict) and "PerDay" in str(violation.get("quotaId", "")):
            return "quota_of_a_day"
    return str(parts.get("ErrorInfo", {}).get("reason") or "")


def _google_delay_s(parts: Mapping[str, dict[str, Any]]) -> float | None:
    """`retryDelay` is a `google.protobuf.Duration`: seconds with up to nine decimals and an `s`."""
    text = str(parts.get("RetryInfo", {}).get("retryDelay", ""))
    return seconds_or_none(text.removesuffix("s")) if text.endswith("s") else None


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


def body_of(provider: str, response: WireResponse) -> dict[str, Any] | CallFailure:
    """The JSON object of a response with status 200, or the failure that it is instead."""
    data = parse_object(response.body)
    if response.status != 200:
        return classify_error(provider, response, data)
    if data is None:
        return malformed(provider, response.status, "the body is not a JSON object")
    return data


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
    wait_s = retry_after_s(response.headers)
    return CallFailure(
        failure_of(response.status, error), message, error.retry_after_s if wait_s is None else wait_s
    )
