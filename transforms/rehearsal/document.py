"""The document inside a prompt, and words of it to answer with."""

from __future__ import annotations

import re

_OPEN, _CLOSE = "<document>", "</document>"
_HEAD_CHARACTERS = 4000
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_MARKUP = (
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), " "),  # images, badges among them
    (re.compile(r"\[([^\]]*)\]\([^)]*\)"), r"\1"),  # links keep their text
    (re.compile(r"</?[a-zA-Z][^<>]{0,200}>|<!--.*?-->", re.DOTALL), " "),
    (re.compile(r"^\s*(\.\. .*|:\w[\w-]*:.*|[=\-~^*#`+_]{3,})$", re.MULTILINE), " "),  # directives, rules
    (re.compile(r"^\s*#+\s+", re.MULTILINE), ""),
)


def document_in(prompt: str) -> str:
    """The part of a prompt that looks like the document.

    What stands between `<document>` and `</document>`; without them what follows the first blank
    line; without one the whole prompt.
    """
    start = prompt.find(_OPEN)
    if start >= 0:
        end = prompt.rfind(_CLOSE)
        return prompt[start + len(_OPEN) : end if end > start else None].strip()
    _, blank, rest = prompt.partition("\n\n")
    return (rest if blank and rest.strip() else prompt).strip()


def words_of(document: str) -> list[str]:
    """Its first words without markup; at least one, so that there is always something to say."""
    text = document[:_HEAD_CHARACTERS]
    for pattern, instead in _MARKUP:
        text = pattern.sub(instead, text)
    return text.split() or document[:_HEAD_CHARACTERS].split() or ["nothing"]


def opening(words: list[str], limit: int) -> str:
    """The first sentence, or as many whole words as `limit` characters hold."""
    text = " ".join(words)
    end = _SENTENCE_END.search(text)
    if end is not None and end.end() <= limit:
        return text[: end.end()]
    if len(text) <= limit:
        return text
    cut = text.rfind(" ", 0, limit + 1)
    return text[: cut if cut > 0 else limit]
