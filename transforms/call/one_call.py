"""One call: allowed by lane, deadline and budget, recorded, sent, and settled by what came back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

from schemas.failures import FailureClass
from schemas.outcomes import ZERO
from transforms.call.caps import Need, reserve
from transforms.call.discount import charge_online, worst_case_online
from transforms.call.ledger import RecordedCall
from transforms.call.observe import seen_call
from transforms.call.permit import Permit
from transforms.call.ports import LostError, NotSentError
from transforms.call.question import Question
from transforms.call.secret import Secret
from transforms.call.site import Site
from transforms.call.tally import Answered
from transforms.call.vertex import TokenError
from transforms.call.wire import KEPT_HEADERS, CallFailure, EncodedRequest, WireResponse, unsent


async def call_if_allowed(
    question: Question, site: Site, encoded: EncodedRequest, permit: Permit
) -> Answered | CallFailure | None:
    """One call; None when the lane was told to wait, or closed, since it gave the permit.

    Raises:
        BatchError: nothing new is sent for the batch.
        LedgerError: the call can't be recorded; if its beginning can't be, it is not sent.
    """
    desk, book, lane = question.desk, question.book, site.lane
    refusal = _refusal(question, site, permit)
    if refusal is not None or lane.is_stopped(permit):
        return refusal
    try:
        key = await site.secret()
    except TokenError as error:
        return unsent(FailureClass.AUTHENTICATION, str(error))
    worst = worst_case_online(site, encoded, desk.clock.now())
    need = Need(question.request.assignment.route, worst or ZERO, site.worst_tokens(encoded))
    refused = desk.forbids_unpriced(site, worst, "no call was made")
    refused = refused or await reserve(desk.budget, desk.caps, need)
    if refused is not None:
        return refused
    call, spent = None, Need(need.route, ZERO, 0)
    try:
        if book.bounded is not None:
            await book.bounded.room()  # from here to the record nothing is waited for
        if lane.is_stopped(permit) or _refusal(question, site, permit) is not None:
            return None
        call = _intend(question, site, encoded, worst)
        spent = need  # whatever goes wrong from here on, the worst case stays counted
        started = desk.clock.monotonic()
        result, actual = await _exchange(question, site, encoded, call, key, permit)
        _show(question, site, result, started)
        spent = Need(need.route, actual, _tokens_of(result, need))
        if isinstance(result, Answered):
            lane.passed(permit, result.answer.usage)
        else:
            lane.heed(result, permit)
        return result
    finally:
        desk.settle(None if call is None else book.bounded, need, spent)


def _refusal(question: Question, site: Site, permit: Permit) -> CallFailure | None:
    """Why nothing is sent for this document now: its lane is closed, or its deadline has passed."""
    question.check_going_on()
    closed = site.lane.refusal(falls_back=question.falls_back(site), permit=permit)
    if closed is None and question.elapsed() >= question.desk.limits.document_deadline_s:
        return question.too_late()
    return closed


def _show(question: Question, site: Site, result: Answered | CallFailure, started: float) -> None:
    """Tells who watches of a call that has ended."""
    observer = question.desk.observer
    if observer is not None:
        seen = seen_call(
            result,
            site=site,
            batch_id=question.book.batch_id,
            attempt=question.book.attempt,
            route=question.request.assignment.route,
            seconds=question.desk.clock.monotonic() - started,
        )
        observer.called(seen)


def _intend(question: Question, site: Site, encoded: EncodedRequest, worst: Decimal | None) -> RecordedCall:
    """Records that a call is about to be sent; if that fails, none is, and nothing is spent."""
    assignment, tally = question.request.assignment, question.tally
    number = tally.calls + 1
    call = question.book.intend(assignment.row, assignment.route, site, encoded, number, worst)
    tally.calls = number
    tally.request_sha256 = encoded.sha256
    return call


async def _exchange(
    question: Question,
    site: Site,
    encoded: EncodedRequest,
    call: RecordedCall,
    key: Secret | None,
    permit: Permit,
) -> tuple[Answered | CallFailure, Decimal]:
    """Sends and records. Gives the result and what it counts for in the budget."""
    desk, book = question.desk, question.book
    started = desk.clock.monotonic()
    question.begin(started)
    task = asyncio.current_task()
    assert task is not None
    desk.sending.add(task)
    desk.counters.calls += 1
    desk.counters.in_flight += 1
    try:
        timeout_s = question.timeout_s(desk.limits.request_timeout_s)
        response = await desk.transport.send(encoded.wire, key, timeout_s)
    except NotSentError as error:
        failure = CallFailure(FailureClass.CONNECTION, _masked(key, str(error)), final=error.final)
        book.failed(call, failure)
        return failure, ZERO
    except LostError as error:
        failure_class = FailureClass.TIMEOUT if error.cause == "timeout" else FailureClass.CONNECTION
        failure = CallFailure(failure_class, f"{error}; it may have been billed", ambiguous=True)
        return _lost(question, site, call, error.cause, failure), call.worst or ZERO
    except asyncio.CancelledError:
        book.unknown(call, "cancelled", "the run was cancelled while the call was in flight")
        raise
    finally:
        desk.sending.discard(task)
        desk.counters.in_flight -= 1
    site.lane.read(permit, response.headers)
    response = _kept(key, response)
    return _settle(question, site, call, response, key, (desk.clock.monotonic() - started) * 1000)


def _settle(
    question: Question,
    site: Site,
    call: RecordedCall,
    response: WireResponse,
    key: Secret | None,
    latency_ms: float,
) -> tuple[Answered | CallFailure, Decimal]:
    """Records what a response is; the answer is used only after that."""
    desk, book, request = question.desk, question.book, question.request
    result = site.codec.decode(response)
    if isinstance(result, CallFailure):
        result = replace(result, message=_masked(key, result.message))
        if result.ambiguous:
            lost = _lost(question, site, call, "malformed", result, response.body)
            return lost, call.worst or ZERO
        book.failed(call, result)
        return result, ZERO
    charge = charge_online(site, result, desk.clock.now())
    book.answered(call, response, result, charge, latency_ms, request.assignment.document_id)
    question.tally.add_answer(result.usage, charge)
    counters = desk.counters
    counters.answered += 1
    counters.repairs += request.rejected is not None
    counters.amount += charge.amount or ZERO
    counters.list_amount += charge.list_amount or ZERO
    answer = desk.schemas.check(result, request.json_schema)
    answered = Answered(site, answer, call.request_sha256, latency_ms, call.final["at"], call)
    billed = call.worst if charge.list_amount is None else charge.list_amount
    return answered, billed or ZERO


def _lost(
    question: Question, site: Site, call: RecordedCall, cause: str, failure: CallFailure, body: bytes = b""
) -> CallFailure:
    """Records a call that nobody knows the end of."""
    question.book.unknown(call, cause, failure.message, body)
    question.tally.add_ambiguous(site.name, question.book.amount_at_stake(call.worst))
    return failure


def _tokens_of(result: Answered | CallFailure, need: Need) -> int:
    """What a call counts for where tokens are capped; the most that it can be where nobody says."""
    if isinstance(result, CallFailure):
        return need.tokens if result.ambiguous else 0
    usage = result.answer.usage
    if usage.input_tokens is None:
        return need.tokens
    return usage.input_tokens + (usage.output_tokens or 0)


def _kept(key: Secret | None, response: WireResponse) -> WireResponse:
    """What of a response is looked at and recorded: some headers, and nowhere the key that it may echo."""
    headers = {name: value for name in KEPT_HEADERS if (value := response.headers.get(name))}
    if key is None:
        return WireResponse(response.status, headers, response.body)
    masked = {name: key.mask_text(value) for name, value in headers.items()}
    return WireResponse(response.status, masked, key.mask(response.body))


def _masked(key: Secret | None, message: str) -> str:
    return message if key is None else key.mask_text(message)
