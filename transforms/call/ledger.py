"""The ledger's format: frames with a checksum, and what they add up to. No I/O.

A frame is `u32 length, u32 crc32, payload`, little endian; the checksum covers the length's four bytes
and the payload, which is one JSON object. Kinds of payload:

- `header`: once, first: format version, batch, mode (`live` or `rehearsal`)
- `intended`: before a call is sent: id, attempt, row, route, backend, call number, request digest,
  worst amount and tokens, instant; `via`, when it went out with a provider batch
- `answered`: before the answer is used: id, status, headers, body, usage, charge, latency, instant
- `failed`: the call ended and nothing was billed: id, class, message, instant
- `shared`: once, for a call that was never made: another row's answer to the identical request, copied
  with where it comes from, so that a replay needs no other ledger
- `claimed`: who works on the batch from here on; on object storage, before the header too
- `ended`: all calls of an attempt have been made; on object storage, before it may be committed
- `unknown`: nobody knows whether the call was billed: id, cause, message, instant
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import orjson

from schemas.errors import LedgerError
from schemas.outcomes import Charge, SharedFrom, Usage, money
from transforms.call.wire import WireResponse

LEDGER_VERSION = "ledger/1"
LONGEST_PAYLOAD = 1 << 28  # a response body is bounded far below; a longer length is damage
_PREFIX = struct.Struct("<II")
_LENGTH = struct.Struct("<I")

Frame = dict[str, Any]


def encode_frame(payload: Frame) -> bytes:
    """The frame of one payload."""
    data = orjson.dumps(payload)
    length = _LENGTH.pack(len(data))
    return length + _LENGTH.pack(zlib.crc32(data, zlib.crc32(length))) + data


def _checksum(data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(_LENGTH.pack(len(data))))


def scan(data: bytes) -> tuple[list[Frame], int]:
    """The frames of the longest prefix that is whole, and that prefix's length in bytes.

    A torn or damaged frame ends the prefix; nothing behind it is looked at, nothing is guessed.
    """
    frames: list[Frame] = []
    position = 0
    while position + _PREFIX.size <= len(data):
        length, checksum = _PREFIX.unpack_from(data, position)
        end = position + _PREFIX.size + length
        payload = data[position + _PREFIX.size : end]
        if length > LONGEST_PAYLOAD or len(payload) < length or _checksum(payload) != checksum:
            break
        try:
            frame = orjson.loads(payload)
        except orjson.JSONDecodeError:
            break
        if not isinstance(frame, dict):
            break
        frames.append(frame)
        position = end
    return frames, position


def places(data: bytes, frames: int) -> list[tuple[int, int]]:
    """Offset and checksum of the first `frames` frames of `data`, which `scan` found to be whole."""
    found = []
    position = 0
    for _ in range(frames):
        length, checksum = _PREFIX.unpack_from(data, position)
        found.append((position, checksum))
        position += _PREFIX.size + length
    return found


def checksum_of(frame: bytes) -> int:
    """The checksum in an encoded frame's prefix."""
    checksum: int = _PREFIX.unpack_from(frame)[1]
    return checksum


def frame_at(data: bytes, offset: int, checksum: int) -> Frame | None:
    """The frame at an offset of a ledger's bytes, if a whole one with that checksum stands there."""
    if offset + _PREFIX.size > len(data):
        return None
    length, found = _PREFIX.unpack_from(data, offset)
    if found != checksum:
        return None
    frames, _ = scan(data[offset : offset + _PREFIX.size + length])
    return frames[0] if frames else None


def read_frame(fd: int, offset: int, checksum: int) -> Frame | None:
    """The frame at an offset of an open ledger, if a whole one with that checksum stands there."""
    prefix = os.pread(fd, _PREFIX.size, offset)
    if len(prefix) < _PREFIX.size:
        return None
    length, found = _PREFIX.unpack(prefix)
    if found != checksum or length > LONGEST_PAYLOAD:
        return None
    frames, _ = scan(prefix + os.pread(fd, length, offset + _PREFIX.size))
    return frames[0] if frames else None


def header(batch_id: str, mode: str) -> Frame:
    """The first frame's payload."""
    return {"kind": "header", "version": LEDGER_VERSION, "batch_id": batch_id, "mode": mode}


@dataclass(slots=True)
class RecordedCall:
    """A call as the ledger knows it. `end` is `answered`, `failed`, `unknown` or None (none recorded).

    With `shared` it is no call, but an answer taken over from another row. `place` is where the frame of
    its end stands: offset and checksum.
    """

    id: int
    attempt: int
    row: int
    route: str
    backend: str
    call: int
    request_sha256: str
    worst: Decimal | None
    sent_at: str
    worst_tokens: int = 0
    via: str | None = None  # the ticket with which it went out in a provider batch
    end: str | None = None
    final: Frame = field(default_factory=dict)
    place: tuple[int, int] = (-1, 0)

    @property
    def origin(self) -> SharedFrom:
        """Whose answer a shared one is."""
        return SharedFrom(**self.final["from"])

    @property
    def usage(self) -> Usage:
        """Tokens of an answered call."""
        return Usage(**self.final["usage"])

    @property
    def charge(self) -> Charge:
        """The settled charge of an answered call."""
        return charge_from(self.final["charge"])

    @property
    def response(self) -> WireResponse:
        """The recorded response of an answered call."""
        body = self.final["body"].encode()
        return WireResponse(status=self.final["status"], headers=self.final["headers"], body=body)


@dataclass(slots=True)
class LedgerState:
    """What a ledger adds up to: its calls by id, in the order in which they were sent."""

    mode: str | None = None
    calls: dict[int, RecordedCall] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)  # attempts of which no further call is made

    @property
    def next_id(self) -> int:
        """An id that no call has."""
        return max(self.calls, default=0) + 1

    def open_calls(self) -> list[RecordedCall]:
        """Calls without a recorded end: what was in flight when their process died.

        Not those of provider batches: their ends are with the provider, and are fetched again.
        """
        return [call for call in self.calls.values() if call.end is None and call.via is None]


def fold(frames: Iterable[Frame], batch_id: str) -> LedgerState:
    """What the frames add up to.

    Raises:
        LedgerError: another version's or batch's ledger, or an order of frames that no writer makes.
    """
    state = LedgerState()
    try:
        for frame in frames:
            if frame["kind"] == "ended":
                state.ended.add(frame["attempt"])
            elif frame["kind"] != "claimed":
                _apply(state, frame, batch_id)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise LedgerError(
            f"the ledger of batch {batch_id} holds a record that this version of Switchgear doesn't know "
            f"({type(error).__name__}: {error}): use the version that wrote it"
        ) from None
    return state


def _apply(state: LedgerState, frame: Frame, batch_id: str) -> None:
    kind = frame["kind"]
    if kind == "header":
        if (frame["version"], frame["batch_id"]) != (LEDGER_VERSION, batch_id):
            raise ValueError(f"header of {frame['version']!r} for batch {frame['batch_id']!r}")
        state.mode = frame["mode"]
    elif state.mode is None:
        raise ValueError("no header")
    elif kind == "intended":
        call = _intended(frame)
        if call.id in state.calls:
            raise ValueError(f"call {call.id} was intended twice")
        state.calls[call.id] = call
    elif kind == "shared":
        call = _intended(frame)
        call.end, call.final = kind, frame
        if state.calls.setdefault(call.id, call) is not call:
            raise ValueError(f"call {call.id} was there before")
    elif kind in ("answered", "failed", "unknown"):
        call = state.calls[frame["id"]]
        if call.end is not None:
            raise ValueError(f"call {call.id} ended twice")
        call.end, call.final = kind, frame
    else:
        raise ValueError(f"kind {kind!r}")


def _intended(frame: Frame) -> RecordedCall:
    worst = frame["worst"]
    return RecordedCall(
        id=frame["id"],
        attempt=frame["attempt"],
        row=frame["row"],
        route=frame["route"],
        backend=frame["backend"],
        call=frame["call"],
        request_sha256=frame["request"],
        worst=None if worst is None else money(worst),
        sent_at=frame["at"],
        worst_tokens=frame.get("tokens", 0),
        via=frame.get("via"),
    )


_AMOUNTS = ("amount", "list_amount")


def charge_to(charge: Charge) -> dict[str, Any]:
    """A charge as JSON; amounts as decimal strings. Only what a hosted call can have."""
    return {
        "amount": None if charge.amount is None else str(charge.amount),
        "list_amount": None if charge.list_amount is None else str(charge.list_amount),
        "basis": charge.basis,
        "certainty": charge.certainty,
        "price_source": charge.price_source,
        "price_as_of": charge.price_as_of,
        "currency": charge.currency,
    }


def charge_from(data: Mapping[str, Any]) -> Charge:
    """The inverse of `charge_to`."""
    values = {**data, **{name: money(data[name]) for name in _AMOUNTS if data[name] is not None}}
    return Charge(**values)


def usage_to(usage: Usage) -> dict[str, Any]:
    """Token counts as JSON."""
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cache_read_input_tokens,
        "cache_creation_input_tokens": usage.cache_creation_input_tokens,
    }
