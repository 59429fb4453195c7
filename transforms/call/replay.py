"""What the ledger has for a document already: counted as it was, and answered without a call."""

from __future__ import annotations

from transforms.call.identical import offer
from transforms.call.ledger import RecordedCall
from transforms.call.question import Question
from transforms.call.site import Site
from transforms.call.tally import Answered
from transforms.call.wire import CallFailure


def replay(question: Question) -> Answered | None:
    """Counts what the ledger has for this document, and the answer in it, if there is one."""
    found: Answered | None = None
    desk, book, tally = question.desk, question.book, question.tally
    for call in question.recorded():
        tally.try_backend(call.backend)
        if call.end == "shared":
            tally.add_share(call.origin, desk.sites.get(call.backend))
            found = found or _recorded_answer(question, call)
            continue
        tally.calls += 1
        if call.end == "unknown":
            tally.add_ambiguous(call.backend, book.amount_at_stake(call.worst))
        elif call.end == "answered":
            tally.add_answer(call.usage, call.charge)
            found = found or _recorded_answer(question, call)
    if found is not None:
        tally.replayed += found.call.end == "answered"
        desk.counters.replayed += 1
    return found


def replay_repair(question: Question, site: Site) -> Answered | None:
    """The answer to the repair that the ledger has, already counted by `replay`."""
    for call in question.recorded():
        found = _recorded_answer(question, call) if call.end in ("answered", "shared") else None
        if found is not None and found.site is site:
            question.tally.replayed += call.end == "answered"
            return found
    return None


def _recorded_answer(question: Question, call: RecordedCall) -> Answered | None:
    """A recorded call's answer, if it is one to what is asked now, of a backend of the chain."""
    desk, request = question.desk, question.request
    site = desk.sites.get(call.backend)
    if site is None or call.backend not in request.assignment.chain:
        return None
    encoded = question.encode(site)
    if isinstance(encoded, CallFailure) or encoded.sha256 != call.request_sha256:
        return None
    answer = site.codec.decode(call.response)
    if isinstance(answer, CallFailure):
        return None
    answer = desk.schemas.check(answer, request.json_schema)
    if call.end == "answered":
        offer(question, site, encoded, call)
    return Answered(site, answer, call.request_sha256, call.final["latency_ms"], call.final["at"], call)
