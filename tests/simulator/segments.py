"""Ledgers and budget records on object storage: the production code's, over objects in memory.

A process that dies loses what it had not sealed yet, and of a segment that was on its way nobody knows; an
acknowledgement that is lost is asked for again, or the write is given up although it was done. Leases run
out by the virtual clock, so a process that stands still long enough is taken over while it knows nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import orjson

from schemas.errors import LedgerError, PreconditionFailedError, StoreError
from tests.simulator.clock import CURRENT, in_steps, pause
from tests.simulator.disk import LedgerInode, SimulatedDisk
from tests.simulator.frames import whole_frames
from tests.simulator.world import KilledError, Process
from transforms.call.segments import CLAIMS, SEAL_S, SegmentLedgers, SegmentLog
from transforms.call.stored_record import StoredRecord, T
from transforms.lease import Lease, Times

_ANSWERED = b'{"kind":"answered"'
_BEFORE_PAYLOAD = 8
_ON_THE_WAY_S = (0.001, 0.05, 0.4)
_BETWEEN_TRIES_S = (0.0, 0.02, 0.3)


@dataclass
class Shelf:
    """What object storage holds of an output's ledgers, and the ledgers as programs see them.

    An inode's bytes are the sealed segments and behind them what its holder has yet to seal.
    """

    disk: SimulatedDisk
    window: int
    in_flight: int
    on_loss: Callable[[str], None]  # told of a batch whose ledger has lost records
    objects: dict[str, bytes] = field(default_factory=dict)

    def put(self, path: str, data: bytes) -> None:
        """An object is there from now on."""
        self.objects[path] = data
        folder, _, name = path.rpartition("/")
        if not name.endswith(".seg"):
            return
        inode = self.disk.inode(folder.rpartition("/")[2])
        assert int(name.removesuffix(".seg")) == inode.synced
        if bytes(inode.cache[inode.synced : inode.synced + len(data)]) != data:
            self.cut(inode)  # somebody else's: what the holder has not sealed is worth nothing any more
            inode.cache += data
        inode.synced += len(data)

    def cut(self, inode: LedgerInode) -> None:
        """Forget what is not sealed."""
        if inode.synced == len(inode.cache):
            return
        if self.unsealed(inode):
            self.disk.world.seen.add("answers lost")
        del inode.cache[inode.synced :]
        inode.version += 1
        self.on_loss(inode.batch_id)

    @staticmethod
    def unsealed(inode: LedgerInode) -> int:
        """How many answers are not sealed."""
        frames = whole_frames(bytes(inode.cache[inode.synced :]))
        return sum(frame["kind"] == "answered" for frame, _ in frames)


class ProcessShelf:
    """The part of the production code's `Store` that ledgers, leases and records use, for one process."""

    def __init__(
        self, objects: dict[str, bytes], put: Callable[[str, bytes], None], process: Process
    ) -> None:
        self.root = "gs://simulated/out"
        self._objects, self._put, self._process = objects, put, process

    def read(self, path: str) -> bytes:
        self._process.check()
        if path not in self._objects:
            raise FileNotFoundError(path)
        return self._objects[path]

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        data = self.read(path)
        return data, _generation(data)

    def create(self, path: str, data: bytes) -> bool:
        """As on Cloud Storage: the same bytes that are there already count as this creation."""
        code = self._step(path, data)
        if path in self._objects:
            return self._objects[path] == data
        self._put(path, data)
        self._answer(code, path)
        return True

    def swap(self, path: str, data: bytes, generation: str) -> str:
        code = self._step(path, data)
        if path not in self._objects or _generation(self._objects[path]) != generation:
            raise PreconditionFailedError(path)
        self._put(path, data)
        if code and self._process.world.source.random() < 0.3:
            raise PreconditionFailedError(f"{path}, and it was this one's own write that had moved it on")
        self._answer(code, path)
        return _generation(data)

    def delete(self, path: str) -> None:
        self._process.check()
        self._objects.pop(path, None)

    def _step(self, path: str, data: bytes) -> int:
        world = self._process.world
        self._process.check()
        if path.startswith(CLAIMS):
            kind = "lease"  # taken by one at a time: nobody of this process goes first
        else:
            kind = "budget" if path.endswith(".json") else "claim" if b'"kind":"claimed"' in data else "seal"
            if world.pauses and world.source.random() < world.pauses:
                pause(world.source.choice((0.0, 0.002, 0.3)))
        code = world.step(self._process, kind, path[-24:])
        if code > 0:
            raise StoreError(f"{path}: 503, again and again")
        return code

    def _answer(self, code: int, path: str) -> None:
        """What was done was not acknowledged: asking again finds it done, or is not answered either."""
        if code and self._process.world.source.random() < 0.5:
            raise StoreError(f"{path}: no answer, again and again")


def _generation(data: bytes) -> str:
    return sha256(data).hexdigest()


class _Alarm:
    """What wakes the thread that seals; here it is a timer."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self.notify = ring


class _Uploads:
    """The threads that upload; here they are tasks of the process."""

    def __init__(self, ledgers: SimulatedSegments, process: Process) -> None:
        self._ledgers, self._process = ledgers, process

    def submit(self, create: Callable[[str, bytes], bool], path: str, data: bytes) -> Future[bool]:
        done: Future[bool] = Future()
        self._ledgers.on_the_way[path] = data
        token = CURRENT.set(self._process)
        try:
            asyncio.get_running_loop().create_task(self._upload(done, create, path, data))
        finally:
            CURRENT.reset(token)
        return done

    async def _upload(
        self, done: Future[bool], create: Callable[[str, bytes], bool], path: str, data: bytes
    ) -> None:
        await asyncio.sleep(self._process.world.source.choice(_ON_THE_WAY_S))
        try:
            created = create(path, data)
        except StoreError as error:
            await self._process.thaw()
            del self._ledgers.on_the_way[path]
            done.set_exception(error)
        else:
            await self._process.thaw()
            del self._ledgers.on_the_way[path]
            done.set_result(created)


class TimedLease(Lease):
    """The production code's lease, renewed by timers."""

    __slots__ = ("process",)

    def begin(self) -> TimedLease:
        asyncio.get_running_loop().call_later(self.times.renew_every_s, self._beat_on)
        return self

    def _beat_on(self) -> None:
        loop = asyncio.get_running_loop()
        if not self.process.alive or self._stop.is_set() or self._refused:
            return
        if self.process.stopped_until > loop.time():
            loop.call_at(self.process.stopped_until, self._beat_on)
            return
        try:
            self.renew()
        except KilledError:
            return
        self.begin()


class SimulatedSegments(SegmentLedgers):
    """The production code's group of ledgers: its threads replaced by timers, its objects by the shelf's."""

    def __init__(self, shelf: Shelf, process: Process) -> None:
        self._shelf, self._process = shelf, process
        self._store = ProcessShelf(shelf.objects, shelf.put, process)  # type: ignore[assignment]
        self._monotonic = asyncio.get_running_loop().time
        self._times = Times(monotonic=self._monotonic, sleep=pause)
        self._window = shelf.window
        self._seal_ends = max(1, shelf.window // 2)
        self._seal_s = SEAL_S
        self._lock = threading.RLock()
        self._wake = _Alarm(self._ring)  # type: ignore[assignment]
        self._open_logs = {}
        self._unsealed_ends = 0
        self._waiting_for_room = []
        self._lease = None
        self._lease_lock = threading.Lock()
        self._closed = False
        self._uploads = _Uploads(self, process)  # type: ignore[assignment]
        self._leases_taken = 0
        self._rings = False
        self.on_the_way: dict[str, bytes] = {}
        process.at_exit.append(self._died)

    async def open(self, batch_id: str) -> SegmentLog:
        await asyncio.sleep(0.0005)  # in production this is another thread's work
        log = await in_steps(self._process, lambda: self._open(batch_id))
        inode = self._shelf.disk.inode(batch_id)
        if inode.holder is not None and inode.holder.stopped_until > self._monotonic():
            self._process.world.seen.add("taken over from a sleeper")
        inode.holder = self._process
        inode.users.append(self._process)
        return log

    def _take_lease(self) -> Lease:
        self._leases_taken += 1
        name = f"{self._process.name}-{self._leases_taken}"
        lease = TimedLease(
            self._store, f"{CLAIMS}/{name}.json", f"{self._process.world.lives} {name}", self._times
        )  # type: ignore[arg-type]
        lease.process = self._process
        if not lease.hold(None):
            raise StoreError("a lease of this name was there already")
        return lease.begin()

    def append(self, log: SegmentLog, data: bytes) -> None:
        self._process.check()
        super().append(log, data)
        inode = self._shelf.disk.inode(log.batch_id)
        if inode.holder is not self._process:
            self._process.world.violate("one process at a time works on a batch", f"batch {log.batch_id}")
        inode.cache += data
        if data.startswith(_ANSWERED, _BEFORE_PAYLOAD):
            self._check_window()

    def _check_window(self) -> None:
        """What a crash would lose now: answers that are on their way count."""
        ledgers = (self._shelf.disk.inode(name) for name in self._open_logs)
        unsealed = sum(self._shelf.unsealed(inode) for inode in ledgers if inode.holder is self._process)
        if unsealed > self._shelf.window + self._shelf.in_flight:
            self._process.world.violate("a crash loses at most the window", f"{unsealed} answers")

    async def room(self, log: SegmentLog) -> None:
        self._process.check()
        await super().room(log)

    async def wait_for(self, log: SegmentLog, *, urgent: bool) -> None:
        self._process.check()
        await super().wait_for(log, urgent=urgent)

    def fail(self, log: SegmentLog, why: str) -> LedgerError:
        error = super().fail(log, why)
        self._process.ledger_failed = True
        self._forget_unsealed(log)
        return error

    def forget(self, log: SegmentLog) -> None:
        self._process.check()
        super().forget(log)
        self._forget_unsealed(log)
        inode = self._shelf.disk.inode(log.batch_id)
        if self._process in inode.users:
            inode.users.remove(self._process)

    def _forget_unsealed(self, log: SegmentLog) -> None:
        inode = self._shelf.disk.inode(log.batch_id)
        if inode.holder is self._process:
            self._shelf.cut(inode)

    def close(self) -> None:
        self._process.check()
        left = [log.batch_id for log in self._open_logs.values() if log.broken is None]
        if left:
            self._process.world.violate("an orderly end loses nothing", f"still open: {left}")
        self._closed = True
        if self._lease is not None:
            self._lease.close()

    def _ring(self) -> None:
        if not self._rings:
            self._rings = True
            asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        """A round of the thread that seals."""
        loop = asyncio.get_running_loop()
        self._rings = False
        if not self._process.alive or self._closed:
            return
        if self._process.stopped_until > loop.time():
            self._rings = True
            loop.call_at(self._process.stopped_until, self._tick)
            return
        for log in self._due():
            self._seal(log)
        left = self._until_next()
        if left is not None:
            loop.call_later(left, self._ring)

    def _died(self) -> None:
        """Of what is on its way some arrives; the rest is lost."""
        for path, data in self.on_the_way.items():
            if path not in self._shelf.objects and self._process.world.source.random() < 0.5:
                self._shelf.put(path, data)
        for log in list(self._open_logs.values()):
            self._forget_unsealed(log)
            inode = self._shelf.disk.inode(log.batch_id)
            if self._process in inode.users:
                inode.users.remove(self._process)


class SimulatedRecord(StoredRecord):
    """The production code's record on object storage, as one process uses it."""

    def __init__(self, store: Any, path: str, process: Process) -> None:
        super().__init__(store, path, sleep=self._wait)
        self._process = process
        self._turn = asyncio.Lock()

    def _wait(self, _seconds: float) -> None:
        pause(self._process.world.source.choice(_BETWEEN_TRIES_S))

    async def update(self, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        async with self._turn:  # a thread would wait for the other's lock
            return await in_steps(self._process, lambda: self._watched(change))

    def _watched(self, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        """A change that is reported as made is the last of this process's that the record has."""
        made = False

        def noted(data: bytes | None) -> tuple[bytes | None, T]:
            nonlocal made
            new, value = change(data)
            made = new is not None  # in the last try: of those before it the record is proof that they failed
            return new, value

        value = self.update_now(noted)
        if made and orjson.loads(self._store.read(self._path))["writes"].get(self._me) != self._writes:
            self._process.world.violate("a change that was made is in the record", self._path)
        return value
