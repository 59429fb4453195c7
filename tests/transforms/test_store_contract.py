"""What every store promises: the local one, and Cloud Storage by two stand-ins that others wrote."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from schemas.errors import PreconditionFailedError, StoreError
from transforms.store import Store

THREADS = 16


def stage(store: Store, path: str, data: bytes) -> None:
    stream = store.stage(path)
    stream.write(data)
    store.finish(stream)


def test_what_was_created_is_read_listed_and_there(store: Store) -> None:
    assert store.create("a/b/c.json", b"data")
    assert store.read("a/b/c.json") == b"data"
    assert store.exists("a/b/c.json")
    assert list(store.list("a")) == ["a/b/c.json"]
    with store.open("a/b/c.json") as stream:
        assert stream.read(2) == b"da"


def test_a_second_creation_changes_nothing(store: Store) -> None:
    assert store.create("a", b"first")
    assert not store.create("a", b"second")
    assert store.read("a") == b"first"


def test_of_many_threads_one_creates(store: Store) -> None:
    barrier = threading.Barrier(THREADS)

    def create(number: int) -> bool:
        barrier.wait()
        return store.create("commits/x.json", b"%d" % number * 1000)

    with ThreadPoolExecutor(THREADS) as pool:
        won = [number for number, w in enumerate(pool.map(create, range(THREADS))) if w]
    assert len(won) == 1
    assert store.read("commits/x.json") == b"%d" % won[0] * 1000
    assert list(store.list("commits")) == ["commits/x.json"]


def test_a_swap_takes_the_generation_that_was_read(store: Store) -> None:
    store.create("budget.json", b"1")
    data, generation = store.read_versioned("budget.json")
    following = store.swap("budget.json", b"2", generation)
    assert data == b"1"
    assert store.read_versioned("budget.json") == (b"2", following)


def test_a_swap_from_an_older_generation_is_refused(store: Store) -> None:
    store.create("budget.json", b"1")
    _, generation = store.read_versioned("budget.json")
    store.swap("budget.json", b"2", generation)
    with pytest.raises(PreconditionFailedError, match=r"budget\.json is (at|no longer at)"):
        store.swap("budget.json", b"3", generation)
    assert store.read("budget.json") == b"2"


def test_no_swap_of_many_threads_is_lost(store: Store) -> None:
    store.create("count", b"0")

    def add_one(_: int) -> None:
        while True:
            data, generation = store.read_versioned("count")
            try:
                store.swap("count", b"%d" % (int(data) + 1), generation)
                return
            except PreconditionFailedError:
                continue

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add_one, range(40)))
    assert store.read("count") == b"40"


def test_nothing_staged_is_visible_under_its_final_name_until_it_is_published(store: Store) -> None:
    stage(store, "_staging/x/part", b"rows")
    assert list(store.list("results")) == []
    store.publish("_staging/x/part", "results/part")
    assert store.read("results/part") == b"rows"
    assert not store.exists("_staging/x/part")


def test_publishing_again_changes_nothing(store: Store) -> None:
    stage(store, "_staging/x/part", b"rows")
    for _ in range(3):
        store.publish("_staging/x/part", "results/part")
    assert store.read("results/part") == b"rows"


def test_many_publishers_of_one_part_all_succeed(store: Store) -> None:
    for number in range(20):
        stage(store, f"_staging/x/{number}", b"rows")

    def publish(_: int) -> None:
        for number in range(20):
            store.publish(f"_staging/x/{number}", f"results/{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish, range(8)))
    assert sorted(store.list("results")) == sorted(f"results/{n}" for n in range(20))


def test_a_part_that_is_nowhere_is_named_with_what_to_do(store: Store) -> None:
    with pytest.raises(StoreError, match=r"results/part can't be published.*restore it"):
        store.publish("_staging/x/part", "results/part")


def test_what_is_not_there_is_not_there(store: Store) -> None:
    assert not store.exists("none")
    assert list(store.list("none")) == []
    store.delete("none")
    for read in (store.read, store.read_versioned, store.open):
        with pytest.raises(FileNotFoundError):
            read("none")


def test_an_object_that_is_gone_is_at_no_generation(store: Store) -> None:
    store.create("budget.json", b"1")
    _, generation = store.read_versioned("budget.json")
    store.delete("budget.json")
    with pytest.raises(PreconditionFailedError):
        store.swap("budget.json", b"2", generation)
    assert not store.exists("budget.json")


def test_folders_are_named_once_and_only_those_directly_in_a_folder(store: Store) -> None:
    for path in ("ledger/a/1", "ledger/a/2", "ledger/b/deep/1", "ledger/file", "other/c/1"):
        store.create(path, b"x")
    assert sorted(store.folders("ledger")) == ["a", "b"]
    assert list(store.folders("none")) == []
    assert sorted(store.list("")) == sorted(
        ["ledger/a/1", "ledger/a/2", "ledger/b/deep/1", "ledger/file", "other/c/1"]
    )


def test_bytes_of_any_kind_and_size_come_back_as_they_were(store: Store) -> None:
    large = bytes(range(256)) * (9 << 12) + b"\r\n--end"  # beyond what is read in one piece
    for name, data in {"empty": b"", "lines": b"\r\n--\r\n\n", "large": large}.items():
        assert store.create(name, data)
        assert store.read(name) == data
        with store.open(name) as stream:
            assert stream.read() == data
    with store.open("large") as stream:
        stream.seek(-7, 2)
        assert stream.read() == b"\r\n--end"
        stream.seek(255)
        assert stream.read(3) == b"\xff\x00\x01"
