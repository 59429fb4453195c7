"""Anthropic's Messages API, version 2023-06-01: what comes in, what goes back.

Source: the API reference of Messages, Errors, Rate limits and Structured outputs; the shapes are
checked against the types of the official SDK in the tests.
"""

from __future__ import annotations

from typing import Any, NoReturn
from urllib.parse import unquote

import orjson

from transforms.rehearsal.asks import (
    Answer,
    Ask,
    BadRequest,
    HttpReply,
    HttpRequest,
    question_among,
    text_of,
    tokens_of,
)
from transforms.rehearsal.draws import token
from transforms.rehearsal.schema_rules import not_a_schema, open_object

PATH = "/v1/messages"
_VERTEX_VERSIONS = ("vertex-2023-10-16", "2026-10-21")
_LEAST_CACHED_TOKENS = 1024
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "refused": "refusal"}
_LIMITS = (
    ("anthropic-ratelimit-requests-limit", "4000"),
    ("anthropic-ratelimit-requests-remaining", "3999"),
    ("anthropic-ratelimit-requests-reset", "2026-01-01T00:00:01Z"),
    ("anthropic-ratelimit-input-tokens-limit", "2000000"),
    ("anthropic-ratelimit-input-tokens-remaining", "1999000"),
    ("anthropic-ratelimit-input-tokens-reset", "2026-01-01T00:00:01Z"),
    ("anthropic-ratelimit-output-tokens-limit", "400000"),
    ("anthropic-ratelimit-output-tokens-remaining", "399000"),
    ("anthropic-ratelimit-output-tokens-reset", "2026-01-01T00:00:01Z"),
)
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
_FAULT_MESSAGES = {
    429: "This request would exceed your organization's rate limit. (rehearsal)",
    500: "Internal server error (rehearsal)",
    529: "Overloaded (rehearsal)",
}
OVERLOADED = 529


def error(status: int, message: str, key: bytes, extra: tuple[tuple[str, str], ...] = ()) -> HttpReply:
    """An error in the provider's shape; `extra` headers come on top of the usual ones."""
    request_id = _request_id(key)
    body = {
        "type": "error",
        "error": {"type": _ERRORS[status], "message": message},
        "request_id": request_id,
    }
    return HttpReply(status, (("request-id", request_id), *extra), orjson.dumps(body))


def fault(status: int, retry_after: int | None, key: bytes) -> HttpReply:
    """A fault of the provider's own: 429, 500 or 529."""
    extra = () if retry_after is None else (("retry-after", str(retry_after)), *_LIMITS)
    return error(status, _FAULT_MESSAGES[status], key, extra)


def read(request: HttpRequest, key: bytes) -> Ask:
    """What the request asks for; BadRequest where the provider would refuse it."""
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if not request.headers.get("x-api-key") and not bearer:
        raise BadRequest(error(401, "x-api-key header is required", key))
    if "anthropic-version" not in request.headers:
        raise BadRequest(error(400, "anthropic-version: header is required", key))
    body = _body(request, key)
    prompt, characters = _messages(body, key)
    system = text_of(body.get("system", ""))
    if system is None:
        _refuse("system: Input should be a valid string or list of text blocks", key)
    schema, tool = _schema(body, key)
    problem = not_a_schema(schema) if schema is not None else ""
    if problem:
        _refuse(f"{'tools' if tool else 'output_config.format.schema'}: Invalid schema: {problem}", key)
    schema_characters = len(orjson.dumps(schema)) if schema is not None else 0
    return Ask(
        model=body["model"],
        prompt=prompt,
        input_tokens=tokens_of(characters + len(system) + schema_characters),
        max_output_tokens=body["max_tokens"],
        schema=schema,
        tool=tool,
        cached_tokens=_cached_tokens(body, len(system)),
    )


def _cached_tokens(body: dict[str, Any], system_characters: int) -> int:
    """Tokens up to the last mark, when they are as many as a model caches; as if the entry were there.

    A stand-in without memory gives the same answer to the same request; the one write for the many
    reads is left out.
    """
    characters = system_characters if _marked(body.get("system")) else 0
    content = body["messages"][0].get("content")
    blocks = _marked(content)
    if blocks:
        characters = system_characters + len(text_of(content[:blocks]) or "")
    tokens = tokens_of(characters)
    return tokens if tokens >= _LEAST_CACHED_TOKENS else 0


def _marked(content: Any) -> int:
    """How many blocks stand up to the last one with a mark; 0 without any."""
    blocks = content if isinstance(content, list) else []
    marks = [i for i, block in enumerate(blocks, 1) if isinstance(block, dict) and block.get("cache_control")]
    return max(marks, default=0)


def from_vertex(request: HttpRequest, key: bytes) -> HttpRequest:
    """A `rawPredict` of Vertex as the direct request that it stands for."""
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError as problem:
        raise BadRequest(error(400, f"The request body is not valid JSON: {problem}", key)) from None
    if not isinstance(body, dict) or body.pop("anthropic_version", None) not in _VERTEX_VERSIONS:
        _refuse(f"anthropic_version: Input should be '{_VERTEX_VERSIONS[0]}'", key)
    if "model" in body:
        _refuse("model: Extra inputs are not permitted", key)
    body["model"] = unquote(request.path.rpartition("/models/")[2]).partition(":")[0]
    headers = {name: value for name, value in request.headers.items() if name != "x-api-key"}
    return HttpRequest(
        request.method, PATH, {**headers, "anthropic-version": "2023-06-01"}, orjson.dumps(body)
    )


def reply(ask: Ask, answer: Answer, key: bytes) -> HttpReply:
    """The answer as a message."""
    body = {
        "id": f"msg_{token(key, 'id', 24)}",
        "type": "message",
        "role": "assistant",
        "model": ask.model,
        "content": _content(ask, answer, key),
        "stop_reason": "tool_use" if ask.tool and answer.finish == "stop" else _STOP_REASONS[answer.finish],
        "stop_sequence": None,
        "usage": {
            "input_tokens": ask.input_tokens - ask.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": ask.cached_tokens,
            "output_tokens": answer.output_tokens,
            "service_tier": "standard",
        },
    }
    headers = (("request-id", _request_id(key)), *_LIMITS)
    return HttpReply(200, headers, orjson.dumps(body), billed=True)


def _content(ask: Ask, answer: Answer, key: bytes) -> list[dict[str, Any]]:
    if answer.finish == "refused":
        return []
    if ask.tool:
        return [
            {
                "type": "tool_use",
                "id": f"toolu_{token(key, 'tool', 24)}",
                "name": ask.tool,
                "input": answer.value,
            }
        ]
    return [{"type": "text", "text": answer.text}]


def _body(request: HttpRequest, key: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError as problem:
        raise BadRequest(error(400, f"The request body is not valid JSON: {problem}", key)) from None
    if not isinstance(body, dict):
        _refuse("Input should be a valid dictionary", key)
    for name, kind in (("model", str), ("max_tokens", int), ("messages", list)):
        if name not in body:
            _refuse(f"{name}: Field required", key)
        if not isinstance(body[name], kind) or isinstance(body[name], bool):
            _refuse(f"{name}: Input should be a valid {kind.__name__}", key)
    if body["max_tokens"] < 1:
        _refuse("max_tokens: Input should be greater than or equal to 1", key)
    if body.get("stream"):
        _refuse("stream: the rehearsal gives whole answers only", key)
    return body


def _messages(body: dict[str, Any], key: bytes) -> tuple[str, int]:
    """The question, and the characters of all messages."""
    if not body["messages"]:
        _refuse("messages: at least one message is required", key)
    asked, characters = [], 0
    for index, message in enumerate(body["messages"]):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            _refuse(f"messages.{index}.role: Input should be 'user' or 'assistant'", key)
        text = text_of(message.get("content"))
        if text is None:
            _refuse(f"messages.{index}.content: the rehearsal reads text only", key)
        if not text.strip():
            _refuse(f"messages.{index}: text content blocks must contain non-whitespace text", key)
        characters += len(text)
        if message["role"] == "user":
            asked.append(text)
    return question_among(asked), characters


def _schema(body: dict[str, Any], key: bytes) -> tuple[dict[str, Any] | None, str]:
    """The JSON Schema of the answer and the name of the tool that it is the input of."""
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") in ("tool", "any"):
        return _tool(body.get("tools"), None if choice["type"] == "any" else choice.get("name"), key)
    config = body.get("output_config") or {}
    wanted = (config.get("format") if isinstance(config, dict) else config) or body.get("output_format")
    if wanted is None:
        return None, ""
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        _refuse("output_config.format.type: Input should be 'json_schema'", key)
    schema = wanted.get("schema")
    if not isinstance(schema, dict):
        _refuse("output_config.format.schema: Field required", key)
    if open_object(schema) is not None:
        _refuse(
            "output_config.format.schema: For 'object' type, 'additionalProperties' must be explicitly "
            "set to false",
            key,
        )
    return schema, ""


def _tool(tools: Any, wanted: Any, key: bytes) -> tuple[dict[str, Any], str]:
    """Input schema and name of the tool that is wanted; of the first when any will do (None)."""
    for tool in tools if isinstance(tools, list) else ():
        name = tool.get("name") if isinstance(tool, dict) else None
        if isinstance(name, str) and wanted in (None, name):
            schema = tool.get("input_schema")
            return (schema, name) if isinstance(schema, dict) else ({"type": "object"}, name)
    _refuse(f"Tool '{wanted}' not found in provided tools", key)


def _refuse(message: str, key: bytes) -> NoReturn:
    raise BadRequest(error(400, message, key))


def _request_id(key: bytes) -> str:
    return f"req_{token(key, 'request', 24)}"
