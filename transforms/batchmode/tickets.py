"""Tickets: what a worker leaves for a provider's batch, written once and never changed.

::

    provider_batches/tickets/<batch_id>/<number>.json            which requests wait, without their texts
    provider_batches/tickets/<batch_id>/<number>.closed          all of them have an end in the ledger
    provider_batches/bodies/<batch_id>.<number>.<token>.jsonl    the requests themselves, until submitted

A ticket counts from the moment its `.json` is there; bodies without one are swept. All requests of a
ticket go to one backend, and out with one job.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from schemas.errors import StoreError
from schemas.ids import canonical_json
from schemas.outcomes import ZERO, money
from transforms.call.ports import HeldRequest
from transforms.store import Store

TICKET_VERSION = "ticket/1"
FOLDER = "provider_batches"
TICKETS = f"{FOLDER}/tickets"
BODIES = f"{FOLDER}/bodies"
MOST_REQUESTS = 10_000
MOST_BYTES = 24 << 20
"""Of one ticket: small against the bounds of all providers, so that tickets pack well into jobs."""


@dataclass(frozen=True, slots=True)
class TicketItem:
    """One waiting request: whose it is, its digest, the most that it can cost, its size in bytes.

    `also` are the further (row, route) pairs of the batch that ask exactly the same and share its answer.
    """

    row: int
    route: str
    document_id: str | None
    request_sha256: str
    worst: str | None
    worst_tokens: int
    size: int
    also: tuple[tuple[int, str], ...] = ()

    @property
    def pairs(self) -> tuple[tuple[int, str], ...]:
        """Every (row, route) that waits for the answer."""
        return ((self.row, self.route), *self.also)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Requests of one batch to one backend. `since` is when the first of them began to wait.

    That instant is kept through further tickets of the same request: its deadline counts from there.
    """

    batch_id: str
    number: int
    backend: str
    since: str
    bodies: str
    items: tuple[TicketItem, ...]

    @property
    def name(self) -> str:
        """What ledgers call it: unique within its batch."""
        return f"{self.number:04d}"

    @property
    def size(self) -> int:
        """Bytes of all requests together."""
        return sum(item.size for item in self.items)

    @property
    def worst(self) -> Decimal:
        """The most that all requests together can cost, as far as prices are known."""
        return sum((money(item.worst) for item in self.items if item.worst is not None), ZERO)

    def held(self, item: TicketItem) -> HeldRequest:
        """The request without its text."""
        worst = None if item.worst is None else money(item.worst)
        return HeldRequest(
            row=item.row,
            route=item.route,
            document_id=item.document_id,
            backend=self.backend,
            request_sha256=item.request_sha256,
            worst=worst,
            worst_tokens=item.worst_tokens,
            body=b"",
        )

    def to_json(self) -> bytes:
        """Canonical JSON bytes."""
        return canonical_json({"version": TICKET_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, data: bytes) -> Ticket:
        """The ticket behind bytes; StoreError for another version."""
        values: dict[str, Any] = json.loads(data)
        if values.pop("version", None) != TICKET_VERSION:
            raise StoreError("a ticket for a provider batch is another version's: use the one that wrote it")
        values["items"] = tuple(_item_from(item) for item in values["items"])
        return cls(**values)


def _item_from(data: dict[str, Any]) -> TicketItem:
    return TicketItem(**{**data, "also": tuple((row, route) for row, route in data["also"])})


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that is to go into a ticket, since when it waits, and who shares its answer."""

    request: HeldRequest
    since: str
    also: tuple[tuple[int, str], ...] = ()

    def item(self) -> TicketItem:
        """What the ticket says of it."""
        request = self.request
        return TicketItem(
            row=request.row,
            route=request.route,
            document_id=request.document_id,
            request_sha256=request.request_sha256,
            worst=None if request.worst is None else str(request.worst),
            worst_tokens=request.worst_tokens,
            size=len(request.body),
            also=self.also,
        )


def ticket_path(batch_id: str, number: int) -> str:
    """Where a ticket is."""
    return f"{TICKETS}/{batch_id}/{number:04d}.json"


def closed_path(batch_id: str, number: int) -> str:
    """The mark that a ticket is done with."""
    return f"{TICKETS}/{batch_id}/{number:04d}.closed"


def write_tickets(store: Store, batch_id: str, first: int, waiting: Iterable[Waiting]) -> list[Ticket]:
    """Tickets for requests, numbered from `first`.

    Each ticket is there whole or not at all; a crash leaves some of them, and the rest of the requests
    find no ticket that has them.

    Raises:
        StoreError: a ticket of that number was there: another worker is on this batch.
    """
    tickets: list[Ticket] = []
    for piece in _cut(waiting):
        number = first + len(tickets)
        bodies = f"{BODIES}/{batch_id}.{number:04d}.{secrets.token_hex(8)}.jsonl"
        store.create(bodies, b"".join(each.request.body + b"\n" for each in piece))
        ticket = Ticket(
            batch_id=batch_id,
            number=number,
            backend=piece[0].request.backend,
            since=min(each.since for each in piece),
            bodies=bodies,
            items=tuple(each.item() for each in piece),
        )
        if not store.create(ticket_path(batch_id, number), ticket.to_json()):
            raise StoreError(
                f"{store.root}/{ticket_path(batch_id, number)} is there already: another worker is on batch "
                f"{batch_id}. Nothing of it was committed; run again"
            )
        tickets.append(ticket)
    return tickets


def _cut(waiting: Iterable[Waiting]) -> Iterator[list[Waiting]]:
    """The requests by backend, in pieces of the size of a ticket."""
    by_backend: dict[str, list[Waiting]] = defaultdict(list)
    for each in waiting:
        by_backend[each.request.backend].append(each)
    for requests in by_backend.values():
        piece: list[Waiting] = []
        size = 0
        for each in requests:
            if piece and (len(piece) == MOST_REQUESTS or size + len(each.request.body) > MOST_BYTES):
                yield piece
                piece, size = [], 0
            piece.append(each)
            size += len(each.request.body)
        yield piece


def read_ticket(store: Store, batch_id: str, number: int) -> Ticket:
    """A ticket; FileNotFoundError if there is none."""
    return Ticket.from_json(store.read(ticket_path(batch_id, number)))


def read_bodies(store: Store, ticket: Ticket) -> list[bytes]:
    """The requests of a ticket in the order of its items.

    Raises:
        StoreError: they are not there, or not all.
    """
    try:
        lines = store.read(ticket.bodies).splitlines()
    except FileNotFoundError:
        lines = []
    if len(lines) != len(ticket.items):
        raise StoreError(
            f"{store.root}/{ticket.bodies} holds {len(lines)} of {len(ticket.items)} requests: it was "
            "changed or deleted. Nothing of it was submitted; its documents are tried again"
        )
    return lines


def close_ticket(store: Store, batch_id: str, number: int) -> None:
    """Mark that every request of a ticket has its end in the ledger, durably."""
    store.create(closed_path(batch_id, number), b"")


def tickets_of(store: Store, batch_id: str) -> Iterator[tuple[Ticket, bool]]:
    """The tickets of a batch in the order of their numbers, and whether each is still open.

    They are found by their names: a listing costs an object store more, and every batch asks.
    """
    for number in itertools.count(1):
        try:
            ticket = read_ticket(store, batch_id, number)
        except FileNotFoundError:
            return
        yield ticket, is_open(store, batch_id, number)


def is_open(store: Store, batch_id: str, number: int) -> bool:
    """Whether a ticket is not done with yet."""
    return not store.exists(closed_path(batch_id, number))


def list_tickets(store: Store) -> dict[tuple[str, int], bool]:
    """All tickets by (batch, number): whether each is still open."""
    found: dict[tuple[str, int], bool] = {}
    for path in store.list(TICKETS):
        batch, name = path.split("/")[-2:]
        number, _, kind = name.partition(".")
        if kind == "json":
            found.setdefault((batch, int(number)), True)
        elif kind == "closed":
            found[batch, int(number)] = False
    return dict(sorted(found.items()))


def batches_waiting(store: Store) -> frozenset[str]:
    """The batches that have an open ticket, from the names of files alone."""
    return frozenset(batch_id for (batch_id, _), still_open in list_tickets(store).items() if still_open)


def read_open_tickets(store: Store) -> Iterator[Ticket]:
    """The tickets that are not done with, batch by batch in the order of their numbers."""
    for (batch_id, number), still_open in list_tickets(store).items():
        if still_open:
            yield read_ticket(store, batch_id, number)


def waiting_pairs(store: Store, batch_id: str) -> set[tuple[int, str]]:
    """Every (row, route) of a batch of rows that waits in an open ticket."""
    waiting = (ticket for ticket, still_open in tickets_of(store, batch_id) if still_open)
    return {pair for ticket in waiting for item in ticket.items for pair in item.pairs}


def sweep_bodies(store: Store, named: Sequence[Ticket]) -> None:
    """Delete bodies that no open ticket names: of crashed workers, and of tickets that are done with.

    Only for the holder of the output's lock: no worker may be writing tickets meanwhile.
    """
    needed = {ticket.bodies for ticket in named}
    for path in list(store.list(BODIES)):
        if path not in needed:
            store.delete(path)
