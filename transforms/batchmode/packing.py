"""Which tickets go out together: as many as the provider takes in one batch, and no request twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from schemas.backends import HostedBackend
from schemas.outcomes import ZERO, money, money_text
from transforms.batchmode.jobs import Job, Repeat, TicketRange, new_tag
from transforms.batchmode.leaders import Leaders
from transforms.batchmode.tickets import Ticket, TicketItem

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
    leaders: Leaders | None = None,
) -> Iterator[Job]:
    """Jobs for the tickets that no job has yet (`taken`), each within the bounds of its provider.

    With `leaders`, the requests that are at providers already, one that asks the same as a leader, or as a
    request of an earlier ticket, is not sent. The jobs' `created_at` follow each other as they depend on
    each other: a leader's job is always the older one.
    """
    number = 0
    by_backend: dict[str, list[Ticket]] = defaultdict(list)
    for ticket in tickets:
        if (ticket.batch_id, ticket.number) not in taken and ticket.backend in backends:
            by_backend[ticket.backend].append(ticket)
    for name, waiting in by_backend.items():
        backend = backends[name]
        ordered = sorted(waiting, key=lambda t: (t.since, t.batch_id, t.number))
        parts = [_part(ticket, leaders) for ticket in ordered]
        for piece in _cut(parts, bounds[backend.provider]):
            yield _job(name, backend.model, piece, now + timedelta(microseconds=number))
            number += 1


@dataclass(frozen=True, slots=True)
class _Part:
    """A ticket, and who leads those of its requests that are not sent, by their position."""

    ticket: Ticket
    led: Mapping[int, tuple[str, int, int]]

    @property
    def sent(self) -> list[TicketItem]:
        """The requests that are sent."""
        return [item for position, item in enumerate(self.ticket.items) if position not in self.led]

    @property
    def size(self) -> int:
        """Bytes of them."""
        return sum(item.size for item in self.sent)

    @property
    def since(self) -> datetime:
        """When the first of its requests began to wait."""
        return datetime.fromisoformat(self.ticket.since)


def _part(ticket: Ticket, leaders: Leaders | None) -> _Part:
    """The ticket's part; its requests that nobody leads become leaders of later ones."""
    led: dict[int, tuple[str, int, int]] = {}
    own: Leaders = {}
    if leaders is not None:
        for position, item in enumerate(ticket.items):
            key = (ticket.backend, item.request_sha256)
            if key in leaders:
                led[position] = leaders[key]
            else:
                own[key] = (ticket.batch_id, ticket.number, position)
        leaders.update(own)
    return _Part(ticket, led)


def _cut(parts: list[_Part], bounds: Bounds) -> Iterator[list[_Part]]:
    piece: list[_Part] = []
    requests = size = 0
    for part in parts:
        count = len(part.sent)
        more = part.size + LINE_OVERHEAD * count
        full = requests + count > bounds.requests or size + more > bounds.bytes
        if piece and (full or part.since - piece[0].since > _SAME_AGE):
            yield piece
            piece, requests, size = [], 0, 0
        piece.append(part)
        requests += count
        size += more
    if piece:
        yield piece


def _job(backend: str, model: str, parts: list[_Part], now: datetime) -> Job:
    ranges: list[TicketRange] = []
    repeats: list[Repeat] = []
    first = 0
    for part in parts:
        ticket = part.ticket
        ranges.append(TicketRange(ticket.batch_id, ticket.number, first, len(ticket.items)))
        repeats += [Repeat(first + position, *leader) for position, leader in part.led.items()]
        first += len(ticket.items)
    worst = (money(item.worst) for part in parts for item in part.sent if item.worst is not None)
    return Job(
        tag=new_tag(),
        backend=backend,
        model=model,
        created_at=now.isoformat(),
        since=parts[0].ticket.since,
        requests=first,
        size=sum(part.size for part in parts),
        worst=money_text(sum(worst, ZERO)),
        tickets=tuple(ranges),
        repeats=tuple(repeats),
    )
