"""One document's question: what is asked now, on which wire, until when, and what it has cost so far."""

from __future__ import annotations

import math

from schemas.errors import BatchError
from schemas.failures import FailureClass
from schemas.limits import Limits
from transforms.call.book import BatchBook
from transforms.call.desk import CANCELLED, Desk
from transforms.call.ledger import RecordedCall
from transforms.call.request import CallRequest
from transforms.call.site import Site
from transforms.call.tally import Tally
from transforms.call.wire import CallFailure, EncodedRequest, unsent


class Question:
    """What the parts of a document's way share: what it asks, of whom it is, and since when.

    `request` is what is asked now: an answer that does not fit is followed by a second request about it.
    Of two questions that wait, the one with the smaller `priority` goes first.
    """

    __slots__ = ("_encoded", "_first_call_at", "book", "desk", "priority", "request", "tally")

    def __init__(self, desk: Desk, book: BatchBook, request: CallRequest, priority: int) -> None:
        self.desk = desk
        self.book = book
        self.request = request
        self.priority = priority
        self.tally = Tally(request)
        self._first_call_at: float | None = None
        self._encoded: tuple[Site, CallRequest, EncodedRequest | CallFailure] | None = None

    def recorded(self) -> list[RecordedCall]:
        """The calls for it in this attempt that the ledger had when the batch was begun."""
        assignment = self.request.assignment
        return self.book.recorded(assignment.row, assignment.route)

    def encode(self, site: Site) -> EncodedRequest | CallFailure:
        """The request on a backend's wire; the last one is kept, because encoding is what costs most."""
        kept = self._encoded
        if kept is not None and kept[0] is site and kept[1] is self.request:
            return kept[2]
        encoded: EncodedRequest | CallFailure
        try:
            encoded = site.encode(self.request)
        except ValueError as error:
            encoded = unsent(FailureClass.INVALID_TEXT, str(error))
        self._encoded = (site, self.request, encoded)
        return encoded

    def falls_back(self, site: Site) -> bool:
        """Whether the chain goes on behind this backend."""
        return self.request.assignment.chain[-1] != site.name

    def begin(self, now: float) -> None:
        """A call is being sent: the first one starts the time that the document has."""
        if self._first_call_at is None:
            self._first_call_at = now

    def elapsed(self) -> float:
        """Seconds since the first call."""
        if self._first_call_at is None:
            return 0.0
        return self.desk.clock.monotonic() - self._first_call_at

    def left_s(self) -> float:
        """Seconds until the deadline, which begins with the first call."""
        if self._first_call_at is None:
            return math.inf
        return self.desk.limits.document_deadline_s - self.elapsed()

    def timeout_s(self, longest: float) -> float:
        """Seconds that may be waited for an answer: `longest`, or less where the deadline is nearer."""
        return min(longest, self.desk.limits.document_deadline_s - self.elapsed())

    def too_late(self) -> CallFailure:
        """The failure of a document whose deadline has passed."""
        return unsent(FailureClass.DEADLINE, deadline_sentence(self.desk.limits))

    def check_going_on(self) -> None:
        """Raises BatchError when nothing new may be sent for the batch."""
        if self.desk.closing or self.book.stopped:
            raise BatchError(CANCELLED)


def deadline_sentence(limits: Limits) -> str:
    """What is said of a document whose deadline has passed."""
    return f"the document's deadline of {limits.document_deadline_s:g} s passed"
