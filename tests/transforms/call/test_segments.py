"""Ledgers as sealed objects: fenced by their names, bounded in what a crash can lose."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import BatchClaimedError, LedgerError, StoreError
from tests.peers.cloud_storage import CloudStorage
from transforms import lease
from transforms.call.ledger import Frame, encode_frame, header, scan
from transforms.call.ledgers import read_ledger, read_spent
from transforms.call.segments import SegmentLedgers, read_segments, segment_path
from transforms.lease import Times
from transforms.store import LocalStore, Store, open_store
from transforms.verify_batch import prove_batch

BATCH = "a" * 32
WATCHED = Times(lease_s=60.0, renew_every_s=0.1)
"""Whoever looks at a living holder sees it move within half a second, or a little later on a busy machine."""

QUICK = Times(lease_s=2.0, renew_every_s=0.1)
"""Who has died is found out soon."""


@pytest.fixture
def ledgers(store: Store) -> Iterator[SegmentLedgers]:
    made = SegmentLedgers(store, seal_s=1e6)
    yield made
    made.close()


def intended(number: int) -> bytes:
    return encode_frame({"kind": "intended", "id": number})


def answered(number: int) -> bytes:
    return encode_frame({"kind": "answered", "id": number, "body": "x" * 50})


def records(store: Store, batch_id: str = BATCH) -> list[Frame]:
    """What the ledger holds, without claims."""
    data = b"".join(read_segments(store, batch_id))
    frames, length = scan(data)
    assert length == len(data)
    return [frame for frame in frames if frame["kind"] != "claimed"]


def test_what_was_synced_is_there_in_order_and_the_next_opening_has_it(store: Store) -> None:
    async def write(first: int, ledgers: SegmentLedgers) -> bytes:
        log = await ledgers.open(BATCH)
        before = log.content
        log.start(len(before))
        for number in range(first, first + 5):
            log.append(intended(number))
            log.append(answered(number))
            if number % 2:
                await log.sync()
        await log.close()
        return before

    contents = []
    for first in (0, 5):
        ledgers = SegmentLedgers(store, seal_s=1e6)
        contents.append(asyncio.run(write(first, ledgers)))
        ledgers.close()
    assert [frame["id"] for frame in records(store)] == [n for n in range(10) for _ in range(2)]
    frames, _ = scan(contents[1])
    assert [frame.get("id") for frame in frames] == [None, *[n for n in range(5) for _ in range(2)], None]


def test_segments_are_named_by_the_bytes_before_them(store: Store, ledgers: SegmentLedgers) -> None:
    async def write() -> None:
        log = await ledgers.open(BATCH)
        for number in range(3):
            log.append(answered(number))
            await log.sync()
        await log.close()

    asyncio.run(write())
    starts = sorted(int(path.rsplit("/", 1)[1].removesuffix(".seg")) for path in store.list("ledger"))
    sizes = [len(segment) for segment in read_segments(store, BATCH)]
    assert starts == [sum(sizes[:index]) for index in range(len(sizes))]


def test_no_call_may_be_sent_while_the_window_is_full(store: Store, ledgers: SegmentLedgers) -> None:
    """What was let go between two seals is counted at the store's own door."""
    sealed: list[int] = []
    real = store.create

    def counting(path: str, data: bytes) -> bool:
        if path.startswith("ledger/"):
            sealed.append(sum(frame["kind"] == "answered" for frame in scan(data)[0]))
        return real(path, data)

    store.create = counting  # type: ignore[method-assign]
    small = SegmentLedgers(store, window=10, seal_s=1e6)

    async def write() -> None:
        log = await small.open(BATCH)
        for number in range(200):
            await log.room()
            assert number - sum(sealed) < 10  # so many have ended and are not sealed
            log.append(intended(number))
            log.append(answered(number))
        await log.close()

    asyncio.run(write())
    small.close()
    assert sum(sealed) == 200
    assert max(sealed) <= 10
    assert len(records(store)) == 400


def test_a_crash_loses_at_most_the_window(store: Store) -> None:
    dead = SegmentLedgers(store, window=16, seal_s=1e6)

    async def write() -> int:
        log = await dead.open(BATCH)
        for number in range(100):
            await log.room()
            log.append(intended(number))
            log.append(answered(number))
        return 100

    sent = asyncio.run(write())
    lost = sent - sum(frame["kind"] == "answered" for frame in records(store))
    assert 0 <= lost <= 16
    dead.close()


def test_a_record_waits_no_longer_than_its_time(store: Store) -> None:
    hurried = SegmentLedgers(store, seal_s=0.05)

    async def write() -> None:
        log = await hurried.open(BATCH)
        log.append(answered(1))
        await asyncio.wait_for(log.sealed(), 120)  # nobody asks for it to be hurried
        assert [frame["id"] for frame in records(store)] == [1]
        await log.close()

    asyncio.run(write())
    hurried.close()


def test_while_a_process_lives_nobody_takes_its_batch(store: Store) -> None:
    first, second = SegmentLedgers(store, times=WATCHED), SegmentLedgers(store, times=WATCHED)

    async def both() -> None:
        log = await first.open(BATCH)
        with pytest.raises(BatchClaimedError, match=f"batch {BATCH} is being worked on by another process"):
            await second.open(BATCH)
        with pytest.raises(BatchClaimedError):
            await first.open(BATCH)
        await log.close()
        with pytest.raises(BatchClaimedError):  # the calls have ended, the commit may be on its way
            await second.open(BATCH)
        await (await first.open(BATCH)).close()  # a bundle that is run again in the same process

    asyncio.run(both())
    first.close()
    assert asyncio.run(second.open(BATCH)).appended == 0
    second.close()


def test_who_was_taken_over_can_write_no_more_and_its_unsealed_records_are_in_no_ledger(
    store: Store,
) -> None:
    zombie, heir = SegmentLedgers(store, seal_s=1e6), SegmentLedgers(store, seal_s=1e6)

    async def play() -> None:
        old = await zombie.open(BATCH)
        old.append(answered(1))
        await old.sync()
        old.append(answered(2))
        assert zombie._lease is not None
        _, generation = store.read_versioned(zombie._lease.path)
        assert lease.end(store, zombie._lease.path, generation)  # as one who found it silent does
        new = await heir.open(BATCH)
        assert [f.get("id") for f in scan(new.content)[0] if f["kind"] == "answered"] == [1]
        new.append(answered(3))
        await new.sync()
        with pytest.raises(LedgerError, match="another process has taken the batch over"):
            await old.sync()
        with pytest.raises(LedgerError):
            old.append(answered(4))
        with pytest.raises(LedgerError):
            await old.room()
        await new.close()

    asyncio.run(play())
    zombie.close()
    heir.close()
    assert [frame["id"] for frame in records(store)] == [1, 3]


def test_a_process_whose_lease_has_run_out_records_nothing_more(store: Store) -> None:
    now = [0.0]
    times = Times(lease_s=15.0, renew_every_s=1e6, monotonic=lambda: now[0], sleep=lambda _: None)
    ledgers = SegmentLedgers(store, times=times, seal_s=1e6)

    async def play() -> None:
        log = await ledgers.open(BATCH)
        log.append(answered(1))
        now[0] = 16.0
        with pytest.raises(LedgerError, match="lease was not renewed in time"):
            log.append(answered(2))
        before = ledgers._lease
        await log.close()
        log = await ledgers.open(BATCH)  # by a lease of its own: the process goes on
        assert ledgers._lease is not before
        log.append(answered(3))
        await log.close()

    asyncio.run(play())
    ledgers.close()
    assert [frame["id"] for frame in records(store)] == [3]
    assert not list(store.list("claims"))


def test_of_two_heirs_of_a_dead_process_one_opens_the_ledger(store: Store) -> None:
    store.create(segment_path(BATCH, 0), encode_frame({"kind": "claimed", "by": "claims/dead.json"}))
    heirs = [SegmentLedgers(store, times=WATCHED) for _ in range(4)]

    async def play() -> list[object]:
        return await asyncio.gather(*(heir.open(BATCH) for heir in heirs), return_exceptions=True)

    found = asyncio.run(play())
    assert sum(isinstance(outcome, BatchClaimedError) for outcome in found) == 3, found
    for heir in heirs:
        heir.close()


def test_all_batches_of_a_dead_process_are_taken_over_at_the_same_time(store: Store) -> None:
    """Each opening finds the same lease of the dead, and only one of them can end it."""
    batches = [f"{number:032x}" for number in range(8)]
    dead, heir = SegmentLedgers(store, times=QUICK), SegmentLedgers(store, times=QUICK)

    async def open_all(ledgers: SegmentLedgers) -> None:
        for log in await asyncio.gather(*(ledgers.open(batch) for batch in batches)):
            assert log.appended == 0

    asyncio.run(open_all(dead))
    held = dead._lease
    assert held is not None
    held._stop.set()  # it renews no more
    data, generation = store.read_versioned(held.path)
    store.swap(held.path, data.replace(b'"boot":"', b'"boot":"another '), generation)
    asyncio.run(open_all(heir))
    assert not store.exists(held.path)
    dead.close()
    heir.close()


def test_a_store_that_fails_breaks_the_ledger_with_the_reason(tmp_path: Path) -> None:
    class Failing(LocalStore):
        broken = False

        def create(self, path: str, data: bytes) -> bool:
            if self.broken and path.startswith("ledger/"):
                raise StoreError("the service is down")
            return super().create(path, data)

    store = Failing(str(tmp_path))
    ledgers = SegmentLedgers(store, seal_s=1e6)

    async def play() -> None:
        log = await ledgers.open(BATCH)
        log.append(answered(1))
        store.broken = True
        with pytest.raises(LedgerError, match=r"the service is down.*nothing is sent that can't be recorded"):
            await log.sync()
        await log.close()

    asyncio.run(play())
    ledgers.close()


def test_a_damaged_segment_is_never_written_behind(store: Store, ledgers: SegmentLedgers) -> None:
    store.create(segment_path(BATCH, 0), encode_frame(header(BATCH, "live")) + b"half a recor")

    with pytest.raises(LedgerError, match=r"is damaged: \d+ bytes of it are no whole record"):
        asyncio.run(ledgers.open(BATCH))
    assert len(list(store.list("ledger"))) == 1


def test_a_batch_without_a_ledger_has_spent_nothing(cloud_storage: CloudStorage) -> None:
    output = f"{cloud_storage.bucket()}/out"
    assert read_ledger(open_store(output), BATCH) is None
    assert read_spent(output, [BATCH]).spent == 0


def test_a_proof_names_the_folder_of_a_ledgers_segments(cloud_storage: CloudStorage) -> None:
    store = open_store(cloud_storage.bucket())
    sent = {"id": 0, "attempt": 1, "row": 0, "route": "ask", "backend": "mini", "call": 1}
    lost = encode_frame({"kind": "intended", **sent, "request": "r", "worst": "0.10", "at": "now"})
    store.create(segment_path(BATCH, 0), encode_frame(header(BATCH, "live")) + lost)
    notes: list[tuple[str, str, str]] = []
    prove_batch(store, BATCH, [], lambda *note: notes.append(note), lambda *_: False)
    assert [note[:2] for note in notes] == [("ambiguous", f"ledger/{BATCH}/")]
    assert "at most 0.1 USD" in notes[0][2]
