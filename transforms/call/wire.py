"""What goes over the wire and what came back, and what a codec is. Values and pure functions only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol
from urllib.parse import quote

import orjson

from schemas.backends import HostedBackend
from schemas.errors import ConfigurationError
from schemas.failures import FailureClass
from schemas.ids import sha256_hex
from schemas.outcomes import ZERO, Usage
from transforms.call.request import CallRequest

Auth = Literal["x-api-key", "x-goog-api-key", "bearer"]
# In lower case; what codecs read and the ledger keeps of a response.
KEPT_HEADERS = ("request-id", "x-request-id", "retry-after", "retry-after-ms", "date", "content-type")
MOST_TOKENS = 1 << 40  # far beyond any model; a larger count is no count
JSON_HEADERS = {"content-type": "application/json", "accept": "application/json"}


@dataclass(frozen=True, slots=True)
class WireRequest:
    """An HTTP request without its key: `auth` says in which header the transport puts it."""

    url: str
    headers: Mapping[str, str]
    auth: Auth
    body: bytes
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class WireResponse:
    """An HTTP response that arrived whole. Header names are looked up in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The provider answered and bills it. `failure` says why the answer is no result, if it is none."""

    text: str | None
    usage: Usage
    response_model: str | None = None
    response_id: str | None = None
    finish_reasons: tuple[str, ...] = ()
    price_context: tuple[tuple[str, str], ...] = ()  # service tier, speed: they decide the price
    output: dict[str, Any] | None = None
    failure: FailureClass | None = None
    message: str = ""
    vector: bytes | None = None  # of embeddings: little-endian float32


@dataclass(frozen=True, slots=True)
class CallFailure:
    """There is no answer. `ambiguous`: the call may have been billed all the same.

    `sent` is False when nothing left this process, so that there is nothing in the ledger either.
    `final` forbids another try whatever the class says. `refused_by` names the cap that said no, and
    `refused_need` what it was asked for.
    """

    failure: FailureClass
    message: str
    retry_after_s: float | None = None
    ambiguous: bool = False
    sent: bool = True
    final: bool = False
    refused_by: str = ""
    refused_need: Decimal = ZERO


class Codec(Protocol):
    """One provider's wire format. Pure: no clock, no network, no key.

    `version` is part of every request's digest: raise it when the same request would mean something
    else to the provider, and recorded answers are no longer replayed for it. `marked` adds what tells
    the provider to cache a part of the request; it changes no answer and is no part of the digest.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def default_base_url(self) -> str: ...
    @property
    def own_keys(self) -> frozenset[str]: ...

    def body(self, backend: HostedBackend, request: CallRequest) -> dict[str, Any]: ...
    def marked(
        self, backend: HostedBackend, request: CallRequest, body: dict[str, Any]
    ) -> dict[str, Any]: ...
    def path(self, backend: HostedBackend) -> str: ...
    def headers(self) -> Mapping[str, str]: ...
    def auth(self) -> Auth: ...
    def decode(self, response: WireResponse) -> Answer | CallFailure: ...


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """A request as it is sent, and the digest under which the ledger knows it."""

    wire: WireRequest
    sha256: str


def encode(
    codec: Codec, backend: HostedBackend, request: CallRequest, base_url: str, mode: str
) -> EncodedRequest:
    """The request in the provider's wire format.

    Its digest covers the canonical body (keys sorted), the model where it stands in the path instead,
    provider, codec version and `mode` (`live` or `rehearsal`), and no address: the same question to a
    moved server is the same request.

    Raises:
        ValueError: a text holds what JSON can't carry (a lone surrogate).
    """
    body = codec.body(backend, request)
    asked: dict[str, Any] = {"provider": codec.name, "codec": codec.version, "mode": mode, "body": body}
    if "model" not in body:
        asked["model"] = backend.model
    try:
        wire_body = orjson.dumps(codec.marked(backend, request, body))
        canonical = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise ValueError(f"the request can't be written as JSON: {error}") from None
    wire = WireRequest(
        url=base_url + codec.path(backend), headers=codec.headers(), auth=codec.auth(), body=wire_body
    )
    return EncodedRequest(wire, sha256_hex(canonical))


def merged_parameters(codec: Codec, backend: HostedBackend, own: dict[str, Any]) -> dict[str, Any]:
    """`own` body with the backend's further parameters; they never replace a key of ours.

    Raises:
        ConfigurationError: a parameter is one of the keys that Switchgear sets itself.
    """
    if not backend.parameters:
        return own
    clash = sorted((codec.own_keys | own.keys()) & backend.parameters.keys())
    if clash:
        raise ConfigurationError(
            f"parameters.{clash[0]} of the {codec.name} backend for {backend.model!r}: Switchgear sets this "
            f"key itself (max_output_tokens is the backend's own setting, the answer's format comes from "
            f"the prompt's json_schema, and answers are neither streamed nor multiplied): remove it"
        )
    return {**own, **backend.parameters}


def quoted_model(model: str) -> str:
    """A model's resource name (`models/NAME`, or what the workload gives with a slash) for a path."""
    return quote(model if "/" in model else f"models/{model}", safe="/@")


def parse_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in `body`, or None when it is something else."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def count(value: Any) -> int | None:
    """A token count: a whole number from 0 to MOST_TOKENS, else None (not reported)."""
    plausible = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
    return value if plausible else None


def text_or_none(value: Any) -> str | None:
    """`value` when it is a string."""
    return value if isinstance(value, str) else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the provider asks to wait: `retry-after-ms`, or `retry-after` as number or date.

    A date is measured against the response's own `date`, so that no clock is needed.
    """
    milliseconds = seconds_or_none(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = seconds_or_none(value)
    if seconds is not None or value is None:
        return seconds
    try:
        due, now = parsedate_to_datetime(value), parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, (due - now).total_seconds())
    except (TypeError, ValueError):
        return None


def seconds_or_none(value: str | None) -> float | None:
    """A time in a text: a finite number from 0, else None."""
    try:
        number = float(value) if value else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < float("inf") else None


def unsent(failure: FailureClass, message: str) -> CallFailure:
    """What is said of a document for which nothing is sent, and which is not tried again in this attempt."""
    return CallFailure(failure, message, sent=False, final=True)


def malformed(provider: str, status: int, why: str) -> CallFailure:
    """A response that is not what the API promises, without a bill in it: it may have been billed."""
    return CallFailure(
        FailureClass.MALFORMED_RESPONSE,
        f"{provider} answered HTTP {status}, but {why}; the call may have been billed",
        ambiguous=True,
    )
