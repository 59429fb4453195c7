"""What the core needs from outside. Everything that is I/O, time or chance comes through here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal, Protocol, TypeVar, runtime_checkable

from transforms.call.secret import Secret
from transforms.call.wire import WireRequest, WireResponse

T = TypeVar("T")


class Clock(Protocol):
    """Time, and waiting for it."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def now(self) -> datetime:
        """The instant, in UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        ...


class SystemClock:
    """The machine's clock."""

    monotonic = staticmethod(time.monotonic)  # the system's own: a call asks for it ten times

    def now(self) -> datetime:
        """The instant, in UTC."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Waits on the event loop."""
        await asyncio.sleep(seconds)


class NotSentError(Exception):
    """Nothing of the request left this process: it can't have been billed. Says why in a sentence.

    `final` says that another try can't help.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class LostError(Exception):
    """The request, or a part of it, was sent and its end is unknown: it may have been billed.

    `cause` is `timeout` or `connection`.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class Transport(Protocol):
    """Sends one request and gives the whole response."""

    async def send(self, request: WireRequest, key: Secret | None, timeout_s: float) -> WireResponse:
        """The response, whatever its status. The key goes where `request.auth` says.

        Raises:
            NotSentError: nothing left this process.
            LostError: no whole response within `timeout_s`, or the connection broke.
        """
        ...

    async def close(self) -> None:
        """Closes every connection."""
        ...


class LedgerLog(Protocol):
    """One batch's ledger, open and held by this worker alone."""

    @property
    def content(self) -> bytes:
        """The bytes that were there when it was opened."""
        ...

    def start(self, length: int) -> None:
        """Drops what follows the first `length` bytes (a torn tail); appending goes on there."""
        ...

    def append(self, data: bytes) -> None:
        """Writes, so that a killed process loses nothing of it.

        Raises:
            LedgerError: it could not be written whole; the log takes nothing more after that.
        """
        ...

    async def sync(self) -> None:
        """Returns when everything appended so far would survive a power cut; LedgerError if it won't."""
        ...

    async def close(self) -> None:
        """Syncs and lets go of it. Never raises: what had to be durable was synced before."""
        ...


@runtime_checkable
class BoundedLog(LedgerLog, Protocol):
    """A ledger that gathers records before they are durable, and takes only so much meanwhile."""

    async def room(self) -> None:
        """Returns when one more call may be sent; LedgerError when none may any more."""
        ...

    async def sealed(self) -> None:
        """As `sync`, in the ledger's own time: nobody hurries."""
        ...


class LedgerStore(Protocol):
    """Where ledgers are."""

    async def open(self, batch_id: str) -> LedgerLog:
        """The batch's ledger, created if need be.

        Raises:
            BatchClaimedError: another worker holds it.
            LedgerError: it can't be opened.
        """
        ...

    def close(self) -> None:
        """Stops what works in the background."""
        ...


class BudgetRecordStore(Protocol):
    """The one record of a run's budget, shared by all its workers."""

    async def update(self, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        """Replaces the record by what `change` makes of it, as one step that no other worker cuts.

        `change` gets the record (None: there is none) and gives the new one (None: leave it) and a
        value, which is returned. It may be called again when another worker was faster.

        Raises:
            StoreError: the record can't be read or written.
        """
        ...


@dataclass(frozen=True, slots=True)
class HeldRequest:
    """A request that goes out with a provider batch. `body` is one JSON object in the provider's format."""

    row: int
    route: str
    document_id: str | None
    backend: str
    request_sha256: str
    worst: Decimal | None
    worst_tokens: int
    body: bytes


class OutboxBatch(Protocol):
    """Where the requests of one batch wait for a provider's batch; used while its ledger is held."""

    def state(self, row: int, route: str, backend: str) -> Literal["new", "waiting", "online"]:
        """Whether a request may be added, is on its way already, or has used up its chances here."""
        ...

    def join(self, row: int, route: str, backend: str, request_sha256: str) -> bool:
        """Whether an identical request was added, whose answer this row then takes over."""
        ...

    def add(self, request: HeldRequest) -> None:
        """Adds a request; nothing is durable, and nothing may be sent, before `seal`."""
        ...

    def seal(self) -> None:
        """Makes what was added durable, at once and whole.

        Raises:
            StoreError: it could not be.
        """
        ...


class Outbox(Protocol):
    """Where requests wait for providers' batches."""

    def open(self, batch_id: str) -> OutboxBatch:
        """The batch's part of it. Blocks for as long as reading a few small files takes."""
        ...
