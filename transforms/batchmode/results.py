"""Result lines of providers' batches, and what each one is for the call it belongs to. Pure, but the spool.

Sources: OpenAI's reference of the batch output object, Anthropic's of Message Batches results, Google's
guide to the Gemini Batch API, and the types of their SDKs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import IO, Any

import orjson

from schemas.failures import FailureClass
from transforms.call.classify import ErrorBody, classify_error, error_body, failure_of
from transforms.call.wire import CallFailure, WireResponse, parse_object

NOT_WORKED_ON: dict[str, tuple[FailureClass, str]] = {
    "expired": (FailureClass.DEADLINE, "the provider batch expired before this request was worked on"),
    "cancelled": (
        FailureClass.CANCELLED,
        "the provider batch was cancelled before this request was worked on",
    ),
    "failed": (FailureClass.PROVIDER_ERROR, "the provider worked on nothing of this batch"),
}
"""Ends of a whole batch in which a request without an answer was not billed."""

_OPENAI_ENDS = {"batch_expired": "expired", "batch_cancelled": "cancelled"}
_ANTHROPIC_ENDS = {"expired": "expired", "canceled": "cancelled"}
VERTEX_ID_LABEL = "switchgear_id"
"""The label that says whose request it is: predictions repeat requests, and have no ids of their own."""
_GOOGLE_ENDS = {1: "cancelled", 4: "expired"}
_GOOGLE_STATUS = {3: 400, 5: 404, 7: 403, 8: 429, 9: 400, 11: 400, 14: 503, 16: 401}
"""HTTP statuses of the codes of `google.rpc.Code`; the others are errors of the provider's."""

Result = WireResponse | CallFailure


@dataclass(frozen=True, slots=True)
class ResultLine:
    """One line: the custom id that it claims, and the response or failure in it."""

    custom_id: Any
    result: Result


def not_worked_on(end: str, said: str = "") -> CallFailure:
    """The failure of a request that the provider ended without working on it; nothing was billed."""
    failure, message = NOT_WORKED_ON[end]
    return CallFailure(failure, f"{message} ({said})" if said else message)


def openai_line(line: Mapping[str, Any]) -> ResultLine:
    """A line of OpenAI's output or error file."""
    response, error = line.get("response"), line.get("error")
    if isinstance(response, Mapping) and isinstance(response.get("status_code"), int):
        status, body = response["status_code"], orjson.dumps(response.get("body"))
        request_id = response.get("request_id")
        headers = {"x-request-id": request_id} if isinstance(request_id, str) else {}
        wire = WireResponse(status, headers, body)
        result: Result = wire if status == 200 else classify_error("openai", wire)
    else:
        result = _openai_error(error if isinstance(error, Mapping) else {})
    return ResultLine(line.get("custom_id"), result)


def _openai_error(error: Mapping[str, Any]) -> CallFailure:
    code, message = str(error.get("code") or ""), str(error.get("message") or "")
    if code in _OPENAI_ENDS:
        return not_worked_on(_OPENAI_ENDS[code])
    if not code and not message:
        return _unreadable("openai", "neither response nor error")
    failure = failure_of(200, ErrorBody(kind=code, code=code, message=message))
    return CallFailure(failure, f"openai failed this request of the batch ({code}): {message[:500]}")


def anthropic_line(line: Mapping[str, Any]) -> ResultLine:
    """A line of Anthropic's results."""
    result = line.get("result")
    return ResultLine(line.get("custom_id"), _anthropic(result if isinstance(result, Mapping) else {}))


def _anthropic(result: Mapping[str, Any]) -> Result:
    kind = str(result.get("type") or "")
    if kind == "succeeded" and isinstance(result.get("message"), Mapping):
        return WireResponse(200, {}, orjson.dumps(result["message"]))
    if kind in _ANTHROPIC_ENDS:
        return not_worked_on(_ANTHROPIC_ENDS[kind])
    if kind != "errored":
        return _unreadable("anthropic", f"result of type {kind!r}")
    outer = result.get("error")
    error = error_body(outer if isinstance(outer, Mapping) else None) or ErrorBody()
    status = 400 if error.kind == "invalid_request_error" else 200
    said = f": {error.message}" if error.message else ""
    return CallFailure(
        failure_of(status, error), f"anthropic failed this request of the batch ({error.kind}){said}"
    )


def gemini_line(line: Mapping[str, Any]) -> ResultLine:
    """A line of Gemini's file of results: a response, or a `google.rpc.Status` in its place."""
    response = line.get("response")
    if isinstance(response, Mapping) and response:
        return ResultLine(line.get("key"), WireResponse(200, {}, orjson.dumps(response)))
    error = line.get("error") or line.get("status")
    return ResultLine(line.get("key"), google_error("gemini", error))


def vertex_line(line: Mapping[str, Any]) -> ResultLine:
    """A line of Vertex's predictions: the request with its labels, and a response or why there is none."""
    request = line.get("request")
    labels = request.get("labels") if isinstance(request, Mapping) else None
    custom_id = labels.get(VERTEX_ID_LABEL) if isinstance(labels, Mapping) else None
    response, status = line.get("response"), line.get("status")
    if isinstance(response, Mapping) and response:
        return ResultLine(custom_id, WireResponse(200, {}, orjson.dumps(response)))
    if not isinstance(status, str) or not status:
        return ResultLine(custom_id, _unreadable("vertex", "neither response nor error"))
    error = error_body(parse_object(status[max(0, status.find("{")) :].encode()))
    failure = failure_of(200, error) if error is not None else FailureClass.PROVIDER_ERROR
    message = error.message if error is not None else status
    return ResultLine(custom_id, CallFailure(failure, f"vertex failed this request: {message[:500]}"))


def google_error(provider: str, error: Any) -> CallFailure:
    """The failure behind a `google.rpc.Status` whose code is one of `google.rpc.Code`, or an HTTP status."""
    code = error.get("code") if isinstance(error, Mapping) else None
    if not isinstance(error, Mapping) or not isinstance(code, int) or not code:
        return _unreadable(provider, "neither response nor error")
    message = str(error.get("message") or "")[:500]
    if code in _GOOGLE_ENDS:
        return not_worked_on(_GOOGLE_ENDS[code], message)
    status = code if code >= 100 else _GOOGLE_STATUS.get(code, 500)
    failure = failure_of(status, ErrorBody(message=message))
    return CallFailure(failure, f"{provider} failed this request of the batch (code {code}): {message}")


def _unreadable(provider: str, what: str) -> CallFailure:
    return CallFailure(
        FailureClass.MALFORMED_RESPONSE,
        f"a result line of the {provider} batch holds {what}; the request may have been billed",
        ambiguous=True,
    )


def no_line(provider: str) -> CallFailure:
    """A request for which a batch that has ended well holds no line: nobody knows whether it was billed."""
    return replace(
        _unreadable(provider, "nothing"),
        message=f"the {provider} batch has ended without a result line for this request; "
        f"it may have been billed",
    )


class Spool:
    """The lines of one batch by number of request, in a temporary file: they come in any order.

    The first line of a request counts; `repeated` counts the others, `strangers` lines of no request.
    """

    def __init__(self, requests: int) -> None:
        self._places: list[tuple[int, int] | None] = [None] * requests
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="switchgear-")  # noqa: SIM115 - closed by exit
        self._end = 0
        self.repeated = 0
        self.strangers = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def is_empty(self) -> bool:
        """Whether no request has a line."""
        return self._end == 0

    def put(self, index: int | None, result: Result) -> None:
        """Keep a line's result; `index` None is a stranger."""
        if index is None:
            self.strangers += 1
        elif self._places[index] is not None:
            self.repeated += 1
        else:
            data = _dump(result)
            self._file.write(data)
            self._places[index] = (self._end, len(data))
            self._end += len(data)

    def get(self, index: int) -> Result | None:
        """The result of a request; None when it has no line."""
        place = self._places[index]
        if place is None:
            return None
        self._file.seek(place[0])
        data = self._file.read(place[1])
        self._file.seek(self._end)
        return _load(data)


def _dump(result: Result) -> bytes:
    if isinstance(result, WireResponse):
        return orjson.dumps([result.status, dict(result.headers), result.body.decode()])
    return orjson.dumps([result.failure.value, result.message, result.ambiguous])


def _load(data: bytes) -> Result:
    first, second, third = orjson.loads(data)
    if isinstance(first, int):
        return WireResponse(first, second, third.encode())
    return CallFailure(FailureClass(first), second, ambiguous=third)
