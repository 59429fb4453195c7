"""Ledgers as local files: `<output>/ledger/<batch_id>/calls.ledger`.

Every record is written at once (a killed process loses nothing) and all open ledgers are synced
together every 50 ms by one thread (a power cut loses at most that window). The open file is held by an
exclusive lock, which a dying process lets go of by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
from pathlib import Path
from typing import Protocol

from schemas.errors import BatchClaimedError, LedgerError

SYNC_EVERY_S = 0.05
FILE_NAME = "calls.ledger"

_log = logging.getLogger(__name__)


class Disk(Protocol):
    """The three operations that a full or failing disk can refuse."""

    def write(self, fd: int, data: bytes) -> int:
        """Appends, as the system call of that name; gives the bytes that were taken."""
        ...

    def truncate(self, fd: int, length: int) -> None:
        """Cuts the file to `length` bytes."""
        ...

    def sync(self, fd: int) -> None:
        """Returns when what was written would survive a power cut."""
        ...


class LocalDisk:
    """The operating system's."""

    def write(self, fd: int, data: bytes) -> int:
        """Appends, as the system call of that name; gives the bytes that were taken."""
        return os.write(fd, data)

    def truncate(self, fd: int, length: int) -> None:
        """Cuts the file to `length` bytes."""
        os.ftruncate(fd, length)

    def sync(self, fd: int) -> None:
        """Returns when what was written would survive a power cut."""
        os.fdatasync(fd)


def ledger_path(output: str, batch_id: str) -> Path:
    """Where a batch's ledger is."""
    return Path(output) / "ledger" / batch_id / FILE_NAME


class LocalLedgerFile:
    """One open ledger file. Appends and `sync` are called on one event loop; syncing is the group's."""

    def __init__(self, path: Path, fd: int, content: bytes, group: LocalLedgers) -> None:
        self._path = path
        self._fd = fd
        self._content = content
        self._group = group
        self._broken: str | None = None
        self._io = threading.Lock()  # the group's thread must not sync a descriptor that was just closed
        self._closed = False
        # What an earlier process wrote may be in the page cache only: the first sync is for that, too.
        self.written = 1 if content else 0
        self.synced = 0
        self.is_touched = False  # the group knows that there is something to sync
        self.waiting: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    @property
    def content(self) -> bytes:
        """The bytes that were there when it was opened."""
        return self._content

    def start(self, length: int) -> None:
        """Cuts the tail behind `length`; what is cut is kept beside the ledger for whoever wants to look."""
        tail = self._content[length:]
        self._content = b""
        if not tail:
            return
        _log.warning("the ledger %s has a torn tail of %d bytes: cut", self._path, len(tail))
        try:
            self._path.with_name(f"{FILE_NAME}.torn-at-{length}").write_bytes(tail)
            self._group.disk.truncate(self._fd, length)
            self._group.disk.sync(self._fd)
        except OSError as error:
            raise self._break(error) from None

    def append(self, data: bytes) -> None:
        """Writes `data` whole, or raises LedgerError and takes nothing more."""
        if self._broken is not None:
            raise LedgerError(self._broken)
        try:
            if self._group.disk.write(self._fd, data) != len(data):
                raise OSError("written in part; the disk is full")
        except OSError as error:
            raise self._break(error) from None
        self.written += 1
        if not self.is_touched:
            self._group.touched(self)

    async def sync(self) -> None:
        """Waits for the next group sync that covers everything appended so far."""
        if self._broken is not None:
            raise LedgerError(self._broken)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if self._group.wait_for(self, loop, done):
            await done

    async def close(self) -> None:
        """Syncs, and lets go of file and lock."""
        with contextlib.suppress(LedgerError):
            await self.sync()
        self._group.forget(self)
        with self._io:
            self._closed = True
            os.close(self._fd)

    def fdatasync(self) -> LedgerError | None:
        """Syncs the file; called by the group's thread."""
        with self._io:
            if self._closed:
                return None
            try:
                self._group.disk.sync(self._fd)
            except OSError as error:
                return self._break(error)  # after a failed sync nobody knows what is on the disk
        return None

    def _break(self, error: OSError) -> LedgerError:
        self._broken = (
            f"the ledger {self._path} can't be written ({error.strerror or error}): nothing is sent that "
            f"can't be recorded. Make room or mend the disk, then run again"
        )
        return LedgerError(self._broken)


class LocalLedgers:
    """All ledgers of one output that this process has open, and the thread that syncs them."""

    def __init__(self, output: str, disk: Disk | None = None, sync_every_s: float = SYNC_EVERY_S) -> None:
        self.disk = disk or LocalDisk()
        self._output = output
        self._sync_every_s = sync_every_s
        self._lock = threading.Lock()
        self._dirty: set[LocalLedgerFile] = set()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ledger-sync", daemon=True)
        self._thread.start()

    async def open(self, batch_id: str) -> LocalLedgerFile:
        """The batch's ledger; its directories are created, and durable."""
        return await asyncio.get_running_loop().run_in_executor(None, self._open, batch_id)

    def _open(self, batch_id: str) -> LocalLedgerFile:
        path = ledger_path(self._output, batch_id)
        try:
            _make_durable_directories(path.parent)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LedgerError(
                f"the ledger {path} can't be opened ({error.strerror}): mend it, then run again"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_directory(path.parent)
            return LocalLedgerFile(path, fd, _read_all(fd), self)
        except BlockingIOError:
            os.close(fd)
            raise BatchClaimedError(
                f"batch {batch_id} is being worked on by another process, which holds {path}: wait for it, "
                f"or end it, then run again"
            ) from None
        except OSError as error:
            os.close(fd)
            raise LedgerError(f"the ledger {path} can't be read ({error.strerror}): mend the disk") from None

    def touched(self, file: LocalLedgerFile) -> None:
        """Notes that `file` has something to sync."""
        with self._lock:
            file.is_touched = True
            self._dirty.add(file)
        self._wake.set()

    def wait_for(
        self, file: LocalLedgerFile, loop: asyncio.AbstractEventLoop, done: asyncio.Future[None]
    ) -> bool:
        """Has `done` completed once all that is written is synced; False when it already is."""
        with self._lock:
            if file.synced >= file.written:
                return False
            file.waiting.append((file.written, loop, done))
            self._dirty.add(file)
        self._wake.set()
        return True

    def forget(self, file: LocalLedgerFile) -> None:
        """The file is about to be closed."""
        with self._lock:
            self._dirty.discard(file)

    def close(self) -> None:
        """Ends the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        pause = threading.Event()
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            self.sync_all()
            pause.wait(self._sync_every_s)

    def sync_all(self) -> None:
        """Syncs every ledger that has something to sync."""
        with self._lock:
            for file in self._dirty:  # first: what is written from here on touches it again
                file.is_touched = False
            due = [(file, file.written) for file in self._dirty]
            self._dirty.clear()
        for file, written in due:
            self._finish(file, written, file.fdatasync())

    def _finish(self, file: LocalLedgerFile, written: int, error: LedgerError | None) -> None:
        with self._lock:
            if error is None:
                file.synced = max(file.synced, written)
            ready = [entry for entry in file.waiting if error is not None or entry[0] <= written]
            file.waiting = [entry for entry in file.waiting if entry not in ready]
        for _, loop, done in ready:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(_complete, done, error)


def _complete(done: asyncio.Future[None], error: LedgerError | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def read_durably(path: Path, disk: Disk | None = None) -> bytes:
    """A ledger's bytes, on the disk by now: what is counted by them is not forgotten in a power cut.

    A process that was killed may have left some that are only in memory.

    Raises:
        FileNotFoundError: there is no such ledger.
        OSError: it can't be read, or not be made durable.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        (disk or LocalDisk()).sync(fd)
        return _read_all(fd)
    finally:
        os.close(fd)


def _read_all(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    data = bytearray()
    while len(data) < size:
        piece = os.pread(fd, size - len(data), len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


def _make_durable_directories(path: Path) -> None:
    if path.is_dir():
        return
    _make_durable_directories(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
