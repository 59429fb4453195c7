"""From a request to its reply, without a socket: the same request gets the same reply."""

from __future__ import annotations

import re
from types import ModuleType
from urllib.parse import unquote

from schemas.rehearsal import Rehearsal
from transforms.rehearsal import (
    anthropic_wire,
    gemini_embeddings_wire,
    gemini_wire,
    openai_embeddings_wire,
    openai_wire,
)
from transforms.rehearsal.answers import answer_to
from transforms.rehearsal.asks import BadRequest, HttpReply, HttpRequest
from transforms.rehearsal.draws import fraction
from transforms.rehearsal.faults import Fault, fault_of
from transforms.rehearsal.scalars import UnsupportedSchemaError

RETRY_AFTER_S = 1
_WIRES: dict[str, ModuleType] = {
    anthropic_wire.PATH: anthropic_wire,
    openai_wire.PATH: openai_wire,
    openai_embeddings_wire.PATH: openai_embeddings_wire,
}
_VERTEX = r"/v1(?:beta1)?/projects/[^/]+/locations/[^/]+/publishers"
_BY_METHOD = (
    (re.compile(rf"{_VERTEX}/anthropic/models/[^/:]+:rawPredict"), anthropic_wire),
    (re.compile(rf"(?:/v1(?:beta)?|{_VERTEX}/google)/models/[^/:]+:generateContent"), gemini_wire),
    (re.compile(r"/v1(?:beta)?/models/[^/:]+:embedContent"), gemini_embeddings_wire),
)
_HANG = HttpReply(0, (), b"", ending="hang")
_RESET = HttpReply(0, (), b"", ending="reset")


def reply_to(request: HttpRequest, settings: Rehearsal, key: bytes, nth: int) -> HttpReply:
    """The reply to a request that is seen for the `nth` time, counted from 0.

    `key` is `draws.request_key` of the settings' seed and the request.
    """
    wire = _wire_of(request.path)
    if wire is None or request.method != "POST":
        return _unknown(request, key, known=wire is not None)
    try:
        if wire is anthropic_wire and request.path != anthropic_wire.PATH:
            request = anthropic_wire.from_vertex(request, key)
        ask = wire.read(request, key)
        fault = fault_of(settings.faults, key, nth)
        early = _instead_of_an_answer(wire, fault, key)
        if early is not None:
            return early
        reply: HttpReply = wire.reply(ask, answer_to(ask, key, fault), key)
    except BadRequest as bad:
        return bad.reply
    except UnsupportedSchemaError as problem:
        refused: HttpReply = wire.error(
            400, f"the rehearsal can't answer by this JSON Schema: {problem}", key
        )
        return refused
    if fault == "truncated_body":
        return HttpReply(reply.status, reply.headers, reply.body, reply.billed, "truncated")
    return reply


def _wire_of(path: str) -> ModuleType | None:
    known = _WIRES.get(path)
    if known is not None:
        return known
    plain = unquote(path)
    return next((wire for pattern, wire in _BY_METHOD if pattern.fullmatch(plain)), None)


def latency_s(settings: Rehearsal, key: bytes) -> float:
    """Seconds until the reply goes out."""
    least, most = sorted(settings.latency_ms)
    return (least + fraction(key, "latency") * (most - least)) / 1000


def _instead_of_an_answer(wire: ModuleType, fault: Fault | None, key: bytes) -> HttpReply | None:
    if fault == "hang":
        return _HANG
    if fault == "connection_reset":
        return _RESET
    if fault == "rate_limited":
        limited: HttpReply = wire.fault(429, RETRY_AFTER_S, key)
        return limited
    if fault in ("server_error", "overloaded"):
        failed: HttpReply = wire.fault(500 if fault == "server_error" else wire.OVERLOADED, None, key)
        return failed
    return None


def _unknown(request: HttpRequest, key: bytes, *, known: bool) -> HttpReply:
    """404, or 405 for another method, in the shape of the provider that the headers speak of."""
    status = 405 if known else 404
    if "anthropic-version" in request.headers or request.path == anthropic_wire.PATH:
        return anthropic_wire.error(status, "Method Not Allowed" if known else "Not Found", key)
    if "x-goog-api-key" in request.headers or "/models/" in request.path:
        return gemini_wire.error(status, f"Not found: {request.method} {request.path}", key)
    return openai_wire.error(status, f"Invalid URL ({request.method} {request.path})", key)
