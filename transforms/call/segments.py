"""Ledgers as sealed objects: `<output>/ledger/<batch_id>/<start>.seg`, each created once and never changed.

What is appended is gathered and sealed as the next segment, named by the number of bytes before it, after
half a WINDOW of calls has ended or SEAL_S after its first record, whichever is first; at once when a batch
is about to be committed. So a crash can lose what was not sealed yet: no call is sent while WINDOW calls of
this process have ended unsealed, so at most WINDOW answers, besides the calls in flight. They are paid again;
their worst cases stay counted in the budget, whose leases outlive the crash.

Names make the fence: of two writers who both think that the ledger is theirs, one creates the next segment,
and the other learns by that that it is not. Who works on a batch says so in a segment (`claimed`) before
anything else, naming its lease (`transforms.lease`); while that lives nobody takes the batch over.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from schemas.errors import BatchClaimedError, LedgerError, StoreError
from transforms import lease as leases
from transforms.call.ledger import Frame, encode_frame, scan
from transforms.layout import LEDGER
from transforms.lease import Lease, Times
from transforms.store import Store

WINDOW = 256
SEAL_S = 2.0
CLAIMS = "claims"
_UPLOADS = 16
_INTENDED = b'{"kind":"intended"'
_PREFIX_BYTES = 8


def segment_path(batch_id: str, start: int) -> str:
    """Where the segment of a batch's ledger is that begins after `start` bytes."""
    return f"{LEDGER}/{batch_id}/{start:012d}.seg"


def read_segments(store: Store, batch_id: str) -> Iterator[bytes]:
    """The segments of a batch's ledger in order, found by their names without a listing.

    Raises:
        LedgerError: one is empty, which none is that was sealed.
        StoreError: it can't be read.
    """
    start = 0
    while True:
        path = segment_path(batch_id, start)
        try:
            data = store.read(path)
        except FileNotFoundError:
            return
        if not data:
            raise LedgerError(f"{store.root}/{path} is empty: it was replaced by hand. Restore it")
        yield data
        start += len(data)


class SegmentLog:
    """One batch's open ledger. Appends are called on one event loop; sealing is the group's."""

    def __init__(self, batch_id: str, content: bytes, group: SegmentLedgers) -> None:
        self.batch_id = batch_id
        self._content = content
        self._group = group
        self.start_of_next = len(content)
        self.pending: list[bytes] = []
        self.pending_ends = 0
        self.pending_since = 0.0
        self.appended = 0  # records in all, and those of them that are sealed
        self.sealed_records = 0
        self.is_sealing = False
        self.is_urgent = False
        self.broken: str | None = None
        self.waiting: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    @property
    def content(self) -> bytes:
        """The bytes that were there when it was opened, this process's claim included."""
        return self._content

    def start(self, length: int) -> None:
        """Lets go of the content. Sealed segments have no torn tails: opening has refused any other."""
        assert length == len(self._content)
        self._content = b""

    def append(self, data: bytes) -> None:
        """Takes a record; it is durable once it is sealed."""
        self._group.append(self, data)

    async def room(self) -> None:
        """Returns when one more call may be sent: see WINDOW."""
        await self._group.room(self)

    async def sealed(self) -> None:
        """Returns when all that was appended is durable, in the ledger's own time."""
        await self._group.wait_for(self, urgent=False)

    async def sync(self) -> None:
        """Returns when all that was appended is durable; seals at once."""
        await self._group.wait_for(self, urgent=True)

    async def close(self) -> None:
        """Seals what is left. The claim stays: it ends with this process's lease."""
        with contextlib.suppress(LedgerError):
            await self.sync()
        self._group.forget(self)


class SegmentLedgers:
    """All ledgers of one output that this process has open, and what seals them."""

    def __init__(
        self,
        store: Store,
        *,
        times: Times | None = None,
        window: int = WINDOW,
        seal_s: float = SEAL_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._times = times or Times()
        self._window = window
        self._seal_ends = max(1, window // 2)
        self._seal_s = seal_s
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._open_logs: dict[str, SegmentLog] = {}
        self._unsealed_ends = 0
        self._waiting_for_room: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._lease: Lease | None = None
        self._lease_lock = threading.Lock()
        self._closed = False
        self._uploads = ThreadPoolExecutor(_UPLOADS, thread_name_prefix="ledger-seal")
        self._thread = threading.Thread(target=self._run, name="ledger-seal", daemon=True)
        self._thread.start()

    async def open(self, batch_id: str) -> SegmentLog:
        """The batch's ledger, claimed by this process; see `LedgerStore`."""
        return await asyncio.get_running_loop().run_in_executor(None, self._open, batch_id)

    def _open(self, batch_id: str) -> SegmentLog:
        with self._lock:
            if batch_id in self._open_logs:
                raise BatchClaimedError(f"batch {batch_id} is being worked on in this process already")
        try:
            content = self._claim(batch_id, self._held_lease())
        except (StoreError, OSError) as error:
            raise LedgerError(f"the ledger of batch {batch_id} can't be opened ({error})") from None
        log = SegmentLog(batch_id, content, self)
        with self._lock:
            self._open_logs[batch_id] = log
        return log

    def _held_lease(self) -> Lease:
        with self._lease_lock:
            if self._lease is not None and self._lease.is_lost and not self._open_logs:
                self._lease.close()  # nothing leans on it any more: begin anew
                self._lease = None
            if self._lease is None:
                self._lease = self._take_lease()
            return self._lease

    def _take_lease(self) -> Lease:
        name = f"{CLAIMS}/{leases.here()['pid']}-{secrets.token_hex(8)}.json"
        return leases.take(self._store, name, self._times)

    def _claim(self, batch_id: str, lease: Lease) -> bytes:
        """The ledger's bytes, with this process's claim behind them."""
        while True:
            content = b"".join(read_segments(self._store, batch_id))
            frames, length = scan(content)
            if length != len(content):
                raise LedgerError(
                    f"the ledger of batch {batch_id} in {self._store.root} is damaged: "
                    f"{len(content) - length} bytes of it are no whole record. Sealed segments have no torn "
                    f"tails: restore them"
                )
            holder = _holder(frames)
            if holder not in (None, lease.path) and not leases.has_ended(self._store, holder, self._times):
                raise BatchClaimedError(
                    f"batch {batch_id} is being worked on by another process ({self._store.root}/{holder}): "
                    f"wait for it, or end it, then run again"
                )
            claim = encode_frame({"kind": "claimed", "by": lease.path, "token": lease.token})
            if self._store.create(segment_path(batch_id, len(content)), claim):
                return content + claim

    def append(self, log: SegmentLog, data: bytes) -> None:
        """See `SegmentLog.append`."""
        with self._lock:
            if log.broken is not None:
                raise LedgerError(log.broken)
            if self._lease is not None and self._lease.is_lost:
                raise self.fail(log, "this process's lease was not renewed in time, others may have it")
            if not log.pending:
                log.pending_since = self._monotonic()
                self._wake.notify()
            log.pending.append(data)
            log.appended += 1
            if not data.startswith(_INTENDED, _PREFIX_BYTES):
                log.pending_ends += 1
                self._unsealed_ends += 1
                if self._unsealed_ends >= self._seal_ends:
                    self._wake.notify()

    async def room(self, log: SegmentLog) -> None:
        """See `SegmentLog.room`."""
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                if log.broken is not None:
                    raise LedgerError(log.broken)
                if self._unsealed_ends < self._window:
                    return
                turn: asyncio.Future[None] = loop.create_future()
                self._waiting_for_room.append((loop, turn))
                self._wake.notify()
            await turn

    async def wait_for(self, log: SegmentLog, *, urgent: bool) -> None:
        """Returns when what `log` has by now is sealed."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if log.broken is not None:
                raise LedgerError(log.broken)
            if log.sealed_records >= log.appended:
                return
            done: asyncio.Future[None] = loop.create_future()
            log.waiting.append((log.appended, loop, done))
            log.is_urgent = log.is_urgent or urgent
            self._wake.notify()
        await done

    def forget(self, log: SegmentLog) -> None:
        """The log is closed."""
        with self._lock:
            self._open_logs.pop(log.batch_id, None)

    def fail(self, log: SegmentLog, why: str) -> LedgerError:
        """Break a log for good: nothing is sent that can't be recorded."""
        with self._lock:
            log.broken = log.broken or (
                f"the ledger of batch {log.batch_id} in {self._store.root} can't be written ({why}): nothing "
                f"is sent that can't be recorded. Run again"
            )
            self._unsealed_ends -= log.pending_ends
            log.pending, log.pending_ends = [], 0
            self._tell(log)
            return LedgerError(log.broken)

    def close(self) -> None:
        """Stop sealing, and let go of everything this process has claimed."""
        with self._lock:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        self._uploads.shutdown()
        if self._lease is not None:
            self._lease.close()

    def _run(self) -> None:
        with self._lock:
            while not self._closed:
                for log in self._due():
                    self._seal(log)
                self._wake.wait(self._until_next())

    def _due(self) -> list[SegmentLog]:
        full = self._unsealed_ends >= self._seal_ends
        late = self._monotonic() - self._seal_s
        return [
            log
            for log in self._open_logs.values()
            if log.pending and not log.is_sealing and (full or log.is_urgent or log.pending_since <= late)
        ]

    def _until_next(self) -> float | None:
        since = [log.pending_since for log in self._open_logs.values() if log.pending and not log.is_sealing]
        return max(0.0, min(since) + self._seal_s - self._monotonic()) + 0.001 if since else None

    def _seal(self, log: SegmentLog) -> None:
        """Start uploading what a log has gathered; one segment of a log at a time, in order."""
        data, ends, upto = b"".join(log.pending), log.pending_ends, log.appended
        log.pending, log.pending_ends, log.is_urgent, log.is_sealing = [], 0, False, True
        done = self._uploads.submit(self._store.create, segment_path(log.batch_id, log.start_of_next), data)
        done.add_done_callback(lambda finished: self._sealed(log, finished, len(data), ends, upto))

    def _sealed(self, log: SegmentLog, finished: Future[bool], size: int, ends: int, upto: int) -> None:
        error = finished.exception()
        with self._lock:
            log.is_sealing = False
            self._unsealed_ends -= ends
            if error is not None:
                self.fail(log, str(error))
            elif not finished.result():
                self.fail(log, "another process has taken the batch over")
            else:
                log.start_of_next += size
                log.sealed_records = upto
                if any(entry[0] > upto for entry in log.waiting):
                    log.is_urgent = True
                self._tell(log)
            self._wake.notify()

    def _tell(self, log: SegmentLog) -> None:
        """Wake who waits for what is sealed now, or for room."""
        ready = [entry for entry in log.waiting if log.broken is not None or entry[0] <= log.sealed_records]
        log.waiting = [entry for entry in log.waiting if entry not in ready]
        for _, loop, done in ready:
            error = None if log.broken is None else LedgerError(log.broken)
            _call(loop, done, error)
        waiting, self._waiting_for_room = self._waiting_for_room, []
        for loop, turn in waiting:
            _call(loop, turn, None)


def _holder(frames: list[Frame]) -> str | None:
    """The lease of who claimed a ledger last."""
    return next((frame["by"] for frame in reversed(frames) if frame.get("kind") == "claimed"), None)


def _call(loop: asyncio.AbstractEventLoop, done: asyncio.Future[None], error: LedgerError | None) -> None:
    def complete() -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
        loop.call_soon_threadsafe(complete)
