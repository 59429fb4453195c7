"""A document among others that ask the same: it takes over another's answer, and its own is for them."""

from __future__ import annotations

import math

from schemas.outcomes import SharedFrom
from transforms.call.calling import call_until_answered
from transforms.call.ledger import RecordedCall
from transforms.call.question import Question
from transforms.call.share import SharedAnswer, share_key
from transforms.call.site import Site
from transforms.call.tally import Answered
from transforms.call.wire import Answer, CallFailure, EncodedRequest, WireResponse


async def ask_once(question: Question, site: Site) -> Answered | CallFailure:
    """The answer to another row's identical request, or else all calls to one backend.

    Raises:
        BatchError: nothing new is sent for the batch.
        LedgerError: a call, or the answer that is taken over, can't be recorded.
    """
    shares = question.desk.shares
    encoded = question.encode(site) if shares is not None else None
    if shares is None or not isinstance(encoded, EncodedRequest):
        return await call_until_answered(question, site)
    key = share_key(site.name, encoded.sha256)
    try:
        told = await shares.turn(key, lambda told: _fits(question, site, told), question.timeout_s(math.inf))
    except TimeoutError:
        return question.too_late()
    if isinstance(told, SharedAnswer):
        return _take_over(question, site, encoded, told)
    result: Answered | CallFailure | None = None
    try:
        result = await call_until_answered(question, site)
    finally:
        if isinstance(result, Answered):
            book, answer = question.book, _told(question, result.call, fresh=True)
            shares.answered(told, book.log, book.place(result.call), answer)
        else:
            shares.failed(told)
    return result


def known_answer(question: Question, site: Site, encoded: EncodedRequest) -> Answered | CallFailure | None:
    """The answer to another row's identical request, where there is one already."""
    shares = question.desk.shares
    if shares is None:
        return None
    key = share_key(site.name, encoded.sha256)
    told = shares.known(key, lambda told: _fits(question, site, told))
    return None if told is None else _take_over(question, site, encoded, told)


def offer(question: Question, site: Site, encoded: EncodedRequest, call: RecordedCall) -> None:
    """Lets others have an answer that the ledger has."""
    shares, book = question.desk.shares, question.book
    if shares is not None:
        key = share_key(site.name, encoded.sha256)
        shares.offer(key, book.log, book.place(call), _told(question, call, fresh=False))


def _told(question: Question, call: RecordedCall, *, fresh: bool) -> SharedAnswer:
    assignment = question.request.assignment
    origin = SharedFrom(question.book.batch_id, call.row, call.route, assignment.document_id)
    return SharedAnswer.of(origin, call.final, fresh=fresh)


def _fits(question: Question, site: Site, told: SharedAnswer) -> bool:
    """Whether an answer may be shared: who tries again does not take what failed before."""
    if told.fresh or question.book.attempt == 1:
        return True
    answer = _read(question, site, told)
    return isinstance(answer, Answer) and answer.failure is None


def _read(question: Question, site: Site, told: SharedAnswer) -> Answer | CallFailure:
    frame = told.frame
    answer = site.codec.decode(WireResponse(frame["status"], frame["headers"], frame["body"].encode()))
    if isinstance(answer, CallFailure):
        return answer
    return question.desk.schemas.check(answer, question.request.json_schema)


def _take_over(
    question: Question, site: Site, encoded: EncodedRequest, told: SharedAnswer
) -> Answered | CallFailure:
    """Records and uses another row's answer."""
    answer = _read(question, site, told)
    if isinstance(answer, CallFailure):  # only if a codec has changed under a recorded answer
        return answer
    assignment = question.request.assignment
    call = question.book.shared(assignment.row, assignment.route, site, encoded.sha256, told)
    question.tally.add_share(told.origin, site)
    question.desk.counters.shared += 1
    return Answered(site, answer, encoded.sha256, call.final["latency_ms"], call.final["at"], call)
