"""How counts, money and times are written for people: one way, wherever they stand."""

from __future__ import annotations

from decimal import Decimal

_MINUTE = 60
_HOUR = 3600


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 batch`, `12,345 batches`."""
    word = noun if number == 1 else (plural or f"{noun}s")
    return f"{number:,} {word}"


def batches(number: int) -> str:
    """`1 batch`, `2 batches`."""
    return count(number, "batch", "batches")


def usd(amount: str | Decimal | None) -> str:
    """An amount in US dollars: cents when it is large, enough digits when it is small; None is unknown."""
    if amount is None:
        return "unknown"
    value = Decimal(amount)
    if value == 0:
        return "$0"
    if abs(value) >= 1:
        return f"${value:,.2f}"
    if abs(value) < Decimal("0.000001"):
        return "< $0.000001"
    return f"${value:.6f}".rstrip("0").rstrip(".")


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`; a question mark when nobody knows."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02d} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} min"


def span(low: float, high: float) -> str:
    """`42 s to 3 min 05 s`; one time where both ends are written alike."""
    ends = dict.fromkeys((duration(low), duration(high)))
    return " to ".join(ends)


def shortened(text: str, limit: int) -> str:
    """The text on one line, cut to `limit` characters with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
