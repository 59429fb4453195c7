"""Requests as the two providers' clients send them, for the rehearsal's tests."""

import orjson

from schemas.rehearsal import Faults, Rehearsal
from transforms.rehearsal.asks import HttpRequest
from transforms.rehearsal.draws import request_key
from transforms.rehearsal.replies import reply_to

SCHEMA = {
    "type": "object",
    "properties": {
        "topic": {"type": "string", "enum": ["data", "web"]},
        "summary": {"type": "string"},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["topic", "summary", "score", "tags"],
    "additionalProperties": False,
}
DOCUMENT = "Frames hold data in columns. They can be joined on a key."
PROMPT = f"Classify this.\n\n<document>\n{DOCUMENT}\n</document>"
PATHS = {"anthropic": "/v1/messages", "openai": "/v1/chat/completions"}
HEADERS = {
    "anthropic": {"x-api-key": "k", "anthropic-version": "2023-06-01"},
    "openai": {"authorization": "Bearer k"},
}
PROVIDERS = ("anthropic", "openai")
CALM = Rehearsal(latency_ms=(0, 0))


def faulty(**shares: float) -> Rehearsal:
    """Settings with these shares of faults and no latency."""
    return Rehearsal(latency_ms=(0, 0), faults=Faults(**shares))


def body(provider: str, prompt: str = PROMPT, schema: dict | None = None, **more: object) -> dict:
    """The JSON of a request; `more` replaces keys, and drops those that are None."""
    messages = [{"role": "user", "content": prompt}]
    result: dict = {"messages": messages}
    if provider == "anthropic":
        result |= {"model": "claude-haiku-5-5", "max_tokens": 500, "system": "You classify."}
        if schema is not None:
            result["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    else:
        result |= {"model": "gpt-6-luna", "max_completion_tokens": 500}
        if schema is not None:
            described = {"name": "answer", "strict": True, "schema": schema}
            result["response_format"] = {"type": "json_schema", "json_schema": described}
    result |= more
    return {name: value for name, value in result.items() if value is not None}


def request(
    provider: str, content: object = None, headers: dict | None = None, **more: object
) -> HttpRequest:
    """A request of a provider; `content` is its JSON or raw bytes, else `body(provider, **more)`."""
    content = body(provider, **more) if content is None else content
    raw = content if isinstance(content, bytes) else orjson.dumps(content)
    return HttpRequest("POST", PATHS[provider], HEADERS[provider] if headers is None else headers, raw)


def ask(asked: HttpRequest, settings: Rehearsal = CALM, nth: int = 0):
    """The reply to a request, and its JSON (None where the body isn't)."""
    reply = reply_to(asked, settings, request_key(settings.seed, asked.path, asked.body), nth)
    return reply, orjson.loads(reply.body) if reply.body else None


def text_of(provider: str, answer: dict) -> str:
    """The text of an answer."""
    if provider == "anthropic":
        return "".join(part.get("text", "") for part in answer["content"])
    return answer["choices"][0]["message"]["content"] or ""


def usage_of(provider: str, answer: dict) -> tuple[int, int]:
    """Input and output tokens of an answer."""
    names = (
        ("input_tokens", "output_tokens")
        if provider == "anthropic"
        else ("prompt_tokens", "completion_tokens")
    )
    return answer["usage"][names[0]], answer["usage"][names[1]]


def finish_of(provider: str, answer: dict) -> str:
    """Why the answer ended, as the provider says it."""
    return answer["stop_reason"] if provider == "anthropic" else answer["choices"][0]["finish_reason"]
