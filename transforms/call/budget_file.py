"""The budget record: `<output>/budget/record.json`, a local file that is replaced durably under a lock.

On object storage it is changed by compare-and-swap: see `transforms.call.stored_record`.

It is written anew when a run starts, from commits and ledgers; only after a power cut does the old one
matter, because ledgers may then have lost their last moments and leases have not.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from schemas.errors import StoreError
from transforms.call.budget import BudgetState
from transforms.call.ledger_file import sync_directory
from transforms.call.stored_record import StoredRecord
from transforms.store import is_remote, open_store

T = TypeVar("T")


def record_path(output: str, name: str = "record") -> Path:
    """Where a record of an output is: that of the run's cap in money, or of another cap."""
    return Path(output) / "budget" / f"{name}.json"


class LocalBudgetRecord:
    """One record, by default that of an output. Its lock is held for a read, a synced write and a rename."""

    def __init__(self, output: str, path: Path | None = None) -> None:
        self._path = path or record_path(output)

    async def update(self, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        """Replaces the record as one step; see `BudgetRecordStore`."""
        return await asyncio.to_thread(self.update_now, change)

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
        with draft.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, self._path)
        sync_directory(self._path.parent)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def record_of(output: str, name: str = "record") -> LocalBudgetRecord | StoredRecord:
    """A record of an output: that of the run's cap in money, or of another cap."""
    return record_at(output, f"budget/{name}.json")


def record_at(folder: str, path: str) -> LocalBudgetRecord | StoredRecord:
    """The record at a path of a folder, whatever kind of folder it is."""
    return (
        StoredRecord(open_store(folder), path)
        if is_remote(folder)
        else LocalBudgetRecord(folder, Path(folder, path))
    )


def open_budget(output: str, cap: Decimal, spent: Decimal, name: str = "record") -> None:
    """Writes the record anew; the driver calls it when a run starts, before any worker.

    `spent` is what the output has cost so far: committed batches plus `read_spent` of the others.
    Leases of workers of an earlier run are void from here on (see `BudgetState.opened`).

    Raises:
        StoreError: the record can't be read or written.
    """

    def change(data: bytes | None) -> tuple[bytes, None]:
        try:
            before = None if data is None else BudgetState.from_json(data)
        except StoreError:
            raise StoreError(
                f"the budget record {output}/budget/{name}.json is damaged or another version's: delete it, "
                f"and the next run counts anew from commits and ledgers"
            ) from None
        state = BudgetState.opened(before, cap, spent, secrets.token_hex(8), boot_id(output))
        return state.to_json(), None

    record_of(output, name).update_now(change)


def boot_id(output: str) -> str:
    """Linux's id of this boot of the machine; empty where there is none.

    Of an output on object storage always empty: there, ledgers can lose their last moments by the crash of
    a process alone, so what was leased by workers that died counts as spent.
    """
    return "" if is_remote(output) else _boot_of_machine()


def _boot_of_machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def read_budget(output: str, name: str = "record") -> BudgetState | None:
    """The record as it stands; None when the output has none."""
    return record_of(output, name).update_now(
        lambda data: (None, None if data is None else BudgetState.from_json(data))
    )
