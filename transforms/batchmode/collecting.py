"""From results of a provider's batch to ends of calls in the ledgers, where the next attempt replays them.

Every request of the job that was sent gets exactly one end: answered, failed or unknown. Those that ask
what another asks share its answer, or get nothing and are due again. What was recorded before is left as
it is, so that collecting again after a crash changes nothing. A ticket is closed when all its ends are
durable.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime

from schemas.errors import LedgerError
from schemas.failures import FailureClass
from transforms.batchmode.jobs import JobState, TicketRange
from transforms.batchmode.leaders import LeadersAnswers, origin_of
from transforms.batchmode.results import Result, Spool
from transforms.batchmode.tickets import Ticket, close_ticket, is_open, read_ticket
from transforms.call.book import BatchBook
from transforms.call.discount import batch_charge
from transforms.call.ledger import RecordedCall
from transforms.call.ports import Clock, LedgerStore
from transforms.call.request import CallBatch
from transforms.call.share import SharedAnswer
from transforms.call.site import Site
from transforms.call.wire import CallFailure, WireResponse
from transforms.claim import open_claims
from transforms.layout import newest_attempt
from transforms.store import Store


class Collector:
    """Writes the ends of a job's requests into ledgers, as calls of the attempts that are to come.

    A worker that stood still may yet commit an attempt whose calls have ended: its record would know nothing
    of a further one. So a batch that is claimed is left alone, and where the ledger says that an attempt has
    ended, what comes back is for the one behind it.
    """

    def __init__(self, store: Store, ledgers: LedgerStore, sites: Mapping[str, Site], clock: Clock) -> None:
        self._store = store
        self._ledgers = ledgers
        self._sites = sites
        self._clock = clock

    def collect(self, state: JobState, spool: Spool | None, otherwise: CallFailure) -> Counter[str]:
        """Record an end for every request of a job; the number of each kind.

        `otherwise` is the end of a request that `spool` has no line of.

        Raises:
            BatchClaimedError, LedgerError: a ledger can't be used now. The rest is done by a later run.
        """
        return asyncio.run(self._collect(state, spool, otherwise))

    async def _collect(self, state: JobState, spool: Spool | None, otherwise: CallFailure) -> Counter[str]:
        ends: Counter[str] = Counter()
        leaders = LeadersAnswers(self._store, state.job.repeated)
        with closing(open_claims(self._store.root)) as claims:
            for part in state.job.tickets:
                if not is_open(self._store, part.batch_id, part.number):
                    continue
                ticket = read_ticket(self._store, part.batch_id, part.number)
                claims.take(part.batch_id)
                ends += await self._settle(state, part, ticket, spool, otherwise, leaders)
                claims.give_back(part.batch_id)
                close_ticket(self._store, part.batch_id, part.number)
        return ends

    async def _settle(
        self,
        state: JobState,
        part: TicketRange,
        ticket: Ticket,
        spool: Spool | None,
        otherwise: CallFailure,
        leaders: LeadersAnswers,
    ) -> Counter[str]:
        ends: Counter[str] = Counter()
        site = self._sites.get(ticket.backend)
        if site is None:
            raise LedgerError(
                f"the workload has no backend {ticket.backend!r} any more, whose answers are to be collected"
            )
        log = await self._ledgers.open(ticket.batch_id)
        try:
            # only now: until the ledger was this process's another might have committed
            to_come = CallBatch(ticket.batch_id, newest_attempt(self._store, ticket.batch_id) + 1, ())
            book = BatchBook(log, to_come, "live", self._clock, behind_ended=True)
            sent_at = state.submitted_at or state.job.created_at
            for index, item in enumerate(ticket.items):
                repeat = state.job.repeated.get(part.first + index)
                if repeat is not None:
                    told = leaders.find(repeat)
                    ends["shared" if told is not None else "left"] += 1
                    if told is not None:
                        _share(book, site, item.request_sha256, item.pairs, told)
                    continue
                call = book.collect(ticket.name, ticket.held(item), sent_at)
                if call.end is None:
                    result = spool.get(part.first + index) if spool is not None else None
                    self._end(book, site, call, result or otherwise, item.document_id)
                if call.end == "answered":
                    told = SharedAnswer.of(origin_of(book.batch_id, item), call.final, fresh=True)
                    _share(book, site, item.request_sha256, item.also, told)
                ends[str(call.end)] += 1
            await book.sync()
        finally:
            await log.close()
        return ends

    def _end(
        self, book: BatchBook, site: Site, call: RecordedCall, result: Result, document_id: str | None
    ) -> None:
        if isinstance(result, WireResponse):
            response = _kept(site, result)
            answer = site.codec.decode(response)
            if not isinstance(answer, CallFailure):
                now = self._clock.now()
                waited = (now - datetime.fromisoformat(call.sent_at)).total_seconds()
                charge = batch_charge(site, answer, now)
                book.answered(call, response, answer, charge, waited * 1000, document_id)
                return
            result = answer
        failure = result if site.key is None else replace(result, message=site.key.mask_text(result.message))
        if failure.ambiguous:
            cause = "timeout" if failure.failure is FailureClass.TIMEOUT else "malformed"
            book.unknown(call, cause, failure.message)
        else:
            book.failed(call, failure)


def _share(
    book: BatchBook,
    site: Site,
    request_sha256: str,
    pairs: Iterable[tuple[int, str]],
    told: SharedAnswer,
) -> None:
    """Hand an answer on to rows that asked exactly the same."""
    for row, route in pairs:
        known = book.recorded(row, route)
        if not any(other.end == "shared" and other.request_sha256 == request_sha256 for other in known):
            book.shared(row, route, site, request_sha256, told)


def _kept(site: Site, response: WireResponse) -> WireResponse:
    """The response without the key, which it may echo."""
    if site.key is None:
        return response
    return WireResponse(response.status, response.headers, site.key.mask(response.body))
