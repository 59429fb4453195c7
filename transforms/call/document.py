"""One document along its chain of backends: replayed from the ledger, or called, retried, passed on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

from schemas.errors import BatchError
from schemas.failures import FailureClass, is_retryable
from schemas.outcomes import FREE, ZERO, Charge, Outcome, Usage
from schemas.workload import Limits
from transforms.call.book import BatchBook
from transforms.call.budget import Budget
from transforms.call.lane import Slots
from transforms.call.ledger import RecordedCall
from transforms.call.ports import Clock, LostError, NotSentError, Transport
from transforms.call.request import CallRequest
from transforms.call.retry import FALLS_BACK, RetryPolicies, Verdict
from transforms.call.site import Site
from transforms.call.structured import SchemaBook
from transforms.call.wire import Answer, CallFailure, EncodedRequest, WireResponse

CANCELLED = "the run was cancelled; nothing of this batch is committed, run again"


@dataclass(slots=True)
class Counters:
    """What the engine has done; changed on its event loop, read from anywhere."""

    calls: int = 0
    in_flight: int = 0
    answered: int = 0
    replayed: int = 0
    amount: Decimal = ZERO
    list_amount: Decimal = ZERO


@dataclass(slots=True)
class Desk:
    """What all documents of an engine share."""

    sites: Mapping[str, Site]
    clock: Clock
    transport: Transport
    budget: Budget
    limits: Limits
    policies: RetryPolicies
    slots: Slots
    schemas: SchemaBook
    refuse_unknown_price: bool
    counters: Counters = field(default_factory=Counters)
    sending: set[asyncio.Task[object]] = field(default_factory=set)
    closing: bool = False


@dataclass(slots=True)
class _Tally:
    """What a document has cost so far, in this attempt."""

    calls: int = 0
    replayed: int = 0
    ambiguous: int = 0
    ambiguous_amount: Decimal = ZERO
    usage: Usage = field(default_factory=Usage)
    charge: Charge = FREE
    tried: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Answered:
    """An answer, whose it is, and how it came."""

    site: Site
    answer: Answer
    request_sha256: str
    latency_ms: float
    answered_at: str


class DocumentRun:
    """Gets one assignment its outcome. Used once."""

    def __init__(self, desk: Desk, book: BatchBook, request: CallRequest, priority: int) -> None:
        self._desk = desk
        self._book = book
        self._request = request
        self._priority = priority
        self._tally = _Tally()
        self._ambiguous_at: dict[str, int] = {}
        self._first_call_at: float | None = None
        self._last: tuple[Site, str] | None = None  # whom the last request went to, and its digest

    async def outcome(self) -> Outcome:
        """The outcome; raises LedgerError or BatchError when the whole batch can't go on."""
        replayed = self._replay()
        if replayed is not None:
            return self._answered_outcome(replayed)
        failures: list[tuple[str, CallFailure]] = []
        for name in self._request.assignment.chain:
            site = self._desk.sites[name]
            if name not in self._tally.tried:
                self._tally.tried.append(name)
            result = await self._try(site)
            if isinstance(result, _Answered):
                return self._answered_outcome(result)
            failures.append((name, result))
            if result.failure not in FALLS_BACK:
                break
        return self._failed_outcome(failures)

    def _replay(self) -> _Answered | None:
        """Counts what the ledger has for this document, and the answer in it, if there is one."""
        found: _Answered | None = None
        tally = self._tally
        for call in self._book.recorded(self._request.assignment.row, self._request.assignment.route):
            tally.calls += 1
            if call.backend not in tally.tried:
                tally.tried.append(call.backend)
            if call.end == "unknown":
                self._count_ambiguous(call.backend, call.worst)
            elif call.end == "answered":
                tally.usage += call.usage
                tally.charge += call.charge
                found = found or self._recorded_answer(call)
        if found is not None:
            tally.replayed += 1
            self._desk.counters.replayed += 1
        return found

    def _recorded_answer(self, call: RecordedCall) -> _Answered | None:
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
        return _Answered(site, answer, call.request_sha256, call.final["latency_ms"], call.final["at"])

    def _encode(self, site: Site) -> EncodedRequest | CallFailure:
        try:
            return site.encode(self._request)
        except ValueError as error:
            return CallFailure(FailureClass.INVALID_TEXT, str(error), sent=False, final=True)

    async def _try(self, site: Site) -> _Answered | CallFailure:
        """All calls to one backend, until an answer or a failure that stays."""
        encoded = self._encode(site)
        if isinstance(encoded, CallFailure):
            return encoded
        # Calls that may have been billed in an earlier life of this attempt count against the limit.
        calls = self._ambiguous_at.get(site.name, 0)
        ambiguous = 0
        if calls >= self._desk.limits.max_calls:
            return _unknown_before(site, calls)
        while True:
            result = await self._call(site, encoded)
            if isinstance(result, _Answered):
                return result
            calls += result.sent
            ambiguous += result.ambiguous
            verdict = self._desk.policies.next_wait(result, calls, ambiguous, self._elapsed())
            if result.sent:
                site.lane.heed(result)
            if verdict.word != "again" or site.lane.refusal() is not None:
                return _last_failure(result, verdict, calls, self._desk.limits)
            self._check_going_on()
            if site.lane.park_wait() <= 0:  # a parked lane does the waiting for all its documents
                await self._desk.clock.sleep(verdict.wait_s)

    def _check_going_on(self) -> None:
        if self._desk.closing or self._book.stopped:
            raise BatchError(CANCELLED)

    def _elapsed(self) -> float:
        return 0.0 if self._first_call_at is None else self._desk.clock.monotonic() - self._first_call_at

    async def _call(self, site: Site, encoded: EncodedRequest) -> _Answered | CallFailure:
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

    async def _call_if_allowed(self, site: Site, encoded: EncodedRequest) -> _Answered | CallFailure:
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
    ) -> tuple[_Answered | CallFailure, Decimal]:
        """Intends, sends, records. Gives the result and what it counts for in the budget."""
        desk, assignment = self._desk, self._request.assignment
        call = self._book.intend(
            assignment.row, assignment.route, site, encoded, self._tally.calls + 1, worst
        )
        self._tally.calls += 1
        self._last = (site, encoded.sha256)
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
    ) -> tuple[_Answered | CallFailure, Decimal]:
        """Records what a response is; the answer is used only after that."""
        if site.key is not None:
            response = replace(response, body=site.key.mask(response.body))
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
        self._tally.usage += result.usage
        self._tally.charge += charge
        counters = self._desk.counters
        counters.answered += 1
        counters.amount += charge.amount or ZERO
        counters.list_amount += charge.list_amount or ZERO
        answer = self._desk.schemas.check(result, self._request.json_schema)
        answered = _Answered(site, answer, call.request_sha256, latency_ms, call.final["at"])
        billed = call.worst if charge.list_amount is None else charge.list_amount
        return answered, billed or ZERO

    def _lost(
        self, site: Site, call: RecordedCall, cause: str, failure: CallFailure, body: bytes = b""
    ) -> CallFailure:
        self._book.unknown(call, cause, failure.message, body)
        self._count_ambiguous(site.name, call.worst)
        return failure

    def _count_ambiguous(self, backend: str, worst: Decimal | None) -> None:
        self._ambiguous_at[backend] = self._ambiguous_at.get(backend, 0) + 1
        self._tally.ambiguous += 1
        self._tally.ambiguous_amount += self._book.amount_at_stake(worst)

    def _outcome(self) -> Outcome:
        tally = self._tally
        return Outcome(
            assignment=self._request.assignment,
            operation="chat",
            usage=tally.usage,
            charge=tally.charge,
            calls=tally.calls,
            ambiguous_calls=tally.ambiguous,
            ambiguous_amount=tally.ambiguous_amount,
            replayed_calls=tally.replayed,
            chain_tried=tuple(tally.tried),
            document_sha256=self._request.document_sha256,
            prompt_sha256=self._request.prompt_sha256,
        )

    def _answered_outcome(self, answered: _Answered) -> Outcome:
        answer, backend = answered.answer, answered.site.backend
        return replace(
            self._outcome(),
            failure=answer.failure,
            message=answer.message,
            answer=answer.text,
            output=answer.output,
            backend=answered.site.name,
            provider=backend.provider,
            request_model=backend.model,
            response_model=answer.response_model,
            response_id=answer.response_id,
            finish_reasons=answer.finish_reasons,
            request_sha256=answered.request_sha256,
            latency_ms=answered.latency_ms,
            answered_at=answered.answered_at,
        )

    def _failed_outcome(self, failures: list[tuple[str, CallFailure]]) -> Outcome:
        """The last failure that a rerun tries again, else the last; the message tells of all."""
        name, failure = next(
            ((name, failure) for name, failure in reversed(failures) if is_retryable(failure.failure)),
            failures[-1],
        )
        told = "; ".join(f"backend {name!r}: {failure.message}" for name, failure in failures)
        backend = self._desk.sites[name].backend
        return replace(
            self._outcome(),
            failure=failure.failure,
            message=told,
            backend=name,
            provider=backend.provider,
            request_model=backend.model,
            request_sha256=self._last[1] if self._last else None,
        )


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
