"""One document along its chain of backends: replayed from the ledger, or asked of one after the other."""

from __future__ import annotations

from schemas.outcomes import Outcome
from transforms.call.book import BatchBook
from transforms.call.desk import Desk
from transforms.call.ended import said_before
from transforms.call.held import hold
from transforms.call.identical import ask_once, known_answer
from transforms.call.question import Question
from transforms.call.repair import after_repair, repair_request
from transforms.call.replay import replay, replay_repair
from transforms.call.request import CallRequest
from transforms.call.retry import FALLS_BACK
from transforms.call.site import Site
from transforms.call.tally import Answered
from transforms.call.wire import CallFailure, EncodedRequest


async def document_outcome(desk: Desk, book: BatchBook, request: CallRequest, priority: int) -> Outcome:
    """The outcome of one assignment of a batch.

    Raises:
        BatchError: the batch can't go on.
        LedgerError: its ledger can't be written.
    """
    question = Question(desk, book, request, priority)
    replayed = replay(question)
    if replayed is not None:
        return await _finish(question, replayed)
    assignment = request.assignment
    failures: list[tuple[Site, CallFailure]] = []
    for name in assignment.chain:
        site = desk.sites[name]
        forbidden = desk.forbids(assignment.route, site)
        if forbidden is not None:
            failures.append((site, forbidden))
            break
        question.tally.try_backend(name)
        held = None if book.outbox is None else await _hold(question, site)
        result = held or await _ask(question, site)
        if isinstance(result, Answered):
            return await _finish(question, result)
        failures.append((site, result))
        if result.failure not in FALLS_BACK:
            break
    return question.tally.failed(failures)


async def _finish(question: Question, first: Answered) -> Outcome:
    """The outcome of an answer; one that does not fit is sent back once, to the backend that gave it."""
    request = repair_request(question.request, first.answer)
    if request is None:
        return question.tally.answered(first)
    question.request = request  # all that follows is about the second question
    second = replay_repair(question, first.site) or await _ask(question, first.site)
    return question.tally.answered(after_repair(first, second))


async def _ask(question: Question, site: Site) -> Answered | CallFailure:
    """What a backend says; what it has said already, in an attempt whose calls have all been made."""
    if question.book.has_ended:
        return said_before(site, question.encode(site), question.recorded())
    return await ask_once(question, site)


async def _hold(question: Question, site: Site) -> Answered | CallFailure | None:
    """Why the document waits for a provider batch; None when its backend is called online.

    Or the answer, when another row's identical request has one already.
    """
    outbox, assignment = question.book.outbox, question.request.assignment
    encoded = question.encode(site)
    if outbox is None or not isinstance(encoded, EncodedRequest):
        return None
    state = outbox.state(assignment.row, assignment.route, site.name)
    if question.book.has_ended and state != "waiting":
        return None
    if site.backend.mode == "batch" and state == "new":
        known = known_answer(question, site, encoded)
        if known is not None:
            return known
    return await hold(question.desk, outbox, assignment, site, encoded, question.recorded())
