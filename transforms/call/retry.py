"""Which failure is tried again, after how long, and which one sends the document to the next backend.

A policy is a tenacity stop and a tenacity wait, composed of small values; the engine asks it between
calls and does the sleeping itself, so that success costs nothing and time can be virtual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tenacity import RetryCallState, Retrying, stop_after_attempt, stop_before_delay, wait_exponential
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from schemas.failures import FailureClass
from schemas.limits import Limits
from transforms.call.wire import CallFailure

MOST_AMBIGUOUS_CALLS = 2
"""Calls of a document to one backend that may have been billed without an answer."""

FALLS_BACK: dict[FailureClass, str] = {
    FailureClass.RATE_LIMITED: "another provider has limits of its own",
    FailureClass.OVERLOADED: "another provider may have room",
    FailureClass.PROVIDER_ERROR: "another provider may be up",
    FailureClass.TIMEOUT: "another provider may be faster",
    FailureClass.CONNECTION: "another provider may be reachable",
    FailureClass.MALFORMED_RESPONSE: "a server that does not speak its API is as good as down",
    FailureClass.AUTHENTICATION: "another provider has a key of its own",
    FailureClass.PERMISSION: "another provider's key may be allowed",
    FailureClass.NOT_FOUND: "another provider's model may exist",
    FailureClass.QUOTA_EXHAUSTED: "another provider has a quota of its own",
    FailureClass.DEADLINE: "the next wait would be too long, but what is left may do for another provider",
}
"""Failures to be available, and why the chain's next backend is worth a call.

Not here: paid answers that are no result (refused, truncated, empty, not JSON, not the schema), which
would be paid again; BAD_REQUEST and REQUEST_TOO_LARGE, which are about the request; our own decisions
(budget, unknown price, cancelled), which hold for the document as a whole.
"""


_RETRYING = Retrying()  # tenacity states belong to one; ours is never run


class wait_full_jitter(wait_base):  # noqa: N801 - tenacity's naming
    """A random time between zero and what `longest` says, from randomness that is handed in.

    Source: "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), full jitter.
    """

    def __init__(self, longest: wait_base, uniform: Callable[[float, float], float]) -> None:
        self.longest = longest
        self.uniform = uniform

    def __call__(self, retry_state: RetryCallState) -> float:
        return self.uniform(0.0, self.longest(retry_state))


class wait_as_told(wait_base):  # noqa: N801 - tenacity's naming
    """At least the time that the provider asked for (`upcoming_sleep`), else what `otherwise` says."""

    def __init__(self, otherwise: wait_base) -> None:
        self.otherwise = otherwise

    def __call__(self, retry_state: RetryCallState) -> float:
        return retry_state.upcoming_sleep or self.otherwise(retry_state)


@dataclass(frozen=True, slots=True)
class Policy:
    """When to stop, and how long to wait before the next call."""

    stop: stop_base
    wait: wait_base


class RetryPolicies:
    """The policies of all failure classes; a class without one is never tried again.

    limits.max_calls bounds the calls of a document to a backend, limits.document_deadline_s the whole
    document; calls that may have been billed are bounded by MOST_AMBIGUOUS_CALLS besides.
    """

    def __init__(self, limits: Limits, uniform: Callable[[float, float], float]) -> None:
        calls = stop_after_attempt(limits.max_calls)
        self._in_time = stop_before_delay(limits.document_deadline_s)
        short = wait_full_jitter(wait_exponential(multiplier=0.5, max=20), uniform)
        long = wait_full_jitter(wait_exponential(multiplier=1, max=60), uniform)
        patient = Policy(calls, wait_as_told(long))
        quick = Policy(calls, wait_as_told(short))
        self._by_class: dict[FailureClass, Policy] = {
            FailureClass.RATE_LIMITED: patient,
            FailureClass.OVERLOADED: patient,
            FailureClass.PROVIDER_ERROR: quick,
            FailureClass.TIMEOUT: quick,
            FailureClass.CONNECTION: quick,
            FailureClass.MALFORMED_RESPONSE: quick,
        }

    def next_wait(self, failure: CallFailure, calls: int, ambiguous: int, elapsed_s: float) -> Verdict:
        """What to do after call number `calls` to this backend, `ambiguous` of them without a known end.

        `elapsed_s` is the time since the document's first call, to whatever backend.
        """
        policy = self._by_class.get(failure.failure)
        if policy is None or failure.final or not failure.sent:
            return Verdict("final")
        if failure.ambiguous and ambiguous >= MOST_AMBIGUOUS_CALLS:
            return Verdict("enough")
        state = _state(calls, failure.retry_after_s or 0.0, elapsed_s)
        if policy.stop(state):
            return Verdict("enough")
        state.upcoming_sleep = policy.wait(state)
        if self._in_time(state):
            return Verdict("deadline")
        return Verdict("again", state.upcoming_sleep)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`again` after `wait_s`; or no more: `final` by its class, `enough` calls, `deadline` too near."""

    word: str
    wait_s: float = 0.0


def _state(calls: int, told_s: float, elapsed_s: float) -> RetryCallState:
    state = RetryCallState(_RETRYING, None, (), {})
    state.attempt_number = calls
    state.start_time = 0.0
    state.outcome_timestamp = elapsed_s
    state.upcoming_sleep = told_s
    return state
