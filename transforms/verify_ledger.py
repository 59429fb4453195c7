"""Reading a ledger for its proof: frame by frame, without the answers' texts, torn tails told."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Literal

import orjson

from schemas.errors import LedgerError
from transforms.call.ledger import LONGEST_PAYLOAD, Frame, LedgerState, fold
from transforms.call.ledger_file import FILE_NAME, ledger_path
from transforms.call.ledgers import read_ledger
from transforms.layout import LEDGER
from transforms.store import Store, is_remote

Kind = Literal["contradiction", "ambiguous", "torn", "undelivered", "unfinished"]
Pair = tuple[int, str]
Note = Callable[[Kind, str, str], None]
_PREFIX = struct.Struct("<II")


def frames_of(ledger: IO[bytes], size: int) -> Generator[Frame, None, int]:
    """The frames of the longest whole prefix of a ledger of `size` bytes, without the answers' texts.

    The generator's return value is the length of what follows that prefix: a torn tail.
    """
    position = 0
    with ledger as stream:
        while position + _PREFIX.size <= size:
            prefix = stream.read(_PREFIX.size)
            length, checksum = _PREFIX.unpack(prefix)
            payload = stream.read(min(length, LONGEST_PAYLOAD, size))
            if len(payload) < length or zlib.crc32(payload, zlib.crc32(prefix[:4])) != checksum:
                break
            try:
                frame = orjson.loads(payload)
            except orjson.JSONDecodeError:
                break
            frame.pop("body", None)
            position += _PREFIX.size + length
            yield frame
    return size - position


@dataclass(slots=True)
class _WholeFrames:
    """The frames of a ledger, and afterwards how long its torn tail is."""

    ledger: IO[bytes]
    size: int
    torn: int = 0

    def __iter__(self) -> Iterator[Frame]:
        self.torn = yield from frames_of(self.ledger, self.size)


def answered_pairs(store: Store, batch_id: str) -> frozenset[Pair]:
    """The (row, route) pairs of which a batch's ledger holds an answer of their own."""
    state = read_state(store, batch_id, lambda *_: None)
    return frozenset((call.row, call.route) for call in state.calls.values() if call.end == "answered")


def ledger_place(store: Store, batch_id: str) -> str:
    """What a batch's ledger is called where it is: a file, or the folder of its segments."""
    return f"{LEDGER}/{batch_id}/{'' if is_remote(store.root) else FILE_NAME}"


def read_state(store: Store, batch_id: str, note: Note) -> LedgerState:
    """What a batch's ledger holds; `note` is told of torn tails and of what contradicts itself."""
    place = ledger_place(store, batch_id)
    try:
        frames = _frames(store, batch_id, note)
        if frames is None:
            return LedgerState()
        state = fold(frames, batch_id)
    except LedgerError as error:
        note("contradiction", place, str(error))
        return LedgerState()
    if frames.torn:
        note("torn", place, f"{frames.torn} bytes at its end are no whole record")
    return state


def _frames(store: Store, batch_id: str, note: Note) -> _WholeFrames | None:
    """A ledger to be read; None if there is none. Segments of one are joined in memory."""
    if is_remote(store.root):
        data = read_ledger(store, batch_id)
        return None if data is None else _WholeFrames(BytesIO(data), len(data))
    path = ledger_path(store.root, batch_id)
    if not path.exists():
        return None
    for torn in sorted(path.parent.glob(f"{FILE_NAME}.torn-at-*")):
        size = torn.stat().st_size
        note("torn", f"{LEDGER}/{batch_id}/{torn.name}", f"{size} bytes were cut off when it was opened")
    return _WholeFrames(path.open("rb"), path.stat().st_size)
