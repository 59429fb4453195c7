"""What providers say about their limits in every answer, kept as buckets that fill up again. Pure.

Limits that the workload states are buckets of their own, which no answer replaces: of one second's worth, so
that what is sent is spread evenly and no minute holds more than was stated.

Sources: Anthropic's page on rate limits (`anthropic-ratelimit-*`: limit, remaining, and the instant at
which the bucket is full again) and OpenAI's (`x-ratelimit-*`: the same, with the time until then). Both
are token buckets: what is missing, divided by the time until it is full, is the rate at which it fills.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from schemas.outcomes import Usage

KINDS = ("requests", "tokens", "input-tokens", "output-tokens")
"""What is counted; the order of the token counts of a call."""

_MINUTE_S = 60.0  # both providers state limits per minute
_MARGIN = 0.01  # of a limit, left alone: their clock and ours differ
_LEARNING = 0.1
_CLEAR = 0.1  # of a limit: less that is missing says nothing about the rate, for instants are whole seconds
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Reading:
    """One limit as an answer states it; `full_in_s` is None where it doesn't say."""

    limit: float
    remaining: float
    full_in_s: float | None


def read_limits(headers: Mapping[str, str], now: datetime) -> dict[str, Reading]:
    """The limits that an answer states, by kind; names are looked up in lower case.

    What can't be read is left out. `now` serves where the answer has no date of its own.
    """
    found: dict[str, Reading] = {}
    for kind in KINDS:
        for family in ("anthropic-ratelimit-{}-{}", "x-ratelimit-{1}-{0}"):
            limit = _number(headers.get(family.format(kind, "limit")))
            remaining = _number(headers.get(family.format(kind, "remaining")))
            if limit and remaining is not None:
                reset = headers.get(family.format(kind, "reset"))
                found[kind] = Reading(limit, remaining, _full_in(reset, headers, now))
                break
    return found


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < float("inf") else None


def _full_in(reset: str | None, headers: Mapping[str, str], now: datetime) -> float | None:
    if not reset:
        return None
    seconds = _number(reset)
    if seconds is not None:
        return seconds
    parts = _DURATION.findall(reset)
    if parts and "".join(number + unit for number, unit in parts) == reset:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        until = datetime.fromisoformat(reset)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - _date(headers, now)).total_seconds())


def _date(headers: Mapping[str, str], now: datetime) -> datetime:
    try:
        date = parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        return now
    return date if date.tzinfo else date.replace(tzinfo=UTC)


@dataclass(slots=True)
class _Bucket:
    limit: float
    level: float
    rate: float  # by which it fills, a second
    at: float

    def fill(self, now: float) -> None:
        if now > self.at:
            self.level = min(self.limit, self.level + self.rate * (now - self.at))
            self.at = now

    def wait(self, cost: float, now: float) -> float:
        self.fill(now)
        missing = min(cost + _MARGIN * self.limit, self.limit) - self.level
        return missing / self.rate if missing > 0 else 0.0


class Quota:
    """The buckets of one lane. Instants are seconds on a clock that never goes back.

    What a call will cost in tokens is not known before; the mean of the calls so far stands for it.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}  # by place in KINDS
        self._stated: dict[int, _Bucket] = {}  # the same, of the workload
        self._asked = [0.0] * len(KINDS)  # in all, as estimated
        self._cost = [1.0, 0.0, 0.0, 0.0]  # of a call
        self._newest = 0  # serial of the call whose answer was read last

    def state(self, kind: str, per_minute: float, now: float) -> None:
        """Holds calls to a limit of one of KINDS, whatever the provider allows; the least of several."""
        place, rate = KINDS.index(kind), per_minute / _MINUTE_S
        known = self._stated.get(place)
        if known is None or rate < known.rate:
            self._stated[place] = _Bucket(rate, rate, rate, now)

    def wait(self, now: float) -> float:
        """Seconds until the next call fits into every bucket."""
        if not self._buckets and not self._stated:
            return 0.0
        return max(bucket.wait(self._cost[place], now) for place, bucket in self._every())

    def _every(self) -> tuple[tuple[int, _Bucket], ...]:
        return (*self._buckets.items(), *self._stated.items())

    def sent(self, now: float) -> tuple[float, ...]:
        """A call goes out; gives what has been asked of each bucket so far, this call included."""
        for place, cost in enumerate(self._cost):
            self._asked[place] += cost
        for place, bucket in self._every():
            bucket.fill(now)
            bucket.level -= self._cost[place]
        return tuple(self._asked)

    def used(self, usage: Usage) -> None:
        """Learns what calls cost."""
        tokens_in, tokens_out = usage.input_tokens or 0, usage.output_tokens or 0
        for place, tokens in enumerate((tokens_in + tokens_out, tokens_in, tokens_out), 1):
            known = self._cost[place]
            self._cost[place] = known + _LEARNING * (tokens - known) if known else float(tokens)

    def read(
        self,
        readings: Mapping[str, Reading],
        serial: int,
        asked_then: tuple[float, ...],
        sent_at: float,
        now: float,
    ) -> None:
        """Takes over what the answer to a call says; later calls are taken off, as it can't know them."""
        if serial < self._newest:
            return
        self._newest = serial
        for place, kind in enumerate(KINDS):
            reading = readings.get(kind)
            if reading is None:
                continue
            missing = reading.limit - reading.remaining
            known = self._buckets.get(place)
            rate = known.rate if known else reading.limit / _MINUTE_S
            if reading.full_in_s and missing >= _CLEAR * reading.limit:
                rate = missing / reading.full_in_s
            since = self._asked[place] - asked_then[place]
            level = min(reading.limit, reading.remaining + rate * (now - sent_at)) - since
            self._buckets[place] = _Bucket(reading.limit, level, rate, now)
