"""The budget record as a local file: `<output>/budget/record.json`, replaced under a lock.

It need not survive a power cut: it is written anew when a run starts, from commits and ledgers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from schemas.errors import StoreError
from schemas.outcomes import money
from transforms.call.budget import BudgetState

T = TypeVar("T")


def record_path(output: str) -> Path:
    """Where the record is."""
    return Path(output) / "budget" / "record.json"


class LocalBudgetRecord:
    """The record of one output. Its lock is held for a read and a rename, well under a millisecond."""

    def __init__(self, output: str) -> None:
        self._path = record_path(output)

    async def update(self, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        """Replaces the record as one step; see `BudgetRecordStore`."""
        return self.update_now(change)

    def update_now(self, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        """The same for callers without an event loop."""
        try:
            with self._locked():
                data, value = change(self._read())
                if data is not None:
                    self._write(data)
                return value
        except OSError as error:
            raise StoreError(
                f"the budget record {self._path} can't be used ({error.strerror or error}): mend the disk"
            ) from None

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, data: bytes) -> None:
        draft = self._path.with_suffix(".draft")  # one writer at a time: the lock is held
        draft.write_bytes(data)
        os.replace(draft, self._path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def open_budget(output: str, cap: Decimal, spent: Decimal) -> None:
    """Writes the record anew; the driver calls it when a run starts, before any worker.

    `spent` is what the output has cost so far: committed batches plus `read_spent` of the others.
    Leases of workers of an earlier run are void from here on.

    Raises:
        StoreError: the record can't be written.
    """
    state = BudgetState(cap=money(cap), spent=money(spent), epoch=secrets.token_hex(8))
    LocalBudgetRecord(output).update_now(lambda _: (state.to_json(), None))


def read_budget(output: str) -> BudgetState | None:
    """The record as it stands; None when the output has none."""
    return LocalBudgetRecord(output).update_now(
        lambda data: (None, None if data is None else BudgetState.from_json(data))
    )
