"""One document along its chain of backends: replayed from the ledger, or called, retried, passed on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

from schemas.errors import BatchError
from schemas.failures import FailureClass
from schemas.outcomes import ZERO, Outcome
from schemas.workload import Limits
from transforms.call.book import BatchBook
from transforms.call.desk import CANCELLED, Desk
from transforms.call.held import hold
from transforms.call.ledger import RecordedCall
from transforms.call.ports import LostError, NotSentError
from transforms.call.request import CallRequest
from transforms.call.retry import FALLS_BACK, Verdict
from transforms.call.site import Site
from transforms.call.tally import Answered, Tally
from transforms.call.wire import KEPT_HEADERS, CallFailure, EncodedRequest, WireResponse


class DocumentRun:
    """Gets one assignment its outcome. Used once."""

    def __init__(self, desk: Desk, book: BatchBook, request: CallRequest, priority: int) -> None:
        self._desk = desk
        self._book = book
        self._request = request
        self._priority = priority
        self._tally = Tally(request)
        self._first_call_at: float | None = None

    async def outcome(self) -> Outcome:
        """The outcome; raises LedgerError or BatchError when the whole batch can't go on."""
        replayed = self._replay()
        if replayed is not None:
            return self._tally.answered(replayed)
        failures: list[tuple[Site, CallFailure]] = []
        for name in self._request.assignment.chain:
            site = self._desk.sites[name]
            self._tally.try_backend(name)
            result = await self._hold(site) or await self._try(site)
            if isinstance(result, Answered):
                return self._tally.answered(result)
            failures.append((site, result))
            if result.failure not in FALLS_BACK:
                break
        return self._tally.failed(failures)

    def _replay(self) -> Answered | None:
        """Counts what the ledger has for this document, and the answer in it, if there is one."""
        found: Answered | None = None
        tally = self._tally
        for call in self._book.recorded(self._request.assignment.row, self._request.assignment.route):
            tally.calls += 1
            tally.try_backend(call.backend)
            if call.end == "unknown":
                tally.add_ambiguous(call.backend, self._book.amount_at_stake(call.worst))
            elif call.end == "answered":
                tally.add_answer(call.usage, call.charge)
                found = found or self._recorded_answer(call)
        if found is not None:
            tally.replayed += 1
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
        return Answered(site, answer, call.request_sha256, call.final["latency_ms"], call.final["at"])

    def _encode(self, site: Site) -> EncodedRequest | CallFailure:
        try:
            return site.encode(self._request)
        except ValueError as error:
            return CallFailure(FailureClass.INVALID_TEXT, str(error), sent=False, final=True)

    async def _hold(self, site: Site) -> CallFailure | None:
        """Why the document waits for a provider batch; None when its backend is called online."""
        outbox, assignment = self._book.outbox, self._request.assignment
        encoded = self._encode(site) if outbox is not None and site.backend.mode == "batch" else None
        if outbox is None or not isinstance(encoded, EncodedRequest):
            return None
        recorded = self._book.recorded(assignment.row, assignment.route)
        return await hold(self._desk, outbox, (assignment.row, assignment.route), site, encoded, recorded)

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
        while True:
            result = await self._call(site, encoded)
            if isinstance(result, Answered):
                return result
            calls += result.sent
            ambiguous += result.ambiguous
            if result.sent:
                site.lane.heed(result)
            closed = site.lane.refusal()
            if closed is not None:
                return closed if closed.failure is result.failure else result
            verdict = self._desk.policies.next_wait(result, calls, ambiguous, self._elapsed())
            if verdict.word != "again":
                return _last_failure(result, verdict, calls, self._desk.limits)
            self._check_going_on()
            if site.lane.park_wait() <= 0:  # a parked lane does the waiting for all its documents
                await self._desk.clock.sleep(verdict.wait_s)

    def _check_going_on(self) -> None:
        if self._desk.closing or self._book.stopped:
            raise BatchError(CANCELLED)

    def _elapsed(self) -> float:
        return 0.0 if self._first_call_at is None else self._desk.clock.monotonic() - self._first_call_at

    async def _call(self, site: Site, encoded: EncodedRequest) -> Answered | CallFailure:
        """One call, when the lane has room and is open, and the budget allows it."""
        lane_slots, slots = site.lane.slots, self._desk.slots
        await lane_slots.acquire(self._priority)
        try:
            while True:
                wait = site.lane.park_wait()
                if wait > 0:  # the engine's own slots stay free for other lanes meanwhile
                    await self._desk.clock.sleep(wait)
                    continue
                await slots.acquire(self._priority)
                if site.lane.park_wait() <= 0:
                    break
                slots.release()
            try:
                return await self._call_if_allowed(site, encoded)
            finally:
                slots.release()
        finally:
            lane_slots.release()

    async def _call_if_allowed(self, site: Site, encoded: EncodedRequest) -> Answered | CallFailure:
        desk = self._desk
        self._check_going_on()
        refusal = site.lane.refusal()
        if refusal is not None:
            return refusal
        if self._elapsed() >= desk.limits.document_deadline_s:
            return _refused(FailureClass.DEADLINE, _deadline_sentence(desk.limits))
        worst = site.worst_case(encoded, desk.clock.now())
        if worst is None and desk.refuse_unknown_price:
            return _refused(
                FailureClass.UNKNOWN_PRICE,
                f"the price book has no price for {site.backend.model!r} of {site.backend.provider}, so that "
                f"the budget can't be kept; no call was made",
            )
        if not await desk.budget.reserve(worst or ZERO):
            return _refused(FailureClass.BUDGET_EXHAUSTED, desk.budget.sentence)
        actual = worst or ZERO  # whatever goes wrong from here on, the worst case stays counted
        try:
            result, actual = await self._exchange(site, encoded, worst)
            return result
        finally:
            desk.budget.settle(worst or ZERO, actual)

    async def _exchange(
        self, site: Site, encoded: EncodedRequest, worst: Decimal | None
    ) -> tuple[Answered | CallFailure, Decimal]:
        """Intends, sends, records. Gives the result and what it counts for in the budget."""
        desk, assignment = self._desk, self._request.assignment
        call = self._book.intend(
            assignment.row, assignment.route, site, encoded, self._tally.calls + 1, worst
        )
        self._tally.calls += 1
        self._tally.request_sha256 = encoded.sha256
        started = desk.clock.monotonic()
        if self._first_call_at is None:
            self._first_call_at = started
        task = asyncio.current_task()
        assert task is not None
        desk.sending.add(task)
        desk.counters.calls += 1
        desk.counters.in_flight += 1
        try:
            response = await desk.transport.send(encoded.wire, site.key, self._timeout_s())
        except NotSentError as error:
            failure = CallFailure(FailureClass.CONNECTION, _masked(site, str(error)), final=error.final)
            self._book.failed(call, failure)
            return failure, ZERO
        except LostError as error:
            failure_class = FailureClass.TIMEOUT if error.cause == "timeout" else FailureClass.CONNECTION
            failure = CallFailure(failure_class, f"{error}; it may have been billed", ambiguous=True)
            return self._lost(site, call, error.cause, failure), worst or ZERO
        except asyncio.CancelledError:
            self._book.unknown(call, "cancelled", "the run was cancelled while the call was in flight")
            raise
        finally:
            desk.sending.discard(task)
            desk.counters.in_flight -= 1
        return self._settle(site, call, response, (desk.clock.monotonic() - started) * 1000)

    def _timeout_s(self) -> float:
        left = self._desk.limits.document_deadline_s - self._elapsed()
        return min(self._desk.limits.request_timeout_s, left)

    def _settle(
        self, site: Site, call: RecordedCall, response: WireResponse, latency_ms: float
    ) -> tuple[Answered | CallFailure, Decimal]:
        """Records what a response is; the answer is used only after that."""
        response = _kept(site, response)
        result = site.codec.decode(response)
        if isinstance(result, CallFailure):
            result = replace(result, message=_masked(site, result.message))
            if result.ambiguous:
                lost = self._lost(site, call, "malformed", result, response.body)
                return lost, call.worst or ZERO
            self._book.failed(call, result)
            return result, ZERO
        charge = site.charge(result, self._desk.clock.now())
        self._book.answered(call, response, result, charge, latency_ms)
        self._tally.add_answer(result.usage, charge)
        counters = self._desk.counters
        counters.answered += 1
        counters.amount += charge.amount or ZERO
        counters.list_amount += charge.list_amount or ZERO
        answer = self._desk.schemas.check(result, self._request.json_schema)
        answered = Answered(site, answer, call.request_sha256, latency_ms, call.final["at"])
        billed = call.worst if charge.list_amount is None else charge.list_amount
        return answered, billed or ZERO

    def _lost(
        self, site: Site, call: RecordedCall, cause: str, failure: CallFailure, body: bytes = b""
    ) -> CallFailure:
        self._book.unknown(call, cause, failure.message, body)
        self._tally.add_ambiguous(site.name, self._book.amount_at_stake(call.worst))
        return failure


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


def _kept(site: Site, response: WireResponse) -> WireResponse:
    """What of a response is looked at and recorded: some headers, and nowhere the key that it may echo."""
    headers = {name: _masked(site, value) for name in KEPT_HEADERS if (value := response.headers.get(name))}
    body = response.body if site.key is None else site.key.mask(response.body)
    return WireResponse(response.status, headers, body)


def _masked(site: Site, message: str) -> str:
    return message if site.key is None else site.key.mask_text(message)


def _last_failure(failure: CallFailure, verdict: Verdict, calls: int, limits: Limits) -> CallFailure:
    if verdict.word == "deadline":
        return CallFailure(
            FailureClass.DEADLINE,
            f"{_deadline_sentence(limits)}, or would before another call; the last one: {failure.message}",
        )
    if calls > 1 and failure.sent:
        return replace(failure, message=f"{failure.message} (the last of {calls} calls)")
    return failure
