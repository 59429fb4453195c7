"""Requests that ask exactly what another asks: one of them goes to the provider, the others share its answer.

The one that goes is the leader. Its answer is in the ledger of its own batch of rows, durable before its
ticket is closed; only then do the others take it over. So who names whom is right whatever happens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from schemas.outcomes import SharedFrom
from transforms.batchmode.jobs import JobState, Repeat
from transforms.batchmode.tickets import Ticket, TicketItem, read_ticket
from transforms.call.ledger import fold, places, scan
from transforms.call.ledgers import read_ledger
from transforms.call.share import Place, SharedAnswer
from transforms.call.share_index import frame_reader
from transforms.store import Store

Leaders = dict[tuple[str, str], tuple[str, int, int]]
"""By backend and digest of the request: batch of rows, ticket and position in it."""


def leaders_at_providers(tickets: Iterable[Ticket], jobs: Iterable[JobState]) -> Leaders:
    """The requests of open tickets that some open job sends, or has sent."""
    parts = {(part.batch_id, part.number): (s.job, part) for s in jobs for part in s.job.tickets}
    found: Leaders = {}
    for ticket in tickets:
        job, part = parts.get((ticket.batch_id, ticket.number), (None, None))
        if job is None or part is None:
            continue
        for position, item in enumerate(ticket.items):
            if part.first + position not in job.repeated:
                found[ticket.backend, item.request_sha256] = (ticket.batch_id, ticket.number, position)
    return found


class LeadersAnswers:
    """Finds the answers that the repeated requests of one job share. Leaders' tickets must be closed."""

    def __init__(self, store: Store, repeated: Mapping[int, Repeat]) -> None:
        self._store = store
        self._read_frame = frame_reader(store)
        self._wanted: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for repeat in repeated.values():
            self._wanted[repeat.batch_id].add((repeat.number, repeat.position))
        self._known: dict[str, dict[tuple[int, int], tuple[SharedFrom, int, int]]] = {}

    def find(self, repeat: Repeat) -> SharedAnswer | None:
        """The leader's answer; None when it got none."""
        if repeat.batch_id not in self._known:
            self._known[repeat.batch_id] = self._read(repeat.batch_id)
        found = self._known[repeat.batch_id].get((repeat.number, repeat.position))
        if found is None:
            return None
        origin, offset, checksum = found
        frame = self._read_frame(Place(repeat.batch_id, offset, checksum))
        return None if frame is None else SharedAnswer.of(origin, frame, fresh=True)

    def _read(self, batch_id: str) -> dict[tuple[int, int], tuple[SharedFrom, int, int]]:
        """Where the answers of the wanted requests of a batch stand in its ledger."""
        content = read_ledger(self._store, batch_id) or b""
        frames, _ = scan(content)
        calls = fold(frames, batch_id).calls
        ends = {
            (calls[frame["id"]].via, calls[frame["id"]].row, calls[frame["id"]].route): place
            for frame, place in zip(frames, places(content, len(frames)), strict=True)
            if frame["kind"] == "answered"
        }
        found: dict[tuple[int, int], tuple[SharedFrom, int, int]] = {}
        for number in {number for number, _ in self._wanted[batch_id]}:
            ticket = read_ticket(self._store, batch_id, number)
            for position, item in enumerate(ticket.items):
                place = ends.get((ticket.name, item.row, item.route))
                if place is not None and (number, position) in self._wanted[batch_id]:
                    found[number, position] = (origin_of(batch_id, item), *place)
        return found


def origin_of(batch_id: str, item: TicketItem) -> SharedFrom:
    """Whose answer it is that others share."""
    return SharedFrom(batch_id, item.row, item.route, item.document_id)
