"""The index of answers that the processes of one output share: `<output>/shared/`.

`answers.N.index` are hash tables of fixed-size slots in memory-mapped files: 128 bits of the request's
key, and where in which ledger its answer stands. They hold hints only. A slot that is torn, lost or out
of date costs another call at worst: what it points to is checked before it is used.

`asking.N.lock` have no content: who asks a request holds the lock of one byte of one of them, where the
key says. The kernel lets go of the locks of a process that dies.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from schemas.errors import LedgerError, StoreError
from schemas.ids import sha256_hex
from schemas.outcomes import SharedFrom
from transforms.cache import cache_folder
from transforms.call.ledger import Frame, frame_at, read_frame
from transforms.call.ledger_file import ledger_path
from transforms.call.segments import read_segments
from transforms.call.share import Place, SharedAnswer
from transforms.locks import lock_byte, unlock_byte
from transforms.store import Store, is_remote

ReadFrame = Callable[[Place], Frame | None]
"""The frame at a place, if a whole one with that checksum stands there."""

FOLDER = "shared"
_SLOT = struct.Struct("<16s16sQII")
_BODY = struct.Struct("<16s16sQI")
_CHECKSUM = struct.Struct("<I")
_EMPTY = bytes(16)
_HEX_DIGITS = 32
_PROBES = 32
_FIRST_SLOTS = 1 << 14
_GROWTH = 8
_GIVE_BACK_AFTER = 512  # answers: they lie all over a table, and a fault may map 64 KiB
_MOST_TABLES = 6  # of 2**14 to 2**29 slots
# The system goes through all locks of a file to set one: spread over few files that costs a third.
_LOCK_FILES = 32


class SharedAnswers:
    """The index of one output. Where the system has no locks of single bytes, claims are always granted.

    Raises:
        StoreError: its files can't be made.
    """

    def __init__(self, output: str, read: ReadFrame | None = None) -> None:
        """`output` is a local folder; `read` reads frames where its ledgers are elsewhere."""
        self._read_frame = read or partial(_read_local, output)
        self._folder = Path(output) / FOLDER
        self._tables: list[mmap.mmap] = []
        self._added = 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._locks = [self._open_lock(number) for number in range(_LOCK_FILES)]
            self._open_table()
        except OSError as error:
            raise StoreError(
                f"the index of shared answers {self._folder} can't be made ({error.strerror or error}): mend "
                f"the disk, or set limits.share_identical = false"
            ) from None

    def _open_lock(self, number: int) -> int:
        name = f"asking.{number}.lock"
        return os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        """Lets go of files and locks."""
        for table in self._tables:
            table.close()
        for lock in self._locks:
            os.close(lock)

    def claim(self, key: bytes) -> bool:
        """See `AnswerIndex`. Two keys may share a byte: one then waits for the other."""
        return lock_byte(*self._byte(key))

    def release(self, key: bytes) -> None:
        """See `AnswerIndex`."""
        unlock_byte(*self._byte(key))

    def _byte(self, key: bytes) -> tuple[int, int]:
        """File and place of a key's lock. Without locks, identical requests may be paid once a process."""
        return self._locks[key[7] % _LOCK_FILES], int.from_bytes(key[:7], "little")

    def find(self, key: bytes) -> SharedAnswer | None:
        """See `AnswerIndex`."""
        place = self._find_place(key)
        return None if place is None else self._read(place)

    def add(self, key: bytes, place: Place) -> None:
        """See `AnswerIndex`; a later answer replaces an earlier one."""
        if len(place.batch_id) != _HEX_DIGITS:
            return  # no id of a batch that was planned
        body = _BODY.pack(key, bytes.fromhex(place.batch_id), place.offset, place.checksum)
        slot = body + _CHECKSUM.pack(zlib.crc32(body))
        for number in range(_MOST_TABLES):
            if number == len(self._tables):
                try:
                    self._open_table()
                except OSError:
                    return  # no room for hints: nothing is lost but a saving
            position = self._slot_for(self._tables[number], key)
            if position is not None:
                self._tables[number][position : position + _SLOT.size] = slot
                self._added += 1
                if self._added % _GIVE_BACK_AFTER == 0:
                    self._give_pages_back()
                return

    def _give_pages_back(self) -> None:
        """The tables stay in the system's cache of files, and this process's memory does not grow by them."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for table in self._tables:
                table.madvise(mmap.MADV_DONTNEED)

    def _find_place(self, key: bytes) -> Place | None:
        number = 0
        while number < len(self._tables) or self._open_next():
            table = self._tables[number]
            position = self._slot_for(table, key)
            if position is not None:
                slot = table[position : position + _SLOT.size]
                if slot[:16] != key:
                    return None
                _, batch_id, offset, checksum, own = _SLOT.unpack(slot)
                if zlib.crc32(slot[: _BODY.size]) != own:
                    return None
                return Place(batch_id.hex(), offset, checksum)
            number += 1
        return None

    @staticmethod
    def _slot_for(table: mmap.mmap, key: bytes) -> int | None:
        """Where the key stands, or may be put; None when its part of the table is full."""
        size = len(table)
        start = int.from_bytes(key[8:], "little") % (size // _SLOT.size) * _SLOT.size
        end = start + _PROBES * _SLOT.size
        part = table[start:end] if end <= size else table[start:size] + table[: end - size]
        if part.startswith(_EMPTY):
            return start
        found = [at for at in (_aligned(part, key), _aligned(part, _EMPTY)) if at >= 0]
        return (start + min(found)) % size if found else None

    def _open_next(self) -> bool:
        """Opens a further table that another process has made."""
        if not self._path(len(self._tables)).exists():
            return False
        with contextlib.suppress(OSError):
            self._open_table()
            return True
        return False

    def _open_table(self) -> None:
        number = len(self._tables)
        size = _FIRST_SLOTS * _GROWTH**number * _SLOT.size
        fd = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(fd).st_blocks * 512 < size:
                os.posix_fallocate(fd, 0, size)  # a full disk must not show as a bus error later
            self._tables.append(mmap.mmap(fd, size))
        except ValueError as error:
            raise OSError(str(error)) from None
        finally:
            os.close(fd)

    def _path(self, number: int) -> Path:
        return self._folder / f"answers.{number}.index"

    def _read(self, place: Place) -> SharedAnswer | None:
        """The answer at a place, when it is still the one that was noted."""
        frame = self._read_frame(place)
        if frame is None or frame.get("kind") != "answered" or "of" not in frame:
            return None
        row, route, document_id = frame["of"]
        return SharedAnswer.of(SharedFrom(place.batch_id, row, route, document_id), frame, fresh=False)


def _read_local(output: str, place: Place) -> Frame | None:
    """The frame at a place of a local ledger."""
    try:
        with ledger_path(output, place.batch_id).open("rb", buffering=0) as stream:
            return read_frame(stream.fileno(), place.offset, place.checksum)
    except OSError:
        return None


def _read_sealed(store: Store, place: Place) -> Frame | None:
    """The frame at a place of a ledger of segments: those before it are passed one by one."""
    start = 0
    try:
        for segment in read_segments(store, place.batch_id):
            if place.offset < start + len(segment):
                return frame_at(segment, place.offset - start, place.checksum)
            start += len(segment)
    except (StoreError, LedgerError, OSError):
        return None
    return None


def frame_reader(store: Store) -> ReadFrame:
    """What reads single frames of an output's ledgers; of one that does not stand there it gives None."""
    return partial(_read_sealed, store) if is_remote(store.root) else partial(_read_local, store.root)


def open_answers(store: Store) -> SharedAnswers:
    """The index of an output.

    Of one on object storage it is kept on this machine, in the cache folder: a write per answer is more
    than such a store takes. So identical requests are paid once by all processes of a machine, and may be
    paid once more by another machine.
    """
    if not is_remote(store.root):
        return SharedAnswers(store.root)
    folder = cache_folder() / "outputs" / sha256_hex(store.root.encode())[:32]
    return SharedAnswers(str(folder), frame_reader(store))


def _aligned(slots: bytes, name: bytes) -> int:
    """Where the first slot begins that has this key; -1 if none does.

    A search for the bytes: a full table of a million answers would be compared slot by slot otherwise.
    """
    at = slots.find(name)
    while at > 0 and at % _SLOT.size:
        at = slots.find(name, at + 1)
    return at
