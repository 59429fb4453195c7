"""Ledgers as files: held by one process, synced together, and closed to a disk that fails."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from schemas.errors import BatchClaimedError, LedgerError
from schemas.outcomes import money
from tests.transforms.call.test_ledger import answered, header, intended
from transforms.call.ledger import encode_frame, scan
from transforms.call.ledger_file import LocalDisk, LocalLedgers, ledger_path
from transforms.call.ledgers import read_spent

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(main)


@pytest.fixture
def ledgers(tmp_path: Path) -> Iterator[LocalLedgers]:
    store = LocalLedgers(str(tmp_path), sync_every_s=0.001)
    yield store
    store.close()


def test_what_was_appended_is_there_when_it_is_opened_again(ledgers: LocalLedgers, tmp_path: Path) -> None:
    async def main() -> bytes:
        log = await ledgers.open("b1")
        assert log.content == b""
        log.append(b"one")
        log.append(b"two")
        assert ledger_path(str(tmp_path), "b1").read_bytes() == b"onetwo"  # at once, before any sync
        await log.sync()
        await log.close()
        again = await ledgers.open("b1")
        await again.close()
        return again.content

    assert run(main()) == b"onetwo"


def test_a_ledger_is_held_by_one_at_a_time(ledgers: LocalLedgers) -> None:
    async def main() -> None:
        log = await ledgers.open("b1")
        with pytest.raises(BatchClaimedError, match="b1"):
            await ledgers.open("b1")
        await log.close()
        await (await ledgers.open("b1")).close()

    run(main())


def test_a_killed_process_lets_go_of_its_ledger_and_loses_nothing_written(tmp_path: Path) -> None:
    code = (
        "import asyncio,sys,time\n"
        "from transforms.call.ledger_file import LocalLedgers\n"
        "async def main():\n"
        "    log = await LocalLedgers(sys.argv[1], sync_every_s=1000).open('b1')\n"
        "    log.append(b'paid')\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"

        async def refused() -> None:
            store = LocalLedgers(str(tmp_path))
            try:
                with pytest.raises(BatchClaimedError):
                    await store.open("b1")
            finally:
                store.close()

        run(refused())
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()

    async def reopened() -> bytes:
        store = LocalLedgers(str(tmp_path))
        log = await store.open("b1")
        await log.close()
        store.close()
        return log.content

    assert run(reopened()) == b"paid"


def test_a_torn_tail_is_cut_and_kept_beside_the_ledger(ledgers: LocalLedgers, tmp_path: Path) -> None:
    path = ledger_path(str(tmp_path), "b1")
    path.parent.mkdir(parents=True)
    whole = encode_frame(header("b1", "live"))
    path.write_bytes(whole + b"torn")

    async def main() -> None:
        log = await ledgers.open("b1")
        log.start(scan(log.content)[1])
        log.append(encode_frame(intended(1)))
        await log.close()

    run(main())
    assert path.read_bytes() == whole + encode_frame(intended(1))
    assert path.with_name(f"calls.ledger.torn-at-{len(whole)}").read_bytes() == b"torn"


class FailingDisk(LocalDisk):
    """Fails as it is told to."""

    def __init__(self, operation: str, error: int) -> None:
        self.operation, self.error = operation, error
        self.synced = threading.Event()

    def write(self, fd: int, data: bytes) -> int:
        if self.operation == "write":
            raise OSError(self.error, os.strerror(self.error))
        if self.operation == "short write":
            return super().write(fd, data[: len(data) // 2])
        return super().write(fd, data)

    def sync(self, fd: int) -> None:
        if self.operation == "sync":
            raise OSError(self.error, os.strerror(self.error))
        super().sync(fd)


@pytest.mark.parametrize(
    ("operation", "error", "said"),
    [
        ("write", errno.ENOSPC, "No space left"),
        ("write", errno.EIO, "Input/output error"),
        ("short write", 0, "written in part"),
        ("sync", errno.EIO, "Input/output error"),
    ],
)
def test_a_ledger_whose_disk_failed_takes_nothing_more(
    tmp_path: Path, operation: str, error: int, said: str
) -> None:
    store = LocalLedgers(str(tmp_path), FailingDisk(operation, error), sync_every_s=0.001)

    async def main() -> None:
        log = await store.open("b1")

        async def write_durably() -> None:
            log.append(b"0123456789")
            await log.sync()

        with pytest.raises(LedgerError, match=said):
            await write_durably()
        with pytest.raises(LedgerError, match=said):
            log.append(b"more")
        with pytest.raises(LedgerError, match=said):
            await log.sync()
        await log.close()

    run(main())
    store.close()


class CountingDisk(LocalDisk):
    syncs = 0

    def sync(self, fd: int) -> None:
        self.syncs += 1
        super().sync(fd)


def test_one_sync_serves_all_ledgers_and_all_who_wait(tmp_path: Path) -> None:
    disk = CountingDisk()
    store = LocalLedgers(str(tmp_path), disk, sync_every_s=0.001)

    async def main() -> None:
        logs = [await store.open(f"b{n}") for n in range(5)]
        for log in logs:
            for _ in range(100):
                log.append(b"x")
        await asyncio.gather(*(log.sync() for log in logs for _ in range(10)))
        before = disk.syncs
        await asyncio.gather(*(log.sync() for log in logs))  # nothing new: nothing to sync
        assert disk.syncs == before
        assert before <= 15
        for log in logs:
            await log.close()

    run(main())
    store.close()


def test_what_a_killed_process_left_unsynced_is_synced_by_whoever_relies_on_it(tmp_path: Path) -> None:
    path = ledger_path(str(tmp_path), "b1")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"written by a process that was killed before it synced")
    disk = CountingDisk()
    ledgers = LocalLedgers(str(tmp_path), disk, sync_every_s=0.001)

    async def main() -> None:
        log = await ledgers.open("b1")
        await log.sync()  # nothing was appended
        assert disk.syncs == 1
        await log.close()

    run(main())
    ledgers.close()
    assert disk.syncs == 1


def test_an_output_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("a file where the folder should be")
    store = LocalLedgers(str(tmp_path))

    async def main() -> None:
        await store.open("b1")

    with pytest.raises(LedgerError, match=r"calls\.ledger"):
        run(main())
    store.close()


def test_spent_is_what_is_due_in_the_ledgers_and_nothing_of_earlier_attempts(tmp_path: Path) -> None:
    for batch_id in ("b1", "b2"):
        path = ledger_path(str(tmp_path), batch_id)
        path.parent.mkdir(parents=True)
        frames = [header(batch_id, "live"), intended(1), answered(1), intended(2, attempt=2), answered(2)]
        path.write_bytes(b"".join(map(encode_frame, frames)) + b"torn tail")
    assert read_spent(str(tmp_path), ["b1", "b2", "never started"]).spent == money("0.0012")
    assert read_spent(str(tmp_path), ["b1", "b2"], {"b1": 2}).spent == money("0.0009")
    assert read_spent(str(tmp_path), ["b1"], {"b1": 3}).calls == 0


def test_what_is_counted_as_spent_is_durable_first_lest_a_power_cut_makes_it_more(tmp_path: Path) -> None:
    """A call whose end is forgotten counts at its worst: more than the budget was opened with."""
    for batch_id in ("b1", "b2"):
        path = ledger_path(str(tmp_path), batch_id)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"".join(map(encode_frame, [header(batch_id, "live"), intended(1), answered(1)])))
    disk = CountingDisk()
    assert read_spent(str(tmp_path), ["b1", "b2", "never started"], disk=disk).spent > 0
    assert disk.syncs == 2
    with pytest.raises(LedgerError, match="Input/output error"):
        read_spent(str(tmp_path), ["b1"], disk=FailingDisk("sync", errno.EIO))
