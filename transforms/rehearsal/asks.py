"""What a request asks for and what it gets, in words that both wire formats share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

CHARACTERS_PER_TOKEN = 4  # the rule of thumb of both vendors' documentation for English text
Finish = Literal["stop", "length", "refused"]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request as it came in; header names are in lower case, the path has no query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What goes back, and how it ends.

    `ending`: `whole`; `reset` (the connection is reset instead of an answer); `hang` (nothing is
    ever sent); `truncated` (half of the announced body, then the connection closes). `billed` says
    whether a provider would charge for it.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    billed: bool = False
    ending: Literal["whole", "reset", "hang", "truncated"] = "whole"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that was understood.

    `schema` is the JSON Schema that the answer has to fit, or None for plain text; `tool` the name
    of the tool whose input the answer is, or empty. `input_tokens` counts prompt, system text and
    schema, `cached_tokens` those of them that are marked to be cached. `texts`, `dimensions` and
    `encoding` are what is to be embedded, and how.
    """

    model: str
    prompt: str
    input_tokens: int
    max_output_tokens: int | None
    schema: dict[str, Any] | None = None
    tool: str = ""
    cached_tokens: int = 0
    texts: tuple[str, ...] = ()
    dimensions: int | None = None
    encoding: str = "float"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model that isn't there says. `value` is the parsed form when a schema was asked for."""

    text: str
    finish: Finish
    output_tokens: int
    value: Any = None


class BadRequest(Exception):  # noqa: N818 - it is an HTTP status, not a fault of ours
    """The request is one that the provider would refuse; carries the reply."""

    def __init__(self, reply: HttpReply) -> None:
        self.reply = reply
        super().__init__(f"HTTP {reply.status}")


def tokens_of(characters: int) -> int:
    """About how many tokens so many characters are; at least one."""
    return max(1, -(-characters // CHARACTERS_PER_TOKEN))


def question_among(asked: list[str]) -> str:
    """Which of the user's messages is the question: the last one with a document in it, else the last.

    In a conversation that asks for a better answer the document stands in an earlier one.
    """
    with_document = [text for text in asked if "<document>" in text]
    return (with_document or asked or [""])[-1]


def text_of_parts(content: Any) -> str | None:
    """The text of a Gemini content; None for anything else."""
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list) or not parts:
        return None
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "".join(texts) if len(texts) == len(parts) else None


def text_of(content: Any) -> str | None:
    """The text of a message's content (a string, or a list of text blocks); None for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return "".join(texts) if len(texts) == len(content) else None
