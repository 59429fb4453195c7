"""Rate-limit headers of the providers, and the buckets that come of them."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime

import pytest

from schemas.outcomes import Usage
from transforms.call.quota import Quota, Reading, read_limits

NOW = datetime(2026, 11, 22, 9, tzinfo=UTC)


def test_anthropics_limits_are_read_with_instants_against_the_answers_own_date() -> None:
    headers = {
        "date": "Sun, 22 Nov 2026 12:00:00 GMT",
        "anthropic-ratelimit-requests-limit": "4000",
        "anthropic-ratelimit-requests-remaining": "3000",
        "anthropic-ratelimit-requests-reset": "2026-11-22T12:00:15Z",
        "anthropic-ratelimit-input-tokens-limit": "400000",
        "anthropic-ratelimit-input-tokens-remaining": "0",
        "anthropic-ratelimit-input-tokens-reset": "2026-11-22T12:01:00Z",
        "anthropic-ratelimit-output-tokens-limit": "80000",
        "anthropic-ratelimit-output-tokens-remaining": "80000",
        "anthropic-ratelimit-output-tokens-reset": "2026-11-22T12:00:00Z",
    }
    assert read_limits(headers, NOW) == {
        "requests": Reading(4000, 3000, 15),
        "input-tokens": Reading(400000, 0, 60),
        "output-tokens": Reading(80000, 80000, 0),
    }


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("120ms", 0.12),
        ("6m0s", 360),
        ("1h2m3.5s", 3723.5),
        ("7.66s", 7.66),
        ("12", 12),
        ("1d", 86400),
    ],
)
def test_openais_limits_are_read_with_their_durations(text: str, seconds: float) -> None:
    headers = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": text,
        "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-remaining-tokens": "29000",
    }
    assert read_limits(headers, NOW) == {
        "requests": Reading(500, 499, pytest.approx(seconds)),
        "tokens": Reading(30000, 29000, None),
    }


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-ratelimit-limit-requests": "500"},
        {"x-ratelimit-limit-requests": "many", "x-ratelimit-remaining-requests": "1"},
        {"x-ratelimit-limit-requests": "0", "x-ratelimit-remaining-requests": "0"},
        {"x-ratelimit-limit-requests": "-5", "x-ratelimit-remaining-requests": "1"},
        {"x-ratelimit-limit-requests": "inf", "x-ratelimit-remaining-requests": "nan"},
    ],
)
def test_what_cannot_be_read_limits_nothing(headers: dict[str, str]) -> None:
    assert read_limits(headers, NOW) == {}


@pytest.mark.parametrize("reset", ["soon", "1x", "5s later", "2026-99-99T00:00:00Z", ""])
def test_a_reset_that_cannot_be_read_leaves_the_limit_as_it_is(reset: str) -> None:
    headers = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": reset,
    }
    assert read_limits(headers, NOW) == {"requests": Reading(500, 9, None)}


@pytest.mark.parametrize("per_minute", [6, 600, 60_000])
def test_no_minute_holds_more_than_the_workload_states_and_all_of_it_is_used(per_minute: int) -> None:
    quota, sent, now = Quota(), [], 0.0
    quota.state("requests", per_minute, now)
    while now < 180:
        wait = quota.wait(now)
        if wait <= 0:
            quota.sent(now)
            sent.append(now)
        now += max(wait, 1e-6)
    most = max(sum(start <= at < start + 60 for at in sent) for start in (0, 30, 60, 90, 119))
    assert most <= per_minute * 61 / 60 + 1
    assert len(sent) >= 2.9 * per_minute


def test_an_answer_that_allows_more_does_not_lift_what_the_workload_states() -> None:
    quota = Quota()
    quota.state("requests", 60, 0.0)
    quota.state("requests", 600, 0.0)
    quota.sent(0.0)
    quota.read({"requests": Reading(10_000, 9_999, 0.01)}, 1, (1.0, 0.0, 0.0, 0.0), 0.0, 0.1)
    assert quota.wait(0.1) == pytest.approx(0.91, abs=0.02)


def test_stated_tokens_hold_by_what_calls_have_used() -> None:
    quota = Quota()
    quota.state("tokens", 6000, 0.0)
    quota.used(Usage(150, 50))
    assert quota.wait(0.0) == 0.0
    quota.sent(0.0)
    assert quota.wait(0.0) == pytest.approx(2.0, abs=0.05), "200 tokens at 100 a second"


def test_without_a_word_from_the_provider_nothing_is_held_back() -> None:
    quota = Quota()
    for _ in range(1000):
        assert quota.wait(0.0) == 0
        quota.sent(0.0)


def test_a_bucket_lets_through_what_remains_and_then_as_fast_as_it_fills() -> None:
    quota = Quota()
    quota.read({"requests": Reading(600, 106, 49.4)}, 1, quota.sent(0.0), 0.0, 0.0)
    at_once = 0
    while quota.wait(0.0) <= 0:
        quota.sent(0.0)
        at_once += 1
    assert 98 <= at_once <= 106
    assert quota.wait(0.0) == pytest.approx(0.1, abs=0.1)  # 10 a second
    later = 0
    while quota.wait(5.0) <= 0:
        quota.sent(5.0)
        later += 1
    assert 49 <= later <= 51


def test_what_was_sent_after_the_call_that_an_answer_belongs_to_is_taken_off() -> None:
    quota = Quota()
    asked = quota.sent(0.0)
    for _ in range(50):
        quota.sent(0.0)
    quota.read({"requests": Reading(60, 59, 1.0)}, 1, asked, 0.0, 0.0)
    left = 0
    while quota.wait(0.0) <= 0:
        quota.sent(0.0)
        left += 1
    assert 8 <= left <= 9


def test_an_older_answer_that_comes_late_says_nothing() -> None:
    quota = Quota()
    older, newer = quota.sent(0.0), quota.sent(0.0)
    quota.read({"requests": Reading(60, 0, 60)}, 2, newer, 0.0, 1.0)
    quota.read({"requests": Reading(60, 60, 0)}, 1, older, 0.0, 1.0)
    assert quota.wait(1.0) > 0


def test_tokens_count_with_what_calls_have_used_so_far() -> None:
    quota = Quota()
    for _ in range(50):
        quota.used(Usage(900, 100))
    quota.read({"tokens": Reading(60_000, 10_500, 49.5)}, 1, quota.sent(0.0), 0.0, 0.0)
    sent = 0
    while quota.wait(0.0) <= 0:
        quota.sent(0.0)
        sent += 1
    assert sent in (9, 10)  # ten calls of 1,000 tokens less the margin
    assert 0 < quota.wait(0.0) <= 1.7  # 1,000 tokens a second


class Bucket:
    """A provider's own bucket of requests a minute, which it tells in the headers of every answer."""

    def __init__(self, limit: float) -> None:
        self.limit = self.level = limit
        self.at = 0.0

    def take(self, now: float) -> Reading | None:
        self.level = min(self.limit, self.level + (now - self.at) * self.limit / 60)
        self.at = now
        if self.level < 1:
            return None
        self.level -= 1
        missing = self.limit - self.level
        return Reading(self.limit, float(int(self.level)), float(round(missing / self.limit * 60)))


@pytest.mark.parametrize("limit", [60.0, 1000.0, 6000.0])
@pytest.mark.parametrize("latency_s", [0.05, 2.0])
def test_by_headers_alone_no_call_is_refused_and_the_limit_is_used(limit: float, latency_s: float) -> None:
    quota, provider = Quota(), Bucket(limit)
    under_way: deque[tuple[float, int, tuple[float, ...], float, Reading]] = deque()
    now, serial, refused = 0.0, 0, 0
    while now < 240:
        if under_way and under_way[0][0] <= now:
            _, number, asked, sent_at, reading = under_way.popleft()
            quota.read({"requests": reading}, number, asked, sent_at, now)
        elif quota.wait(now) <= 0 and len(under_way) < (256 if serial > 32 else 32):
            serial += 1
            asked = quota.sent(now)
            told = provider.take(now)
            if told is None:
                refused += 1
            else:
                under_way.append((now + latency_s, serial, asked, now, told))
        else:
            now += 0.005
    assert refused == 0
    assert serial >= 0.95 * min(limit + 4 * limit, 240 * 256 / latency_s)
