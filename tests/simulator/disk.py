"""The disk that ledgers are on: a page cache, which a kill leaves alone, over a platter, which is all that
a power cut leaves.

The production code's own ledger file writes to it, cuts and syncs it; only the operating system is replaced.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from schemas.errors import BatchClaimedError, LedgerError
from tests.simulator.clock import CURRENT
from tests.simulator.world import KilledError, Process, World
from transforms.call.ledger_file import SYNC_EVERY_S, LocalLedgerFile, LocalLedgers

_DEV_NULL = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


@dataclass(eq=False)
class LedgerInode:
    """A ledger file: its bytes as programs see them, how many of them are on the platter, who holds it."""

    batch_id: str
    cache: bytearray = field(default_factory=bytearray)
    synced: int = 0
    holder: Process | None = None
    users: list[Process] = field(default_factory=list)  # who has it open; the lock should make it one
    version: int = 0  # changes when bytes change that were there before

    def lose_power(self, source: Random) -> None:
        """Of what was not synced a random part is left: a piece of it, a hole in it, or rubbish."""
        rest = bytes(self.cache[self.synced :])
        del self.cache[self.synced :]
        self.cache += _survivors(rest, source)
        self.synced = len(self.cache)
        self.version += 1


def _survivors(rest: bytes, source: Random) -> bytes:
    if not rest:
        return rest
    cut = source.randrange(len(rest) + 1)
    match source.randrange(5):
        case 0 | 1:
            return rest[:cut]
        case 2:  # the length was written, the data was not
            return rest[:cut] + bytes(len(rest) - cut)
        case 3:
            end = source.randint(cut, len(rest))
            return rest[:cut] + bytes(end - cut) + rest[end:]
        case _:
            return rest[:cut] + source.randbytes(source.randint(0, 40))


class SimulatedDisk:
    """All ledgers of the machine."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ledgers: dict[str, LedgerInode] = {}
        world.on_power_cut.append(self._lose_power)

    def _lose_power(self) -> None:
        for inode in self.ledgers.values():
            inode.lose_power(self.world.source)

    def inode(self, batch_id: str) -> LedgerInode:
        """The batch's ledger, made if need be."""
        return self.ledgers.setdefault(batch_id, LedgerInode(batch_id))


class ProcessDisk:
    """The system calls of one process; the production code's `Disk`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._open: dict[int, LedgerInode] = {}
        process.at_exit.append(self._close_all)

    def open(self, inode: LedgerInode) -> int:
        """A descriptor of the file; a real one, because the production code closes it for good."""
        fd = os.dup(_DEV_NULL)
        self._open[fd] = inode
        return fd

    def closed(self, fd: int) -> None:
        """The production code is about to close a descriptor."""
        del self._open[fd]

    def _close_all(self) -> None:
        for fd in self._open:
            os.close(fd)
        self._open.clear()

    def write(self, fd: int, data: bytes) -> int:
        inode = self._open[fd] if self._process.alive else None
        try:
            code = self._process.world.step(
                self._process, "ledger append", data[8:120].decode("utf-8", "replace")
            )
        except KilledError:
            # a write is no single step for the kernel: a dying process may leave a part of it
            if inode is not None and self._process.world.source.random() < 0.3:
                inode.cache += data[: self._process.world.source.randrange(len(data))]
            raise
        assert inode is not None
        if code:
            if code == errno.ENOSPC and self._process.world.source.random() < 0.5:
                short = self._process.world.source.randrange(len(data))
                inode.cache += data[:short]
                return short
            raise OSError(code, os.strerror(code))
        inode.cache += data
        return len(data)

    def truncate(self, fd: int, length: int) -> None:
        self._step("ledger cut")
        inode = self._open[fd]
        del inode.cache[length:]
        inode.synced = min(inode.synced, length)
        inode.version += 1

    def sync(self, fd: int) -> None:
        self._step("ledger sync")
        inode = self._open[fd]
        inode.synced = len(inode.cache)

    def _step(self, kind: str) -> None:
        code = self._process.world.step(self._process, kind)
        if code:
            raise OSError(code, os.strerror(code))


class _OrderedSet(dict[Any, None]):
    """A set that gives its members in the order in which they came."""

    def add(self, member: Any) -> None:
        self[member] = None

    def discard(self, member: Any) -> None:
        self.pop(member, None)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(super().__iter__()))


class _Beside:
    """Path of a ledger, for messages; what is kept beside it is not looked at."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return self._name

    def with_name(self, name: str) -> _Beside:
        return _Beside(name)

    def write_bytes(self, data: bytes) -> None:
        pass


class SimulatedLedgers(LocalLedgers):
    """The production code's group of ledgers, its thread replaced by timers and its files by the disk."""

    def __init__(self, disk: SimulatedDisk, process: Process) -> None:
        self._files = disk
        self._process = process
        self.disk = self._calls = ProcessDisk(process)
        self._lock = threading.Lock()
        self._dirty = _OrderedSet()  # type: ignore[assignment]
        self._wake = threading.Event()
        self._closed = False
        self._sync_every_s = SYNC_EVERY_S
        self._due = False
        self._last_sync = float("-inf")
        self._held: dict[LocalLedgerFile, tuple[LedgerInode, int]] = {}
        process.at_exit.append(self._release_all)

    async def open(self, batch_id: str) -> LocalLedgerFile:
        await asyncio.sleep(0.0005)  # in production this is another thread's work
        code = self._process.world.step(self._process, "ledger open", batch_id[:6])
        if code:
            raise LedgerError(f"the ledger of {batch_id} can't be opened ({os.strerror(code)})")
        inode = self._files.inode(batch_id)
        if not self.may_hold(inode):
            self._process.world.seen.add("claimed")
            raise BatchClaimedError(
                f"batch {batch_id} is being worked on by {inode.holder and inode.holder.name}"
            )
        inode.holder = self._process
        inode.users.append(self._process)
        if len(inode.users) > 1:
            self._process.world.violate("one process at a time works on a batch", f"batch {batch_id}")
        fd = self._calls.open(inode)
        file = LocalLedgerFile(_Beside(batch_id), fd, bytes(inode.cache), self)  # type: ignore[arg-type]
        self._held[file] = (inode, fd)
        return file

    @staticmethod
    def may_hold(inode: LedgerInode) -> bool:
        """The exclusive lock of the kernel."""
        return inode.holder is None

    def touched(self, file: LocalLedgerFile) -> None:
        super().touched(file)
        self._schedule()

    def wait_for(
        self, file: LocalLedgerFile, loop: asyncio.AbstractEventLoop, done: asyncio.Future[None]
    ) -> bool:
        self._process.check()
        waits = super().wait_for(file, loop, done)
        if waits:
            self._schedule()
        return waits

    def _schedule(self) -> None:
        """What the thread does: sync at once, but not sooner than a pause after the last time."""
        if self._due:
            return
        self._due = True
        loop = asyncio.get_running_loop()
        delay = max(0.001, self._last_sync + self._sync_every_s - loop.time())
        loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        if not self._process.alive:
            return
        loop = asyncio.get_running_loop()
        if self._process.stopped_until > loop.time():
            loop.call_at(self._process.stopped_until, self._tick)
            return
        self._due = False
        self._last_sync = loop.time()
        token = CURRENT.set(self._process)
        try:
            self.sync_all()
        except KilledError:
            pass
        finally:
            CURRENT.reset(token)

    def forget(self, file: LocalLedgerFile) -> None:
        self._process.check()
        super().forget(file)
        inode, fd = self._held.pop(file)
        self._release(inode)
        self._calls.closed(fd)

    def close(self) -> None:
        self._closed = True

    def _release_all(self) -> None:
        for inode, _ in self._held.values():
            self._release(inode)
        self._held.clear()

    def _release(self, inode: LedgerInode) -> None:
        inode.holder = None
        inode.users.remove(self._process)
