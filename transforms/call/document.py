"""One document along its chain of backends: replayed from the ledger, or called, retried, passed on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from dataclasses import replace
from decimal import Decimal

from schemas.errors import BatchError
from schemas.failures import FailureClass
from schemas.limits import Limits
from schemas.outcomes import ZERO, Outcome, SharedFrom
from transforms.call.book import BatchBook
from transforms.call.caching import Prefix, cached_prefix
from transforms.call.caps import Need, reserve
from transforms.call.desk import CANCELLED, Desk
from transforms.call.discount import charge_online, worst_case_online
from transforms.call.ended import said_before
from transforms.call.held import hold
from transforms.call.ledger import RecordedCall
from transforms.call.observe import seen_call
from transforms.call.permit import Permit
from transforms.call.ports import LostError, NotSentError
from transforms.call.repair import after_repair, repair_request
from transforms.call.request import CallRequest
from transforms.call.retry import FALLS_BACK, Verdict
from transforms.call.secret import Secret
from transforms.call.share import SharedAnswer, share_key
from transforms.call.site import Site
from transforms.call.tally import Answered, Tally
from transforms.call.vertex import TokenError
from transforms.call.waits import SHORT_S
from transforms.call.wire import KEPT_HEADERS, Answer, CallFailure, EncodedRequest, WireResponse


class DocumentRun:
    """Gets one assignment its outcome. Used once."""

    def __init__(self, desk: Desk, book: BatchBook, request: CallRequest, priority: int) -> None:
        self._desk = desk
        self._book = book
        self._request = request
        self._priority = priority
        self._tally = Tally(request)
        self._first_call_at: float | None = None
        self._encoded: tuple[Site, CallRequest, EncodedRequest | CallFailure] | None = None

    async def outcome(self) -> Outcome:
        """The outcome; raises LedgerError or BatchError when the whole batch can't go on."""
        replayed = self._replay()
        if replayed is not None:
            return await self._finish(replayed)
        failures: list[tuple[Site, CallFailure]] = []
        for name in self._request.assignment.chain:
            site = self._desk.sites[name]
            forbidden = self._desk.forbids(self._request.assignment.route, site)
            if forbidden is not None:
                failures.append((site, forbidden))
                break
            self._tally.try_backend(name)
            held = None if self._book.outbox is None else await self._hold(site)
            result = held or await self._ask(site)
            if isinstance(result, Answered):
                return await self._finish(result)
            failures.append((site, result))
            if result.failure not in FALLS_BACK:
                break
        return self._tally.failed(failures)

    async def _finish(self, first: Answered) -> Outcome:
        """The outcome of an answer; one that does not fit is sent back once, to the backend that gave it."""
        request = repair_request(self._request, first.answer)
        if request is None:
            return self._tally.answered(first)
        self._request = request  # all that follows is about the second question
        second = self._replay_repair(first.site) or await self._ask(first.site)
        return self._tally.answered(after_repair(first, second))

    def _replay_repair(self, site: Site) -> Answered | None:
        """The answer to the repair that the ledger has, already counted by `_replay`."""
        for call in self._book.recorded(self._request.assignment.row, self._request.assignment.route):
            found = self._recorded_answer(call) if call.end in ("answered", "shared") else None
            if found is not None and found.site is site:
                self._tally.replayed += call.end == "answered"
                return found
        return None

    def _replay(self) -> Answered | None:
        """Counts what the ledger has for this document, and the answer in it, if there is one."""
        found: Answered | None = None
        tally = self._tally
        for call in self._book.recorded(self._request.assignment.row, self._request.assignment.route):
            tally.try_backend(call.backend)
            if call.end == "shared":
                tally.add_share(call.origin, self._desk.sites.get(call.backend))
                found = found or self._recorded_answer(call)
                continue
            tally.calls += 1
            if call.end == "unknown":
                tally.add_ambiguous(call.backend, self._book.amount_at_stake(call.worst))
            elif call.end == "answered":
                tally.add_answer(call.usage, call.charge)
                found = found or self._recorded_answer(call)
        if found is not None:
            tally.replayed += found.call.end == "answered"
            self._desk.counters.replayed += 1
        return found

    def _recorded_answer(self, call: RecordedCall) -> Answered | None:
        site = self._desk.sites.get(call.backend)
        if site is None or call.backend not in self._request.assignment.chain:
            return None
        encoded = self._encode(site)
        if isinstance(encoded, CallFailure) or encoded.sha256 != call.request_sha256:
            return None
        answer = site.codec.decode(call.response)
        if isinstance(answer, CallFailure):
            return None
        answer = self._desk.schemas.check(answer, self._request.json_schema)
        if call.end == "answered" and self._desk.shares is not None:
            told = self._told(call, fresh=False)
            key = share_key(site.name, encoded.sha256)
            self._desk.shares.offer(key, self._book.log, self._book.place(call), told)
        return Answered(site, answer, call.request_sha256, call.final["latency_ms"], call.final["at"], call)

    def _told(self, call: RecordedCall, *, fresh: bool) -> SharedAnswer:
        assignment = self._request.assignment
        origin = SharedFrom(self._book.batch_id, call.row, call.route, assignment.document_id)
        return SharedAnswer.of(origin, call.final, fresh=fresh)

    async def _ask(self, site: Site) -> Answered | CallFailure:
        """The answer to another row's identical request, or else all calls to one backend."""
        if self._book.has_ended:
            assignment = self._request.assignment
            recorded = self._book.recorded(assignment.row, assignment.route)
            return said_before(site, self._encode(site), recorded)
        shares = self._desk.shares
        encoded = self._encode(site) if shares is not None else None
        if shares is None or not isinstance(encoded, EncodedRequest):
            return await self._try(site)
        key = share_key(site.name, encoded.sha256)
        try:
            told = await shares.turn(key, lambda told: self._fits(site, told), self._timeout_s(math.inf))
        except TimeoutError:
            return _refused(FailureClass.DEADLINE, _deadline_sentence(self._desk.limits))
        if isinstance(told, SharedAnswer):
            return self._take_over(site, encoded, told)
        result: Answered | CallFailure | None = None
        try:
            result = await self._try(site)
        finally:
            if isinstance(result, Answered):
                place, answer = self._book.place(result.call), self._told(result.call, fresh=True)
                shares.answered(told, self._book.log, place, answer)
            else:
                shares.failed(told)
        return result

    def _fits(self, site: Site, told: SharedAnswer) -> bool:
        """Whether an answer may be shared: who tries again does not take what failed before."""
        if told.fresh or self._book.attempt == 1:
            return True
        answer = self._shared_answer(site, told)
        return isinstance(answer, Answer) and answer.failure is None

    def _shared_answer(self, site: Site, told: SharedAnswer) -> Answer | CallFailure:
        frame = told.frame
        answer = site.codec.decode(WireResponse(frame["status"], frame["headers"], frame["body"].encode()))
        if isinstance(answer, CallFailure):
            return answer
        return self._desk.schemas.check(answer, self._request.json_schema)

    def _take_over(self, site: Site, encoded: EncodedRequest, told: SharedAnswer) -> Answered | CallFailure:
        """Records and uses another row's answer."""
        answer = self._shared_answer(site, told)
        if isinstance(answer, CallFailure):  # only if a codec has changed under a recorded answer
            return answer
        assignment = self._request.assignment
        call = self._book.shared(assignment.row, assignment.route, site, encoded.sha256, told)
        self._tally.add_share(told.origin, site)
        self._desk.counters.shared += 1
        return Answered(site, answer, encoded.sha256, call.final["latency_ms"], call.final["at"], call)

    def _encode(self, site: Site) -> EncodedRequest | CallFailure:
        """The request on a backend's wire; the last one is kept, because encoding is what costs most."""
        kept = self._encoded
        if kept is not None and kept[0] is site and kept[1] is self._request:
            return kept[2]
        encoded: EncodedRequest | CallFailure
        try:
            encoded = site.encode(self._request)
        except ValueError as error:
            encoded = CallFailure(FailureClass.INVALID_TEXT, str(error), sent=False, final=True)
        self._encoded = (site, self._request, encoded)
        return encoded

    async def _hold(self, site: Site) -> Answered | CallFailure | None:
        """Why the document waits for a provider batch; None when its backend is called online.

        Or the answer, when another row's identical request has one already.
        """
        outbox, assignment = self._book.outbox, self._request.assignment
        encoded = self._encode(site)
        if outbox is None or not isinstance(encoded, EncodedRequest):
            return None
        state = outbox.state(assignment.row, assignment.route, site.name)
        if self._book.has_ended and state != "waiting":
            return None
        is_new = state == "new"
        if site.backend.mode == "batch" and is_new and self._desk.shares is not None:
            key = share_key(site.name, encoded.sha256)
            told = self._desk.shares.known(key, lambda told: self._fits(site, told))
            if told is not None:
                return self._take_over(site, encoded, told)
        recorded = self._book.recorded(assignment.row, assignment.route)
        return await hold(self._desk, outbox, assignment, site, encoded, recorded)

    async def _try(self, site: Site) -> Answered | CallFailure:
        """All calls to one backend, until an answer or a failure that stays."""
        encoded = self._encode(site)
        if isinstance(encoded, CallFailure):
            return encoded
        # Calls that may have been billed in an earlier life of this attempt count against the limit.
        calls = self._tally.ambiguous.get(site.name, 0)
        ambiguous = 0
        if calls >= self._desk.limits.max_calls:
            return _unknown_before(site, calls)
        last = ""
        while True:
            result = await self._call(site, encoded)
            if isinstance(result, Answered):
                return result
            if last and result.failure is FailureClass.DEADLINE:  # it passed while the lane was waited for
                return replace(result, message=f"{result.message}; the last call: {last}")
            last = result.message
            calls += self._counts(site, result)
            ambiguous += result.ambiguous
            closed = site.lane.refusal(falls_back=self._falls_back(site))
            if closed is not None:
                return closed if closed.failure is result.failure else result
            verdict = self._desk.policies.next_wait(result, calls, ambiguous, self._elapsed())
            if verdict.word != "again":
                return _last_failure(result, verdict, calls, self._desk.limits)
            self._check_going_on()
            if not _waits_in_lane(site, result):
                await self._desk.clock.sleep(verdict.wait_s)

    def _counts(self, site: Site, failure: CallFailure) -> int:
        """Calls that count against max_calls: a rate limit fails no document that has nowhere else to go."""
        is_limited = failure.failure is FailureClass.RATE_LIMITED
        return 0 if is_limited and not self._falls_back(site) else int(failure.sent)

    def _check_going_on(self) -> None:
        if self._desk.closing or self._book.stopped:
            raise BatchError(CANCELLED)

    def _elapsed(self) -> float:
        if self._first_call_at is None:
            return 0.0
        return self._desk.clock.monotonic() - self._first_call_at

    def _call(self, site: Site, encoded: EncodedRequest) -> Awaitable[Answered | CallFailure]:
        """One call; the first with a prefix that is to be cached goes ahead of the others."""
        prefix = cached_prefix(site.backend, self._request)
        if prefix is None:
            return self._call_in_turn(site, encoded)
        return self._call_behind(prefix, site, encoded)

    async def _call_behind(
        self, prefix: Prefix, site: Site, encoded: EncodedRequest
    ) -> Answered | CallFailure:
        key, gate = (site.lane.key, prefix), site.gate
        ahead = await gate.enter(key)
        result: Answered | CallFailure | None = None
        try:
            result = await self._call_in_turn(site, encoded)
            return result
        finally:
            gate.leave(key, ahead=ahead, answered=isinstance(result, Answered))

    async def _call_in_turn(self, site: Site, encoded: EncodedRequest) -> Answered | CallFailure:
        """One call, when the lane has room and is open, and the budget allows it."""
        lane, slots = site.lane, self._desk.slots
        while True:
            permit = await lane.acquire(
                self._request.assignment.route,
                self._priority,
                falls_back=self._falls_back(site),
                within_s=self._left_s(),
            )
            try:
                await slots.acquire(self._priority)
                try:
                    result = await self._call_if_allowed(site, encoded, permit)
                finally:
                    slots.release()
            finally:
                lane.release(permit)
            if result is not None:
                return result

    def _falls_back(self, site: Site) -> bool:
        """Whether the chain goes on behind this backend."""
        return self._request.assignment.chain[-1] != site.name

    def _left_s(self) -> float:
        """Seconds until the deadline, which begins with the first call."""
        return (
            math.inf
            if self._first_call_at is None
            else self._desk.limits.document_deadline_s - self._elapsed()
        )

    def _refusal(self, site: Site, permit: Permit) -> CallFailure | None:
        """Why nothing is sent for this document now: its lane is closed, or its deadline has passed."""
        self._check_going_on()
        closed = site.lane.refusal(falls_back=self._falls_back(site), permit=permit)
        if closed is None and self._elapsed() >= self._desk.limits.document_deadline_s:
            return _refused(FailureClass.DEADLINE, _deadline_sentence(self._desk.limits))
        return closed

    async def _call_if_allowed(
        self, site: Site, encoded: EncodedRequest, permit: Permit
    ) -> Answered | CallFailure | None:
        """One call; None when the lane was told to wait, or closed, since it gave the permit."""
        desk, lane = self._desk, site.lane
        refusal = self._refusal(site, permit)
        if refusal is not None or lane.is_stopped(permit):
            return refusal
        try:
            key = await site.secret()
        except TokenError as error:
            return _refused(FailureClass.AUTHENTICATION, str(error))
        worst = worst_case_online(site, encoded, desk.clock.now())
        if worst is None and desk.refuse_unknown_price:
            return _refused(
                FailureClass.UNKNOWN_PRICE,
                f"the price book has no price for {site.backend.model!r} of {site.backend.provider}, so that "
                f"the budget can't be kept; no call was made",
            )
        need = Need(self._request.assignment.route, worst or ZERO, site.worst_tokens(encoded))
        refused = await reserve(desk.budget, desk.caps, need)
        if refused is not None:
            return refused
        call, spent = None, Need(need.route, ZERO, 0)
        try:
            if self._book.bounded is not None:
                await self._book.bounded.room()  # from here to the record nothing is waited for
            if lane.is_stopped(permit) or self._refusal(site, permit) is not None:
                return None
            call = self._intend(site, encoded, worst)
            spent = need  # whatever goes wrong from here on, the worst case stays counted
            started = desk.clock.monotonic()
            result, actual = await self._exchange(site, encoded, call, key, permit)
            self._show(site, result, started)
            spent = Need(need.route, actual, _tokens_of(result, need))
            if isinstance(result, Answered):
                lane.passed(permit, result.answer.usage)
            else:
                lane.heed(result, permit)
            return result
        finally:
            desk.settle(None if call is None else self._book.bounded, need, spent)

    def _show(self, site: Site, result: Answered | CallFailure, started: float) -> None:
        """Tells who watches of a call that has ended."""
        observer = self._desk.observer
        if observer is not None:
            seen = seen_call(
                result,
                site=site,
                batch_id=self._book.batch_id,
                attempt=self._book.attempt,
                route=self._request.assignment.route,
                seconds=self._desk.clock.monotonic() - started,
            )
            observer.called(seen)

    def _intend(self, site: Site, encoded: EncodedRequest, worst: Decimal | None) -> RecordedCall:
        """Records that a call is about to be sent; if that fails, none is, and nothing is spent."""
        assignment, number = self._request.assignment, self._tally.calls + 1
        call = self._book.intend(assignment.row, assignment.route, site, encoded, number, worst)
        self._tally.calls = number
        self._tally.request_sha256 = encoded.sha256
        return call

    async def _exchange(
        self, site: Site, encoded: EncodedRequest, call: RecordedCall, key: Secret | None, permit: Permit
    ) -> tuple[Answered | CallFailure, Decimal]:
        """Sends and records. Gives the result and what it counts for in the budget."""
        desk = self._desk
        started = desk.clock.monotonic()
        if self._first_call_at is None:
            self._first_call_at = started
        task = asyncio.current_task()
        assert task is not None
        desk.sending.add(task)
        desk.counters.calls += 1
        desk.counters.in_flight += 1
        try:
            response = await desk.transport.send(encoded.wire, key, self._timeout_s())
        except NotSentError as error:
            failure = CallFailure(FailureClass.CONNECTION, _masked(key, str(error)), final=error.final)
            self._book.failed(call, failure)
            return failure, ZERO
        except LostError as error:
            failure_class = FailureClass.TIMEOUT if error.cause == "timeout" else FailureClass.CONNECTION
            failure = CallFailure(failure_class, f"{error}; it may have been billed", ambiguous=True)
            return self._lost(site, call, error.cause, failure), call.worst or ZERO
        except asyncio.CancelledError:
            self._book.unknown(call, "cancelled", "the run was cancelled while the call was in flight")
            raise
        finally:
            desk.sending.discard(task)
            desk.counters.in_flight -= 1
        site.lane.read(permit, response.headers)
        response = _kept(key, response)
        return self._settle(site, call, response, key, (desk.clock.monotonic() - started) * 1000)

    def _timeout_s(self, longest: float | None = None) -> float:
        left = self._desk.limits.document_deadline_s - self._elapsed()
        return min(self._desk.limits.request_timeout_s if longest is None else longest, left)

    def _settle(
        self,
        site: Site,
        call: RecordedCall,
        response: WireResponse,
        key: Secret | None,
        latency_ms: float,
    ) -> tuple[Answered | CallFailure, Decimal]:
        """Records what a response is; the answer is used only after that."""
        result = site.codec.decode(response)
        if isinstance(result, CallFailure):
            result = replace(result, message=_masked(key, result.message))
            if result.ambiguous:
                lost = self._lost(site, call, "malformed", result, response.body)
                return lost, call.worst or ZERO
            self._book.failed(call, result)
            return result, ZERO
        charge = charge_online(site, result, self._desk.clock.now())
        self._book.answered(call, response, result, charge, latency_ms, self._request.assignment.document_id)
        self._tally.add_answer(result.usage, charge)
        counters = self._desk.counters
        counters.answered += 1
        counters.repairs += self._request.rejected is not None
        counters.amount += charge.amount or ZERO
        counters.list_amount += charge.list_amount or ZERO
        answer = self._desk.schemas.check(result, self._request.json_schema)
        answered = Answered(site, answer, call.request_sha256, latency_ms, call.final["at"], call)
        billed = call.worst if charge.list_amount is None else charge.list_amount
        return answered, billed or ZERO

    def _lost(
        self, site: Site, call: RecordedCall, cause: str, failure: CallFailure, body: bytes = b""
    ) -> CallFailure:
        self._book.unknown(call, cause, failure.message, body)
        self._tally.add_ambiguous(site.name, self._book.amount_at_stake(call.worst))
        return failure


def _tokens_of(result: Answered | CallFailure, need: Need) -> int:
    """What a call counts for where tokens are capped; the most that it can be where nobody says."""
    if isinstance(result, CallFailure):
        return need.tokens if result.ambiguous else 0
    usage = result.answer.usage
    if usage.input_tokens is None:
        return need.tokens
    return usage.input_tokens + (usage.output_tokens or 0)


def _waits_in_lane(site: Site, failure: CallFailure) -> bool:
    """Whether the lane does the waiting: it is parked, or it paces calls after a 429 that names no time.

    Not a short wait: the call that puts it to the test shall be another document's.
    """
    told_s, is_parked = failure.retry_after_s, site.lane.park_wait() > 0
    if told_s:
        return is_parked and told_s > SHORT_S
    return is_parked or failure.failure is FailureClass.RATE_LIMITED


def _unknown_before(site: Site, calls: int) -> CallFailure:
    return _refused(
        FailureClass.TIMEOUT,
        f"{calls} earlier calls of this attempt to backend {site.name!r} have no known end and may have been "
        f"billed; no further one was made",
    )


def _refused(failure: FailureClass, message: str) -> CallFailure:
    return CallFailure(failure, message, sent=False, final=True)


def _deadline_sentence(limits: Limits) -> str:
    return f"the document's deadline of {limits.document_deadline_s:g} s passed"


def _kept(key: Secret | None, response: WireResponse) -> WireResponse:
    """What of a response is looked at and recorded: some headers, and nowhere the key that it may echo."""
    headers = {name: value for name in KEPT_HEADERS if (value := response.headers.get(name))}
    if key is None:
        return WireResponse(response.status, headers, response.body)
    masked = {name: key.mask_text(value) for name, value in headers.items()}
    return WireResponse(response.status, masked, key.mask(response.body))


def _masked(key: Secret | None, message: str) -> str:
    return message if key is None else key.mask_text(message)


def _last_failure(failure: CallFailure, verdict: Verdict, calls: int, limits: Limits) -> CallFailure:
    if verdict.word == "deadline":
        return CallFailure(
            FailureClass.DEADLINE,
            f"{_deadline_sentence(limits)}, or would before another call; the last one: {failure.message}",
        )
    if calls > 1 and failure.sent:
        return replace(failure, message=f"{failure.message} (the last of {calls} calls)")
    return failure
