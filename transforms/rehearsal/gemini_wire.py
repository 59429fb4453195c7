"""Gemini's generateContent (v1beta, and on Vertex): what comes in, what goes back.

Source: the API reference of `models.generateContent`, the troubleshooting guide, and `google.rpc`'s
error details; the shapes are checked against the types of the official SDK in the tests.
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
    text_of_parts,
    tokens_of,
)
from transforms.rehearsal.draws import draw, token
from transforms.rehearsal.schema_rules import not_a_schema

OVERLOADED = 503  # this provider has no 529
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
_FAULT_MESSAGES = {
    429: "Resource has been exhausted (e.g. check quota). (rehearsal)",
    500: "An internal error has occurred. (rehearsal)",
    503: "The model is overloaded. Please try again later. (rehearsal)",
}
_FIELDS = frozenset(
    {
        "contents",
        "systemInstruction",
        "generationConfig",
        "safetySettings",
        "tools",
        "toolConfig",
        "labels",
        "serviceTier",
    }
)
_CONFIG_FIELDS = frozenset(
    {
        "stopSequences",
        "responseMimeType",
        "responseSchema",
        "responseJsonSchema",
        "responseModalities",
        "candidateCount",
        "maxOutputTokens",
        "temperature",
        "topP",
        "topK",
        "seed",
        "presencePenalty",
        "frequencyPenalty",
        "responseLogprobs",
        "logprobs",
        "thinkingConfig",
        "mediaResolution",
    }
)
_ANY_OBJECT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def error(status: int, message: str, key: bytes, details: list[dict[str, Any]] | None = None) -> HttpReply:
    """An error in Google's shape."""
    body: dict[str, Any] = {"code": status, "message": message, "status": _STATUSES[status]}
    if details:
        body["details"] = details
    return HttpReply(status, _headers(key), orjson.dumps({"error": body}))


def fault(status: int, retry_after: int | None, key: bytes) -> HttpReply:
    """A fault of the provider's own: 429, 500 or 503. How long to wait stands in the body alone."""
    details = None
    if retry_after is not None:
        kind = "type.googleapis.com/google.rpc.RetryInfo"
        details = [{"@type": kind, "retryDelay": f"{retry_after}s"}]
    return error(status, _FAULT_MESSAGES[status], key, details)


def read(request: HttpRequest, key: bytes) -> Ask:
    """What the request asks for; BadRequest where the provider would refuse it."""
    require_key(request, key)
    body = body_of(request, _FIELDS, key)
    config = body.get("generationConfig") or {}
    require_known(config, _CONFIG_FIELDS, key, " at 'generation_config'")
    prompt, characters = _contents(body, key)
    system = text_of_parts(body.get("systemInstruction") or {"parts": [{"text": ""}]})
    if system is None:
        refuse("Invalid value at 'system_instruction': the rehearsal reads text only", key)
    schema = _schema(config, key)
    schema_characters = len(orjson.dumps(schema)) if schema is not None else 0
    return Ask(
        model=model_in(request.path),
        prompt=prompt,
        input_tokens=tokens_of(characters + len(system) + schema_characters),
        max_output_tokens=_max_tokens(config, key),
        schema=schema,
    )


def reply(ask: Ask, answer: Answer, key: bytes) -> HttpReply:
    """The answer as a GenerateContentResponse."""
    usage = {"promptTokenCount": ask.input_tokens, "totalTokenCount": ask.input_tokens}
    body: dict[str, Any] = {"modelVersion": ask.model, "responseId": token(key, "id", 22)}
    if answer.finish == "refused" and draw(key, "block") & 1:
        body["promptFeedback"] = {"blockReason": "PROHIBITED_CONTENT"}
    elif answer.finish == "refused":
        body["candidates"] = [{"finishReason": "SAFETY", "index": 0}]
    else:
        content = {"role": "model", "parts": [{"text": answer.text}]}
        finish = "STOP" if answer.finish == "stop" else "MAX_TOKENS"
        body["candidates"] = [{"content": content, "finishReason": finish, "index": 0}]
        usage["candidatesTokenCount"] = answer.output_tokens
        usage["totalTokenCount"] += answer.output_tokens
    body["usageMetadata"] = usage
    return HttpReply(200, _headers(key), orjson.dumps(body), billed=True)


def _headers(key: bytes) -> tuple[tuple[str, str], ...]:
    return (("server-timing", "gfet4t7; dur=20"), ("x-rehearsal-id", token(key, "request", 16)))


def model_in(path: str) -> str:
    """The model that a path names: `.../models/MODEL:method`."""
    return unquote(path.rpartition("models/")[2]).partition(":")[0]


def require_key(request: HttpRequest, key: bytes) -> None:
    """BadRequest without a key or a token."""
    bearer = request.headers.get("authorization", "").removeprefix("Bearer").strip()
    if request.headers.get("x-goog-api-key") or bearer:
        return
    if "/projects/" in request.path:
        message = "Request is missing required authentication credential."
        raise BadRequest(error(401, message, key))
    raise BadRequest(
        error(403, "Method doesn't allow unregistered callers (callers without established identity).", key)
    )


def body_of(request: HttpRequest, fields: frozenset[str], key: bytes) -> dict[str, Any]:
    """The body as an object of these fields alone."""
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        refuse("Invalid JSON payload received. Expected an object.", key)
    require_known(body, fields, key)
    return body


def require_known(value: Any, fields: frozenset[str], key: bytes, where: str = "") -> None:
    """Google refuses fields that it does not know, where others ignore them."""
    if not isinstance(value, dict):
        refuse(f"Invalid value{where}: expected an object", key)
    for name in value.keys() - fields:
        refuse(f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.', key)


def refuse(message: str, key: bytes) -> NoReturn:
    """Raises BadRequest: INVALID_ARGUMENT."""
    raise BadRequest(error(400, message, key))


def _contents(body: dict[str, Any], key: bytes) -> tuple[str, int]:
    """The question, and the characters of all contents."""
    contents = body.get("contents")
    if not isinstance(contents, list) or not contents:
        refuse("* GenerateContentRequest.contents: contents is not specified", key)
    asked, characters = [], 0
    for index, content in enumerate(contents):
        role = content.get("role", "user") if isinstance(content, dict) else None
        if role not in ("user", "model"):
            refuse("Please use a valid role: user, model.", key)
        text = text_of_parts(content)
        if text is None:
            refuse(f"Invalid value at 'contents[{index}].parts': the rehearsal reads text only", key)
        characters += len(text)
        if role == "user":
            asked.append(text)
    return question_among(asked), characters


def _max_tokens(config: dict[str, Any], key: bytes) -> int | None:
    value = config.get("maxOutputTokens")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        refuse("Invalid value at 'generation_config.max_output_tokens'", key)
    return value


def _schema(config: dict[str, Any], key: bytes) -> dict[str, Any] | None:
    kind = config.get("responseMimeType", "text/plain")
    given = config.get("responseJsonSchema")
    if given is None and config.get("responseSchema") is not None:
        given = _as_json_schema(config["responseSchema"])
    if given is None:
        return _ANY_OBJECT if kind == "application/json" else None
    if kind != "application/json":
        refuse("Function calling or a response schema needs response mime type 'application/json'", key)
    if not isinstance(given, dict):
        refuse("Invalid value at 'generation_config.response_json_schema'", key)
    problem = not_a_schema(given)
    if problem:
        refuse(f"Invalid value at 'generation_config.response_json_schema': {problem}", key)
    return given


def _as_json_schema(schema: Any) -> Any:
    """Google's own Schema (types in capitals, `nullable`) as JSON Schema."""
    if not isinstance(schema, dict):
        return schema
    result = {name: value for name, value in schema.items() if name not in ("nullable", "propertyOrdering")}
    if isinstance(result.get("type"), str):
        kind = result["type"].lower()
        result["type"] = [kind, "null"] if schema.get("nullable") else kind
    if isinstance(result.get("properties"), dict):
        result["properties"] = {n: _as_json_schema(part) for n, part in result["properties"].items()}
    if "items" in result:
        result["items"] = _as_json_schema(result["items"])
    if isinstance(result.get("anyOf"), list):
        result["anyOf"] = [_as_json_schema(part) for part in result["anyOf"]]
    return result
