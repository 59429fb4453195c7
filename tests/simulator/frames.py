"""What a ledger says, read by other code than the one that writes it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import orjson

from tests.simulator.disk import LedgerInode


@dataclass(slots=True)
class SeenCall:
    """A call as a ledger tells of it."""

    intended: dict[str, Any]
    end: dict[str, Any] | None = None

    @property
    def key(self) -> tuple[int, str, int, str]:
        """Row, route, attempt, request: what is to be paid once."""
        i = self.intended
        return i["row"], i["route"], i["attempt"], i["request"]

    @property
    def kind(self) -> str | None:
        """How it ended; None when it has not."""
        return None if self.end is None else str(self.end["kind"])

    @property
    def worst(self) -> Decimal:
        """The most that it can cost."""
        return Decimal(self.intended["worst"])

    @property
    def amount(self) -> Decimal:
        """What it was charged with."""
        assert self.end is not None
        return Decimal(self.end["charge"]["amount"])


@dataclass
class LedgerView:
    """The calls in the whole frames of a ledger, kept up to date as it grows."""

    inode: LedgerInode
    calls: dict[int, SeenCall] = field(default_factory=dict)
    _read: int = 0
    _version: int = 0

    def update(self) -> dict[int, SeenCall]:
        """The calls by id, as they stand in the cache now."""
        if self._version != self.inode.version:
            self.calls, self._read, self._version = {}, 0, self.inode.version
        if self._read < len(self.inode.cache):
            found = whole_frames(bytes(self.inode.cache[self._read :]))
            for payload, size in found:
                self._take(payload)
                self._read += size
        return self.calls

    def _take(self, payload: dict[str, Any]) -> None:
        match payload["kind"]:
            case "header" | "claimed" | "ended":
                pass
            case "intended":
                self.calls[payload["id"]] = SeenCall(payload)
            case _ if payload["id"] in self.calls:
                self.calls[payload["id"]].end = payload


def whole_frames(data: bytes) -> list[tuple[dict[str, Any], int]]:
    """Payload and size of every frame up to the first that is not whole."""
    found = []
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        payload = data[at + 8 : at + 8 + size]
        checksum = zlib.crc32(data[at : at + 4] + payload)
        if len(payload) < size or checksum != int.from_bytes(data[at + 4 : at + 8], "little"):
            break
        found.append((orjson.loads(payload), 8 + size))
        at += 8 + size
    return found
