"""A shared record as one object: changed by compare-and-swap, exactly once whatever acknowledgement is lost.

Beside its own keys the object has `writes`: how many changes of each process it has taken in. When a swap
fails although it may have worked, that number says which it was, even after others have changed the record
again.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable
from random import SystemRandom
from typing import Any, TypeVar

import orjson

from schemas.errors import PreconditionFailedError, StoreError
from transforms.store import Store

T = TypeVar("T")
_MOST_WRITERS = 4096
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0
_GIVE_UP_S = 300.0
_RANDOM = SystemRandom()


class StoredRecord:
    """One record of a store; see `BudgetRecordStore`. Thread-safe as far as its store is."""

    def __init__(self, store: Store, path: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._store = store
        self._path = path
        self._sleep = sleep
        self._me = secrets.token_hex(8)
        self._writes = 0
        self._lock = threading.Lock()

    async def update(self, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        """Replaces the record as one step; see `BudgetRecordStore`."""
        return await asyncio.to_thread(self.update_now, change)

    def update_now(self, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        """The same for callers without an event loop."""
        with self._lock:
            self._writes += 1  # each change has a number of its own, even after one of unknown end
            return self._update(change, self._writes)

    def _update(self, change: Callable[[bytes | None], tuple[bytes | None, T]], number: int) -> T:
        until = time.monotonic() + _GIVE_UP_S
        pause = _FIRST_PAUSE_S
        done: list[T] = []
        while time.monotonic() < until:
            data, generation = self._read()
            if done and _writes(data).get(self._me) == number:
                return done[0]
            new, value = change(data)
            if new is None:
                return value
            done = [value]
            if self._replace(self._content(new, _writes(data), number), generation):
                return value
            self._sleep(_RANDOM.uniform(0, pause))
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        raise StoreError(
            f"{self._store.root}/{self._path} was changed by others each time this process was about to: "
            f"run with fewer workers"
        )

    def _read(self) -> tuple[bytes | None, str | None]:
        try:
            return self._store.read_versioned(self._path)
        except FileNotFoundError:
            return None, None

    def _replace(self, content: bytes, generation: str | None) -> bool:
        try:
            if generation is None:
                return self._store.create(self._path, content)
            self._store.swap(self._path, content, generation)
        except PreconditionFailedError:
            return False
        return True

    def _content(self, new: bytes, writes: dict[str, int], number: int) -> bytes:
        """The record's bytes with this change counted; who has not written for longest is forgotten."""
        kept = {who: count for who, count in writes.items() if who != self._me}
        kept[self._me] = number
        while len(kept) > _MOST_WRITERS:
            del kept[next(iter(kept))]
        record: dict[str, Any] = orjson.loads(new)
        return orjson.dumps({**record, "writes": kept})


def _writes(data: bytes | None) -> dict[str, int]:
    """How many changes of each process a record has; none if it is damaged, which its reader will say."""
    try:
        found = orjson.loads(data or b"{}").get("writes", {})
    except (orjson.JSONDecodeError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}
