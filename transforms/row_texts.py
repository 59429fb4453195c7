"""What an error says about a row, without what stands in the row: messages travel further than documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_PREFIX = 8
"""Characters of a value by which it is known again: those who quote a long one cut it off."""


def repeats(message: str, row: Any) -> bool:
    """Whether a message has a text of a row in it, or how one begins; rows may be nested."""
    return any(text[:_PREFIX] in message for text in _texts(row))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
