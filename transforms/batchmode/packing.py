"""Which tickets go out together: as many as the provider takes in one batch, and no ticket twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from schemas.outcomes import ZERO, money_text
from schemas.workload import HostedBackend
from transforms.batchmode.jobs import Job, TicketRange, new_tag
from transforms.batchmode.tickets import Ticket

_SAME_AGE = timedelta(hours=1)
"""A job's deadline is that of its oldest request: younger ones by more than this wait for another job."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What goes into one provider batch at most."""

    requests: int
    bytes: int


BOUNDS: dict[str, Bounds] = {
    # OpenAI: 50,000 requests and 200 MB in a file (reference of POST /batches)
    "openai": Bounds(50_000, 190_000_000),
    # Anthropic: 100,000 requests or 256 MB (Message Batches, limitations). Less here: the SDK takes the
    # requests as one list and sends them as one body, so that this much is in memory at a time.
    "anthropic": Bounds(100_000, 64 << 20),
    # Gemini: 2 GB in a file, and no number of requests said (guide to the Batch API). Less here, so that
    # the file of results stays small, too.
    "gemini": Bounds(20_000, 64 << 20),
}
LINE_OVERHEAD = 200
"""Bytes that a provider's envelope adds to each request: custom id, method, address."""


def pack(
    tickets: Iterable[Ticket],
    taken: set[tuple[str, int]],
    backends: Mapping[str, HostedBackend],
    now: datetime,
    bounds: Mapping[str, Bounds] = BOUNDS,
) -> Iterator[Job]:
    """Jobs for the tickets that no job has yet (`taken`), each within the bounds of its provider."""
    by_backend: dict[str, list[Ticket]] = defaultdict(list)
    for ticket in tickets:
        if (ticket.batch_id, ticket.number) not in taken and ticket.backend in backends:
            by_backend[ticket.backend].append(ticket)
    for name, waiting in by_backend.items():
        backend = backends[name]
        for piece in _cut(
            sorted(waiting, key=lambda t: (t.since, t.batch_id, t.number)), bounds[backend.provider]
        ):
            yield _job(name, backend.model, piece, now)


def _cut(tickets: list[Ticket], bounds: Bounds) -> Iterator[list[Ticket]]:
    piece: list[Ticket] = []
    requests = size = 0
    for ticket in tickets:
        more = ticket.size + LINE_OVERHEAD * len(ticket.items)
        full = requests + len(ticket.items) > bounds.requests or size + more > bounds.bytes
        if piece and (full or _age(ticket) - _age(piece[0]) > _SAME_AGE):
            yield piece
            piece, requests, size = [], 0, 0
        piece.append(ticket)
        requests += len(ticket.items)
        size += more
    if piece:
        yield piece


def _age(ticket: Ticket) -> datetime:
    return datetime.fromisoformat(ticket.since)


def _job(backend: str, model: str, tickets: list[Ticket], now: datetime) -> Job:
    ranges: list[TicketRange] = []
    first = 0
    for ticket in tickets:
        ranges.append(TicketRange(ticket.batch_id, ticket.number, first, len(ticket.items)))
        first += len(ticket.items)
    return Job(
        tag=new_tag(),
        backend=backend,
        model=model,
        created_at=now.isoformat(),
        since=tickets[0].since,
        requests=first,
        size=sum(ticket.size for ticket in tickets),
        worst=money_text(sum((ticket.worst for ticket in tickets), ZERO)),
        tickets=tuple(ranges),
    )
