"""A document's calls to one backend: each in its turn, and again until an answer or a failure that stays."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace

from schemas.failures import FailureClass
from schemas.limits import Limits
from transforms.call.caching import Prefix, cached_prefix
from transforms.call.one_call import call_if_allowed
from transforms.call.question import Question, deadline_sentence
from transforms.call.retry import Verdict
from transforms.call.site import Site
from transforms.call.tally import Answered
from transforms.call.waits import SHORT_S
from transforms.call.wire import CallFailure, EncodedRequest, unsent


async def call_until_answered(question: Question, site: Site) -> Answered | CallFailure:
    """All calls to one backend, until an answer or a failure that stays.

    Raises:
        BatchError: nothing new is sent for the batch.
        LedgerError: a call can't be recorded.
    """
    encoded = question.encode(site)
    if isinstance(encoded, CallFailure):
        return encoded
    desk = question.desk
    # Calls that may have been billed in an earlier life of this attempt count against the limit.
    calls = question.tally.ambiguous.get(site.name, 0)
    ambiguous = 0
    if calls >= desk.limits.max_calls:
        return _unknown_before(site, calls)
    last = ""
    while True:
        result = await _call(question, site, encoded)
        if isinstance(result, Answered):
            return result
        if last and result.failure is FailureClass.DEADLINE:  # it passed while the lane was waited for
            return replace(result, message=f"{result.message}; the last call: {last}")
        last = result.message
        falls_back = question.falls_back(site)
        calls += _counts(result, falls_back)
        ambiguous += result.ambiguous
        closed = site.lane.refusal(falls_back=falls_back)
        if closed is not None:
            return closed if closed.failure is result.failure else result
        verdict = desk.policies.next_wait(result, calls, ambiguous, question.elapsed())
        if verdict.word != "again":
            return _last_failure(result, verdict, calls, desk.limits)
        question.check_going_on()
        if not _waits_in_lane(site, result):
            await desk.clock.sleep(verdict.wait_s)


def _call(question: Question, site: Site, encoded: EncodedRequest) -> Awaitable[Answered | CallFailure]:
    """One call; the first with a prefix that is to be cached goes ahead of the others."""
    prefix = cached_prefix(site.backend, question.request)
    if prefix is None:
        return _call_in_turn(question, site, encoded)
    return _call_behind(prefix, question, site, encoded)


async def _call_behind(
    prefix: Prefix, question: Question, site: Site, encoded: EncodedRequest
) -> Answered | CallFailure:
    key, gate = (site.lane.key, prefix), site.gate
    ahead = await gate.enter(key)
    result: Answered | CallFailure | None = None
    try:
        result = await _call_in_turn(question, site, encoded)
        return result
    finally:
        gate.leave(key, ahead=ahead, answered=isinstance(result, Answered))


async def _call_in_turn(question: Question, site: Site, encoded: EncodedRequest) -> Answered | CallFailure:
    """One call, when the lane has room and is open, and the budget allows it."""
    lane, slots = site.lane, question.desk.slots
    while True:
        permit = await lane.acquire(
            question.request.assignment.route,
            question.priority,
            falls_back=question.falls_back(site),
            within_s=question.left_s(),
        )
        try:
            await slots.acquire(question.priority)
            try:
                result = await call_if_allowed(question, site, encoded, permit)
            finally:
                slots.release()
        finally:
            lane.release(permit)
        if result is not None:
            return result


def _counts(failure: CallFailure, falls_back: bool) -> int:
    """Calls that count against max_calls: a rate limit fails no document that has nowhere else to go."""
    is_limited = failure.failure is FailureClass.RATE_LIMITED
    return 0 if is_limited and not falls_back else int(failure.sent)


def _waits_in_lane(site: Site, failure: CallFailure) -> bool:
    """Whether the lane does the waiting: it is parked, or it paces calls after a 429 that names no time.

    Not a short wait: the call that puts it to the test shall be another document's.
    """
    told_s, is_parked = failure.retry_after_s, site.lane.park_wait() > 0
    if told_s:
        return is_parked and told_s > SHORT_S
    return is_parked or failure.failure is FailureClass.RATE_LIMITED


def _unknown_before(site: Site, calls: int) -> CallFailure:
    return unsent(
        FailureClass.TIMEOUT,
        f"{calls} earlier calls of this attempt to backend {site.name!r} have no known end and may have been "
        f"billed; no further one was made",
    )


def _last_failure(failure: CallFailure, verdict: Verdict, calls: int, limits: Limits) -> CallFailure:
    if verdict.word == "deadline":
        return CallFailure(
            FailureClass.DEADLINE,
            f"{deadline_sentence(limits)}, or would before another call; the last one: {failure.message}",
        )
    if calls > 1 and failure.sent:
        return replace(failure, message=f"{failure.message} (the last of {calls} calls)")
    return failure
