"""OpenAI's chat completions: what comes in, what goes back.

Source: the API reference of Chat completions, Error codes, Rate limits and Structured model
outputs; the shapes are checked against the types of the official SDK in the tests.
"""

from __future__ import annotations

from typing import Any, NoReturn

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
from transforms.rehearsal.draws import draw, token
from transforms.rehearsal.schema_rules import not_a_schema, open_object, optional_property

PATH = "/v1/chat/completions"
_FINISH_REASONS = {"stop": "stop", "length": "length", "refused": "content_filter"}
_EPOCH = 1_767_225_600  # 2026-01-01; `created` has to be the same for the same request
_YEAR_S = 31_536_000
_LIMITS = (
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-limit-tokens", "2000000"),
    ("x-ratelimit-remaining-requests", "9999"),
    ("x-ratelimit-remaining-tokens", "1999000"),
    ("x-ratelimit-reset-requests", "6ms"),
    ("x-ratelimit-reset-tokens", "30ms"),
)
_FAULTS = {
    429: (
        "Rate limit reached for requests. Please try again later. (rehearsal)",
        "requests",
        "rate_limit_exceeded",
    ),
    500: ("The server had an error while processing your request. (rehearsal)", "server_error", None),
    503: (
        "The engine is currently overloaded, please try again later. (rehearsal)",
        "service_unavailable_error",
        "server_is_overloaded",
    ),
}
_ROLES = ("developer", "system", "user", "assistant", "tool")
OVERLOADED = 503  # this provider has no 529


def error(
    status: int,
    message: str,
    key: bytes,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    extra: tuple[tuple[str, str], ...] = (),
) -> HttpReply:
    """An error in the provider's shape; `extra` headers come on top of the usual ones."""
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return HttpReply(status, (("x-request-id", _request_id(key)), *extra), orjson.dumps(body))


def fault(status: int, retry_after: int | None, key: bytes) -> HttpReply:
    """A fault of the provider's own: 429, 500 or 503."""
    message, kind, code = _FAULTS[status]
    extra: tuple[tuple[str, str], ...] = ()
    if retry_after is not None:
        extra = (("retry-after", str(retry_after)), ("retry-after-ms", str(1000 * retry_after)), *_LIMITS)
    return error(status, message, key, kind=kind, code=code, extra=extra)


def read(request: HttpRequest, key: bytes) -> Ask:
    """What the request asks for; BadRequest where the provider would refuse it."""
    body = key_and_body(request, key)
    prompt, characters = _messages(body, key)
    schema = _schema(body, key)
    schema_characters = len(orjson.dumps(schema)) if schema is not None else 0
    return Ask(
        model=body["model"],
        prompt=prompt,
        input_tokens=tokens_of(characters + schema_characters),
        max_output_tokens=_max_tokens(body, key),
        schema=schema,
    )


def key_and_body(request: HttpRequest, key: bytes) -> dict[str, Any]:
    """The request's body; BadRequest without a key, a model, or JSON."""
    if not request.headers.get("authorization", "").removeprefix("Bearer").strip():
        message = (
            "You didn't provide an API key. You need to provide your API key in an Authorization header."
        )
        raise BadRequest(error(401, message, key))
    return _body(request, key)


def reply(ask: Ask, answer: Answer, key: bytes) -> HttpReply:
    """The answer as a chat completion."""
    refused = answer.finish == "refused"
    by_the_model = refused and ask.schema is not None  # structured outputs have a field for it
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if refused else answer.text,
        "refusal": answer.text if by_the_model else None,
        "annotations": [],
    }
    body = {
        "id": f"chatcmpl-{token(key, 'id', 29)}",
        "object": "chat.completion",
        "created": _EPOCH + draw(key, "created") % _YEAR_S,
        "model": ask.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": "stop" if by_the_model else _FINISH_REASONS[answer.finish],
            }
        ],
        "usage": _usage(ask, answer),
        "service_tier": "default",
        "system_fingerprint": f"fp_{token(key, 'fingerprint', 10)}",
    }
    return HttpReply(200, answer_headers(key), orjson.dumps(body), billed=True)


def answer_headers(key: bytes) -> tuple[tuple[str, str], ...]:
    """What stands above an answer."""
    return (
        ("x-request-id", _request_id(key)),
        ("openai-version", "2020-10-01"),
        ("openai-processing-ms", "20"),
        *_LIMITS,
    )


def _usage(ask: Ask, answer: Answer) -> dict[str, Any]:
    return {
        "prompt_tokens": ask.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": ask.input_tokens + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _body(request: HttpRequest, key: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        refuse("We could not parse the JSON body of your request. The API expects a JSON object.", key)
    if not isinstance(body.get("model"), str) or not body["model"]:
        refuse("you must provide a model parameter", key)
    if body.get("stream"):
        refuse("the rehearsal gives whole answers only", key, "stream", "unsupported_value")
    return body


def _messages(body: dict[str, Any], key: bytes) -> tuple[str, int]:
    """The question, and the characters of all messages."""
    messages = body.get("messages")
    if messages is None:
        refuse("Missing required parameter: 'messages'.", key, "messages", "missing_required_parameter")
    if not isinstance(messages, list) or not messages:
        problem = "Invalid 'messages': empty array. Expected an array with minimum length 1."
        refuse(problem, key, "messages", "empty_array")
    asked, characters = [], 0
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            supported = ", ".join(f"'{role}'" for role in _ROLES)
            refuse(
                f"Invalid value. Supported values are: {supported}.", key, f"{where}.role", "invalid_value"
            )
        text = text_of(message.get("content"))
        if text is None:
            refuse("the rehearsal reads text only", key, f"{where}.content", "invalid_type")
        characters += len(text)
        if message["role"] == "user":
            asked.append(text)
    return question_among(asked), characters


def _max_tokens(body: dict[str, Any], key: bytes) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            refuse(f"Invalid '{name}': expected an integer >= 1.", key, name, "integer_below_min_value")
        return value
    return None


def _schema(body: dict[str, Any], key: bytes) -> dict[str, Any] | None:
    wanted = body.get("response_format") or {"type": "text"}
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    if kind != "json_schema":
        message = "Supported values are: 'json_object', 'json_schema', and 'text'."
        refuse(message, key, "response_format.type", "invalid_value")
    described = wanted.get("json_schema")
    if not isinstance(described, dict) or not isinstance(described.get("name"), str):
        where = "response_format.json_schema.name"
        refuse(f"Missing required parameter: '{where}'.", key, where, "missing_required_parameter")
    schema = described.get("schema", {"type": "object"})
    if not isinstance(schema, dict):
        where = "response_format.json_schema.schema"
        refuse(f"Invalid type for '{where}': expected an object.", key, where, "invalid_type")
    problem = not_a_schema(schema) or (_strict_problem(schema) if described.get("strict") else "")
    if problem:
        refuse(f"Invalid schema for response_format '{described['name']}': {problem}", key, "response_format")
    return schema


def _strict_problem(schema: dict[str, Any]) -> str:
    """What strict mode has against a schema, in the provider's words; empty when nothing."""
    if schema.get("type") != "object":
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{schema.get('type')}\"'."
    where = open_object(schema)
    if where is not None:
        return f"In context={where}, 'additionalProperties' is required to be supplied and to be false."
    missing = optional_property(schema)
    if missing is not None:
        return (
            f"In context={missing[0]}, 'required' is required to be supplied and to be an array including "
            f"every key in properties. Missing '{missing[1]}'."
        )
    return ""


def refuse(message: str, key: bytes, param: str | None = None, code: str | None = None) -> NoReturn:
    """Raises BadRequest in the provider's shape."""
    raise BadRequest(error(400, message, key, param=param, code=code))


def _request_id(key: bytes) -> str:
    return f"req_{token(key, 'request', 32)}"
