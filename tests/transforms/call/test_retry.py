"""Policies: what is tried again, when, and how often."""

from __future__ import annotations

import pytest

from schemas.failures import FAILURE_KINDS, FailureClass
from schemas.limits import Limits
from transforms.call.retry import FALLS_BACK, MOST_AMBIGUOUS_CALLS, RetryPolicies
from transforms.call.wire import CallFailure

F = FailureClass
RETRIED = {F.RATE_LIMITED, F.OVERLOADED, F.PROVIDER_ERROR, F.TIMEOUT, F.CONNECTION, F.MALFORMED_RESPONSE}
LONGEST = RetryPolicies(Limits(max_calls=8), lambda low, high: high)


@pytest.mark.parametrize("kind", list(FailureClass))
def test_a_class_is_tried_again_only_if_waiting_can_help(kind: FailureClass) -> None:
    verdict = LONGEST.next_wait(CallFailure(kind, "m"), 1, 0, 0.0)
    assert (verdict.word == "again") is (kind in RETRIED)


def test_waits_grow_and_are_jittered_between_zero_and_their_bound() -> None:
    failure = CallFailure(F.PROVIDER_ERROR, "m")
    assert [LONGEST.next_wait(failure, n, 0, 0).wait_s for n in range(1, 8)] == [0.5, 1, 2, 4, 8, 16, 20]
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    assert RetryPolicies(Limits(), uniform).next_wait(failure, 3, 0, 0).wait_s == 0
    assert asked == [(0, 2)]


def test_a_rate_limit_waits_longer_than_a_hiccup_and_exactly_as_long_as_it_was_told() -> None:
    limited = CallFailure(F.RATE_LIMITED, "m")
    assert [LONGEST.next_wait(limited, n, 0, 0).wait_s for n in range(1, 8)] == [1, 2, 4, 8, 16, 32, 60]
    assert LONGEST.next_wait(CallFailure(F.RATE_LIMITED, "m", 17.0), 1, 0, 0).wait_s == 17


def test_calls_are_bounded() -> None:
    failure = CallFailure(F.OVERLOADED, "m")
    assert LONGEST.next_wait(failure, 7, 0, 0).word == "again"
    assert LONGEST.next_wait(failure, 8, 0, 0).word == "enough"


def test_calls_that_may_have_been_billed_are_bounded_much_earlier() -> None:
    lost = CallFailure(F.TIMEOUT, "m", ambiguous=True)
    assert LONGEST.next_wait(lost, 1, MOST_AMBIGUOUS_CALLS - 1, 0).word == "again"
    assert LONGEST.next_wait(lost, 2, MOST_AMBIGUOUS_CALLS, 0).word == "enough"
    definite = CallFailure(F.CONNECTION, "m")
    assert LONGEST.next_wait(definite, 3, MOST_AMBIGUOUS_CALLS, 0).word == "again"


def test_no_wait_reaches_beyond_the_documents_deadline() -> None:
    policies = RetryPolicies(Limits(document_deadline_s=100), lambda low, high: high)
    told = CallFailure(F.RATE_LIMITED, "m", 60.0)
    assert policies.next_wait(told, 1, 0, 30).word == "again"
    assert policies.next_wait(told, 1, 0, 41).word == "deadline"


@pytest.mark.parametrize(
    "failure", [CallFailure(F.CONNECTION, "m", final=True), CallFailure(F.TIMEOUT, "m", sent=False)]
)
def test_what_was_not_sent_or_cannot_change_is_final(failure: CallFailure) -> None:
    assert LONGEST.next_wait(failure, 1, 0, 0).word == "final"


def test_every_class_that_falls_back_is_about_availability_and_has_its_reason() -> None:
    paid = {F.REFUSED, F.TRUNCATED, F.EMPTY_ANSWER, F.INVALID_JSON, F.SCHEMA_MISMATCH}
    ours = {F.BUDGET_EXHAUSTED, F.UNKNOWN_PRICE, F.CANCELLED}
    assert not FALLS_BACK.keys() & (paid | ours | {F.BAD_REQUEST, F.REQUEST_TOO_LARGE})
    assert FALLS_BACK.keys() >= RETRIED
    assert all(FAILURE_KINDS[kind].retryable and reason for kind, reason in FALLS_BACK.items())
