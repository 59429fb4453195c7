"""One chance to mend an answer that does not fit the JSON Schema: what is asked, and what comes of it."""

from __future__ import annotations

from dataclasses import replace

from schemas.failures import FailureClass
from transforms.call.request import CallRequest, Rejected
from transforms.call.tally import Answered
from transforms.call.wire import Answer, CallFailure

REPAIRED = frozenset({FailureClass.INVALID_JSON, FailureClass.SCHEMA_MISMATCH})
"""Not refusals, which are an answer, and not answers that were cut off, which would be again."""


def repair_request(request: CallRequest, answer: Answer) -> CallRequest | None:
    """The request that sends an answer back with what is wrong in it; None when there is no cause.

    The same answer always gives the same request, so that a ledger which has both is replayed.
    """
    if not request.repair or request.rejected is not None or answer.failure not in REPAIRED:
        return None
    complaint = (
        f"That answer can't be used: {answer.message}.\n"
        "Answer the question again, with nothing but a JSON object that fits the JSON Schema."
    )
    return replace(request, rejected=Rejected(answer.text or "", complaint))


def after_repair(first: Answered, second: Answered | CallFailure) -> Answered:
    """What the document gets: the second answer, or the first one's failure when none came.

    When both are no result, the message tells of both. It stays a failure that no rerun pays for again.
    """
    was = f"the first answer was rejected ({first.answer.message})"
    if isinstance(second, CallFailure):
        message = f"{first.answer.message}; it was to be repaired, but: {second.message}"
        return replace(first, answer=replace(first.answer, message=message))
    if second.answer.failure is None:
        return second
    return replace(second, answer=replace(second.answer, message=f"{second.answer.message}; {was}"))
