"""Numbers and strings that keep to the bounds of a JSON Schema."""

from __future__ import annotations

import math
from typing import Any

from transforms.rehearsal.document import opening
from transforms.rehearsal.draws import draw, fraction

_USUAL_SPAN = 100
_USUAL_CHARACTERS = 160
_PHRASE_CHARACTERS = 40
_TRIES = 32
_WHOLE_SENTENCE = frozenset(
    {"summary", "description", "explanation", "reason", "rationale", "text", "answer", "abstract"}
)
_FORMATS = {
    "date-time": "2026-01-31T12:00:00Z",
    "date": "2026-01-31",
    "time": "12:00:00Z",
    "duration": "P1D",
    "email": "rehearsal@example.com",
    "hostname": "rehearsal.example.com",
    "uri": "https://rehearsal.example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


class UnsupportedSchemaError(ValueError):
    """The rehearsal can't make a value for this schema."""


def integer(schema: dict[str, Any], key: bytes, path: str) -> int:
    """A whole number within `minimum`, `maximum`, the exclusive ones and `multipleOf`."""
    low, high = _bounds(schema)
    least = None if low is None else math.floor(low) + 1 if _excluded(schema, low, "Min") else math.ceil(low)
    most = (
        None if high is None else math.ceil(high) - 1 if _excluded(schema, high, "Max") else math.floor(high)
    )
    least, most = _usual(least, most)
    step = schema.get("multipleOf", 1)
    if step != int(step):
        step = 1 if step < 1 else step * 10**6  # a fraction: its whole multiples are rare, zero is one
    first, last = math.ceil(least / step), math.floor(most / step)
    if first > last:
        raise UnsupportedSchemaError(f"{path}: no integer between {least} and {most}")
    return int((first + draw(key, path) % (last - first + 1)) * step)


def number(schema: dict[str, Any], key: bytes, path: str) -> float:
    """A number within the bounds; rounded to two decimals where that keeps it within them."""
    low, high = _bounds(schema)
    least, most = _usual(low, high)
    step = schema.get("multipleOf")
    for attempt in range(_TRIES):
        share = fraction(key, f"{path}#{attempt}")
        value = least + share * (most - least) if math.isfinite(most - least) else least
        if step:
            value = round(value / step) * step
        for candidate in (round(value, 2), value):
            if _fits(schema, candidate, step):
                return candidate
    raise UnsupportedSchemaError(f"{path}: no number between {least} and {most}")


def _bounds(schema: dict[str, Any]) -> tuple[float | None, float | None]:
    lows = [schema[name] for name in ("minimum", "exclusiveMinimum") if name in schema]
    highs = [schema[name] for name in ("maximum", "exclusiveMaximum") if name in schema]
    return max(lows, default=None), min(highs, default=None)


def _excluded(schema: dict[str, Any], bound: float, which: str) -> bool:
    return bool(schema.get(f"exclusive{which}imum") == bound)


def _usual(low: Any, high: Any) -> tuple[Any, Any]:
    """Bounds where there are none: 100 wide, from 0 where that is allowed."""
    if low is None and high is None:
        return 0, _USUAL_SPAN
    if low is None:
        return min(0, high - _USUAL_SPAN), high
    return low, low + _USUAL_SPAN if high is None else high


def _fits(schema: dict[str, Any], value: float, step: float | None) -> bool:
    low, high = _bounds(schema)
    if low is not None and (value < low or (value == low and _excluded(schema, low, "Min"))):
        return False
    if high is not None and (value > high or (value == high and _excluded(schema, high, "Max"))):
        return False
    return not step or int(value / step) == value / step


def string(schema: dict[str, Any], words: list[str], key: bytes, path: str) -> str:
    """Words of the document: its first sentence for summaries and the like, a phrase for others."""
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength")
    name = path.rpartition("/")[2]
    if name in _WHOLE_SENTENCE:
        text = opening(words, _USUAL_CHARACTERS if longest is None else longest)
    else:
        start = draw(key, path) % len(words)
        text = opening(words[start : start + 5], _PHRASE_CHARACTERS if longest is None else longest)
    while len(text) < shortest:
        text = f"{text} {' '.join(words)}" if text else " ".join(words)
    return text[: max(shortest, len(text)) if longest is None else longest]
