"""A shared record on object storage: every change counts once, whatever is lost on the way."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import orjson
import pytest

from schemas.errors import PreconditionFailedError, StoreError
from tests.peers.cloud_storage import CloudStorage
from transforms.call.budget_file import open_budget, read_budget, record_of
from transforms.call.stored_record import StoredRecord
from transforms.store import LocalStore, open_store


class Forgetful(LocalStore):
    """A store whose acknowledgements can be lost: it has done what it says it has not."""

    def __init__(self, root: str, seed: int) -> None:
        super().__init__(root)
        self.random = random.Random(seed)
        self.meanwhile: Callable[[], None] = lambda: None

    def swap(self, path: str, data: bytes, generation: str) -> str:
        following = super().swap(path, data, generation)
        if self.random.random() < 0.4:
            self.meanwhile()
            raise PreconditionFailedError("lost")
        return following


def add(amount: int) -> Callable[[bytes | None], tuple[bytes | None, int]]:
    def change(data: bytes | None) -> tuple[bytes | None, int]:
        count = orjson.loads(data)["count"] + amount if data else amount
        return orjson.dumps({"count": count}), count

    return change


@pytest.mark.parametrize("seed", range(5))
def test_a_change_whose_acknowledgement_is_lost_counts_once_even_when_others_came_after(
    tmp_path, seed: int
) -> None:
    store = Forgetful(str(tmp_path), seed)
    mine = StoredRecord(store, "r.json", sleep=lambda _: None)
    other = StoredRecord(LocalStore(str(tmp_path)), "r.json")
    store.meanwhile = lambda: None if store.random.random() < 0.5 else other.update_now(add(1000)) and None
    others = 0
    for _ in range(50):
        mine.update_now(add(1))
    count = orjson.loads(store.read("r.json"))["count"]
    others = count // 1000
    assert count == 50 + 1000 * others
    assert others > 0


def test_changes_of_many_threads_all_count(cloud_storage: CloudStorage) -> None:
    store = open_store(f"{cloud_storage.bucket()}/out")
    barrier = threading.Barrier(4)

    def work(_: int) -> None:
        record = StoredRecord(store, "budget/record.json")
        barrier.wait()
        for _ in range(10):
            record.update_now(add(1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert orjson.loads(store.read("budget/record.json"))["count"] == 40


def test_a_record_that_is_only_looked_at_stays_as_it_is(tmp_path) -> None:
    store = LocalStore(str(tmp_path))
    record = StoredRecord(store, "r.json")
    assert record.update_now(lambda data: (None, data)) is None
    assert not store.exists("r.json")


def test_what_workers_that_died_had_leased_stays_spent(cloud_storage: CloudStorage) -> None:
    """Their ledgers may lack what they did last: nobody can tell a killed process from a power cut here."""
    output = f"{cloud_storage.bucket()}/out"
    open_budget(output, Decimal(10), Decimal(1))
    record = record_of(output)
    state = read_budget(output)
    assert state is not None
    record.update_now(lambda data: (state.draw("dead", Decimal(2), Decimal(2))[0].to_json(), None))
    open_budget(output, Decimal(10), Decimal("1.5"))
    after = read_budget(output)
    assert after is not None
    assert (after.spent, after.leases, after.left) == (Decimal(3), {}, Decimal(7))


def test_a_record_that_others_change_each_time_is_given_up_with_a_sentence(tmp_path, monkeypatch) -> None:
    class Busy(LocalStore):
        def swap(self, path: str, data: bytes, generation: str) -> str:
            raise PreconditionFailedError("always")

    store = Busy(str(tmp_path))
    store.create("r.json", b'{"count": 1}')
    ticks = iter(range(0, 10**6, 100))
    monkeypatch.setattr("transforms.call.stored_record.time.monotonic", lambda: next(ticks))
    with pytest.raises(StoreError, match=r"r\.json was changed by others each time"):
        StoredRecord(store, "r.json", sleep=lambda _: None).update_now(add(1))
