"""The budget record: `<output>/budget/record.json`, a local file that is replaced durably under a lock.

On object storage it is changed by compare-and-swap: see `transforms.call.stored_record`. For many workers it
has parts, `record-0.json` and so on: see `transforms.call.budget_parts`.

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
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from schemas.errors import StoreError
from schemas.outcomes import ZERO
from transforms.call.budget import LeasedBudget
from transforms.call.budget_parts import PartState, closed, divided, lease_from_part, part_of
from transforms.call.budget_record import BudgetState, Grant
from transforms.call.ledger_file import sync_directory
from transforms.call.ports import Clock
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


Record = LocalBudgetRecord | StoredRecord
Records = Callable[[str, str], Record]


def record_of(output: str, name: str = "record") -> Record:
    """A record of an output: that of the run's cap in money, or of another cap."""
    return record_at(output, f"budget/{name}.json")


def part_name(name: str, part: int) -> str:
    """The name of the record of a part of a cap."""
    return f"{name}-{part}"


def record_at(folder: str, path: str) -> Record:
    """The record at a path of a folder, whatever kind of folder it is."""
    return (
        StoredRecord(open_store(folder), path)
        if is_remote(folder)
        else LocalBudgetRecord(folder, Path(folder, path))
    )


def open_budget(
    output: str,
    cap: Decimal,
    spent: Decimal,
    name: str = "record",
    *,
    parts: int = 1,
    records: Records = record_of,
) -> Decimal:
    """Writes the record anew; the driver calls it when a run starts, before any worker. What is left.

    `spent` is what the output has cost so far: committed batches plus `read_spent` of the others.
    Leases of workers of an earlier run are void from here on (see `BudgetState.opened`). Where the cap is, or
    was, in several parts, those of the earlier run are closed first, so that what its workers have leased
    can't grow any more; then the record is written, then its parts. Whoever stops in between has lost nothing
    that the next run does not count.

    Raises:
        StoreError: the record can't be read or written, or another run begins at the same time.
    """
    start = _Start(output, name, records, secrets.token_hex(8))
    before = start.look()
    was, had = _epoch_of(before), 0 if before is None else len(before.parts)
    pieces = range(max(had, parts if parts > 1 else 0))
    used = sum((start.close(part, was) for part in pieces), ZERO)

    def change(data: bytes | None) -> tuple[bytes, BudgetState]:
        found = start.whole(data)
        if _epoch_of(found) != was:
            raise start.overtaken()
        state = BudgetState.opened(found, cap, spent, start.epoch, boot_id(output), used)
        state = divided(state, parts) if parts > 1 else state
        return state.to_json(), state

    state = records(output, name).update_now(change)
    for part, given in enumerate(state.parts):
        start.begin(part, given)
    return max(ZERO, state.unspent)


def _epoch_of(state: BudgetState | None) -> str:
    return "" if state is None else state.epoch


@dataclass(frozen=True, slots=True)
class _Start:
    """A run that starts, and what it does with the records of a cap."""

    output: str
    name: str
    records: Records
    epoch: str

    def whole(self, data: bytes | None) -> BudgetState | None:
        """The record of the whole cap."""
        try:
            return None if data is None else BudgetState.from_json(data)
        except StoreError:
            raise self._damaged(self.name) from None

    def look(self) -> BudgetState | None:
        """The record of the whole cap as it stands."""
        return self.records(self.output, self.name).update_now(lambda data: (None, self.whole(data)))

    def close(self, part: int, was: str) -> Decimal:
        """Let nothing more be leased from a part of the run before, whose epoch `was`; what it has used."""

        def change(data: bytes | None) -> tuple[bytes, Decimal]:
            found = self._part(data, part)
            # Where it is a later run's it has to stay, with what is leased in it. Such a run had written the
            # whole first.
            if found is not None and found.opened_in != was and _epoch_of(self.look()) != was:
                raise self.overtaken()
            state = closed(found, was, self.epoch)
            return state.to_json(), state.used

        return self._record(part).update_now(change)

    def begin(self, part: int, given: Grant) -> None:
        """Put a part of this run in the place of one that it has closed."""

        def change(data: bytes | None) -> tuple[bytes, None]:
            found = self._part(data, part)
            if found is None or found.closed_by != self.epoch:
                raise self.overtaken()
            return PartState(self.epoch, given.granted).to_json(), None

        self._record(part).update_now(change)

    def overtaken(self) -> StoreError:
        """Another run has begun since this one looked."""
        return StoreError(f"another run has begun on {self.output} at the same time: start this one again")

    def _record(self, part: int) -> Record:
        return self.records(self.output, part_name(self.name, part))

    def _part(self, data: bytes | None, part: int) -> PartState | None:
        try:
            return None if data is None else PartState.from_json(data)
        except StoreError:
            raise self._damaged(part_name(self.name, part)) from None

    def _damaged(self, name: str) -> StoreError:
        return StoreError(
            f"the budget record {self.output}/budget/{name}.json is damaged or another version's: delete it, "
            f"and the next run counts anew from commits and ledgers"
        )


def lease_from(
    output: str,
    state: BudgetState,
    holder: str,
    clock: Clock,
    patience_s: float,
    *,
    name: str = "record",
    sentence: str = "",
) -> LeasedBudget:
    """A worker's leases on a cap, whose record was found as `state`; of a cap in parts, on one of them."""
    if not state.parts:
        return LeasedBudget(
            record_of(output, name), holder, clock, state.cap, sentence=sentence, patience_s=patience_s
        )
    pieces = [record_of(output, part_name(name, part)) for part in range(len(state.parts))]
    return lease_from_part(
        record_of(output, name),
        pieces,
        part_of(holder, len(pieces)),
        state,
        holder,
        clock,
        patience_s=patience_s,
        sentence=sentence,
    )


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
