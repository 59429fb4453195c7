"""The worker's side of provider batches: which requests wait, which are new, which are due online."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal

from schemas.run import RunContext
from schemas.workload import Workload
from transforms.batchmode.tickets import Ticket, Waiting, list_tickets, tickets_of, write_tickets
from transforms.call.ports import HeldRequest
from transforms.store import Store, open_store

MOST_ROUNDS = 2
"""Provider batches that a request goes out with at most; then it goes out online."""


class FolderOutbox:
    """The outbox of one output. A request waits `deadline_h` hours at most, counted from its first ticket.

    With `share`, identical requests of a batch go out once.
    """

    def __init__(
        self,
        store: Store,
        deadline_h: float,
        *,
        share: bool = True,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self._store = store
        self._share = share
        self._deadline = timedelta(hours=deadline_h)
        self._now = now or (lambda: datetime.now(UTC))

    def open(self, batch_id: str) -> BatchTickets:
        """The batch's part; see `transforms.call.ports.Outbox`."""
        return BatchTickets(self._store, batch_id, self._deadline, self._now(), share=self._share)


class BatchTickets:
    """The tickets of one batch, and the requests that are being added to them."""

    def __init__(
        self, store: Store, batch_id: str, deadline: timedelta, now: datetime, *, share: bool
    ) -> None:
        self._store = store
        self._share = share
        self._batch_id = batch_id
        self._deadline = deadline
        self._now = now
        self._last = 0
        self._waiting: set[tuple[int, str, str]] = set()
        self._rounds: dict[tuple[int, str, str], int] = {}
        self._since: dict[tuple[int, str, str], str] = {}
        self._added: list[HeldRequest] = []
        self._also: list[list[tuple[int, str]]] = []  # who shares the answer, in the order of `_added`
        self._places: dict[tuple[str, str], int] = {}  # (backend, digest) → place in `_added`
        for ticket, still_open in tickets_of(store, batch_id):
            self._last = ticket.number
            self._know(ticket, still_open)

    def _know(self, ticket: Ticket, still_open: bool) -> None:
        for row, route in (pair for item in ticket.items for pair in item.pairs):
            key = (row, route, ticket.backend)
            self._rounds[key] = self._rounds.get(key, 0) + 1
            self._since[key] = min(self._since.get(key, ticket.since), ticket.since)
            if still_open:
                self._waiting.add(key)

    def state(self, row: int, route: str, backend: str) -> Literal["new", "waiting", "online"]:
        """Where a request stands; see `transforms.call.ports.OutboxBatch`."""
        key = (row, route, backend)
        if key in self._waiting:
            return "waiting"
        since = self._since.get(key)
        if since is None:
            return "new"
        late = self._now >= datetime.fromisoformat(since) + self._deadline
        return "online" if late or self._rounds[key] >= MOST_ROUNDS else "new"

    def join(self, row: int, route: str, backend: str, request_sha256: str) -> bool:
        """Whether an identical request was added here already; this row then takes over its answer."""
        place = self._places.get((backend, request_sha256)) if self._share else None
        if place is None:
            return False
        self._also[place].append((row, route))
        return True

    def add(self, request: HeldRequest) -> None:
        """Adds a request; durable only after `seal`."""
        self._places[request.backend, request.request_sha256] = len(self._added)
        self._added.append(request)
        self._also.append([])

    def seal(self) -> None:
        """Writes what was added; each ticket is there whole or not at all."""
        if self._added:
            now = self._now.isoformat()
            both = zip(self._added, self._also, strict=True)
            waiting = [self._waiting_since(request, also, now) for request, also in both]
            self._added, self._also, self._places = [], [], {}
            self._last += len(write_tickets(self._store, self._batch_id, self._last + 1, waiting))

    def _waiting_since(self, request: HeldRequest, also: list[tuple[int, str]], now: str) -> Waiting:
        pairs = ((request.row, request.route), *also)
        since = min(self._since.get((*pair, request.backend), now) for pair in pairs)
        return Waiting(request, since, tuple(also))


def open_outbox(workload: Workload, run: RunContext) -> FolderOutbox | None:
    """The outbox of a run; None in a rehearsal, and when neither workload nor output has to do with one.

    An output with open tickets has one even if no backend is in batch mode any more: what is on its way
    to a provider is not sent a second time.
    """
    if run.rehearsal:
        return None
    store = open_store(run.output)
    wanted = any(backend.mode == "batch" for backend in workload.hosted_backends().values())
    if not wanted and not any(list_tickets(store).values()):
        return None
    limits = workload.limits
    return FolderOutbox(store, limits.batch_deadline_h, share=limits.share_identical)
