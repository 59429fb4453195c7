"""Defects of retries, waiting, and of telling an answer from what is none."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from schemas.failures import FailureClass
from tests.simulator.planting import defect, swap
from transforms.call import anthropic, openai, pace, retry
from transforms.call.lane import Lane
from transforms.call.question import Question
from transforms.call.retry import RetryPolicies, Verdict
from transforms.call.slots import Slots
from transforms.call.structured import SchemaBook
from transforms.call.waits import Waits

WAITS = "a lane that was told to wait waits"
IN_TIME = "no row waits for ever"
BOUNDED = "calls of a row are bounded"
FINAL = "what was refused for good is not asked again"
ANSWERS = "only whole, valid answers are results"
CAP = "spend never passes the cap"


@defect("retry", FINAL)
def a_bad_request_is_tried_again(replaced: ExitStack) -> None:
    def made(self: RetryPolicies, *arguments: Any) -> None:
        before(self, *arguments)
        self._by_class[FailureClass.BAD_REQUEST] = self._by_class[FailureClass.TIMEOUT]

    before = swap(replaced, RetryPolicies, "__init__", made)


@defect("retry", WAITS)
def a_lane_does_not_heed_what_it_is_told(replaced: ExitStack) -> None:
    swap(replaced, Lane, "heed", lambda self, *arguments: None)


@defect("retry", WAITS)
def a_lane_through_which_calls_get_does_not_wait(replaced: ExitStack) -> None:
    def told(self: Waits, wait_s: float, now: float, *, flows: bool) -> None:
        if not flows:
            before(self, wait_s, now, flows=flows)

    swap(replaced, pace, "_FEWEST_PASSED", 1)
    before = swap(replaced, Waits, "told", told)


@defect("retry", WAITS)
def a_lane_that_refused_the_key_is_used_again(replaced: ExitStack) -> None:
    swap(replaced, Lane, "_close", lambda self, *arguments: None)


@defect("retry", WAITS)
def a_lane_is_not_looked_at_again_once_the_budget_has_allowed_a_call(replaced: ExitStack) -> None:
    """Found by the simulator."""
    swap(replaced, Lane, "is_stopped", lambda self, permit: not permit.serial)


@defect("retry", IN_TIME)
def a_documents_deadline_is_ignored(replaced: ExitStack) -> None:
    swap(replaced, Question, "elapsed", lambda self: 0.0)


@defect("retry", BOUNDED, IN_TIME, "calls that may have been paid are bounded")
def retries_never_end(replaced: ExitStack) -> None:
    def again(self: RetryPolicies, failure: Any, calls: int, ambiguous: int, elapsed_s: float) -> Verdict:
        verdict = before(self, failure, calls, ambiguous, elapsed_s)
        return Verdict("again", 0.01) if verdict.word in ("enough", "deadline") else verdict

    before = swap(replaced, RetryPolicies, "next_wait", again)


@defect("retry", "calls that may have been paid are bounded")
def calls_that_may_have_been_paid_are_not_bounded(replaced: ExitStack) -> None:
    swap(replaced, retry, "MOST_AMBIGUOUS_CALLS", 1000)


@defect("retry", "calls in flight are bounded")
def slots_are_given_without_counting(replaced: ExitStack) -> None:
    async def acquire(self: Slots, priority: int) -> None:
        self.in_use += 1

    swap(replaced, Slots, "acquire", acquire)


@defect("answer", ANSWERS, "a failure says what happened")
def an_answer_that_was_cut_off_is_a_result(replaced: ExitStack) -> None:
    swap(replaced, openai, "_COMPLETE", frozenset({"stop", "length"}))
    swap(replaced, anthropic, "_COMPLETE", frozenset({"end_turn", "max_tokens"}))
    swap(replaced, anthropic, "_TRUNCATED", frozenset())


@defect("answer", ANSWERS)
def an_answer_that_is_not_json_is_a_result(replaced: ExitStack) -> None:
    swap(replaced, SchemaBook, "check", lambda self, answer, schema: answer)
