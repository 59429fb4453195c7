"""What only an object store has to get right: lost acknowledgements, retries, pages, generations, sums."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from google.auth.exceptions import RefreshError, TransportError

from schemas.errors import ConfigurationError, PreconditionFailedError, StoreError
from tests.peers.cloud_storage import CloudStorage
from tests.peers.mock_vendor import REPOSITORY
from tests.support.flaky_cloud import Weather, flaky, only
from transforms.gcs.client import PATIENCE_VARIABLE, Patience, is_transient, trouble
from transforms.gcs.objects import crc32c_of, split_address
from transforms.gcs.store import GcsStore
from transforms.store import open_store

PATIENCE = Patience(3.0)


@contextmanager
def behind(
    cloud: CloudStorage,
    monkeypatch: pytest.MonkeyPatch,
    choose: Callable[[str, str], str | None],
    patience: Patience = PATIENCE,
) -> Iterator[tuple[GcsStore, Weather]]:
    """A store whose requests have the fates that a test chooses."""
    address = cloud.bucket()
    weather = Weather(0, {})
    weather.choose = choose
    with flaky(cloud.url, weather) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        yield GcsStore(f"{address}/out", patience=patience), weather


@pytest.mark.parametrize("fate", ["lost", "swallowed"])
def test_a_creation_whose_acknowledgement_is_lost_was_ours(
    cloud_storage: CloudStorage, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    with behind(cloud_storage, monkeypatch, only(fate, "POST")) as (store, weather):
        assert store.create("commits/a.json", b"mine")
        assert weather.counts[fate] == 1
        assert not store.create("commits/a.json", b"mine")  # asked again without a loss: it was there
        assert store.read("commits/a.json") == b"mine"


def test_a_creation_that_found_another_object_after_a_lost_try_is_not_ours(
    cloud_storage: CloudStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with behind(cloud_storage, monkeypatch, only("cut", "POST", 0)) as (store, weather):
        store.create("commits/a.json", b"theirs")
        weather.choose = only("cut", "POST")
        assert not store.create("commits/a.json", b"mine!!")
        assert weather.counts["cut"] == 1
        assert store.read("commits/a.json") == b"theirs"


@pytest.mark.parametrize("fate", ["lost", "swallowed"])
def test_a_swap_whose_acknowledgement_is_lost_has_happened_once(
    cloud_storage: CloudStorage, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    with behind(cloud_storage, monkeypatch, only("", "none")) as (store, weather):
        store.create("budget.json", b"1")
        _, generation = store.read_versioned("budget.json")
        weather.choose = only(fate, "POST")
        following = store.swap("budget.json", b"2", generation)
        assert store.read_versioned("budget.json") == (b"2", following)
        with pytest.raises(PreconditionFailedError):
            store.swap("budget.json", b"3", generation)


@pytest.mark.parametrize("fate", ["lost", "down", "refused", "cut"])
def test_publishing_goes_on_after_any_failure_of_the_copy(
    cloud_storage: CloudStorage, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    with behind(cloud_storage, monkeypatch, only("", "none")) as (store, weather):
        store.create("_staging/x/part", b"rows")
        weather.choose = only(fate, "POST")
        store.publish("_staging/x/part", "results/part")
        assert list(store.list("")) == ["results/part"]
        assert store.read("results/part") == b"rows"


@pytest.mark.parametrize("fate", ["lost", "down", "refused", "cut"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_reads_listings_and_deletions_are_tried_again(
    cloud_storage: CloudStorage, monkeypatch: pytest.MonkeyPatch, method: str, fate: str
) -> None:
    with behind(cloud_storage, monkeypatch, only("", "none")) as (store, weather):
        store.create("a/b", b"data")
        weather.choose = only(fate, method, 2)
        if method == "GET":
            assert store.read("a/b") == b"data"
            weather.choose = only(fate, method, 2)
            assert list(store.list("a")) == ["a/b"]
        store.delete("a/b")
        assert weather.counts[fate] >= 2
        assert not store.exists("a/b")


LARGE = bytes(range(256)) * (9 << 12)  # 9 MiB: two chunks


@pytest.mark.parametrize(("fate", "interrupted"), [("down", 1), ("refused", 2), ("cut", 2)])
def test_a_large_upload_goes_on_with_the_chunk_that_was_interrupted(
    one_cloud_storage: CloudStorage, monkeypatch: pytest.MonkeyPatch, fate: str, interrupted: int
) -> None:
    asked: list[str] = []

    def choose(method: str, _path: str) -> str:
        asked.append(method)
        return fate if method == "PUT" and asked.count("PUT") == interrupted else "fine"

    with behind(one_cloud_storage, monkeypatch, choose, Patience(20)) as (store, _):
        assert store.create("large", LARGE)
        assert asked == ["POST", "PUT", "PUT", "PUT"], "one session, two chunks, one of them twice"
        asked.clear()
        with store.open("large") as stream:
            assert stream.read() == LARGE
        assert asked == ["GET", "GET"], "what it is, and all of it"
        assert not store.create("large", LARGE[1:])


@pytest.mark.parametrize(
    ("fate", "interrupted"),
    [("lost", 1), ("lost", 2), ("swallowed", 2), ("gone", 2), ("garbled", 1), ("garbled", 2)],
)
def test_a_large_upload_arrives_whole_whatever_becomes_of_a_chunk(
    cloud_storage: CloudStorage, monkeypatch: pytest.MonkeyPatch, fate: str, interrupted: int
) -> None:
    puts: list[str] = []

    def choose(method: str, path: str) -> str:
        puts.extend([path] * (method == "PUT"))
        return fate if method == "PUT" and len(puts) == interrupted else "fine"

    with behind(cloud_storage, monkeypatch, choose, Patience(12)) as (store, weather):
        assert store.create("large", LARGE)
        assert weather.counts[fate] == 1
        assert store.info("large").crc32c == crc32c_of(LARGE)
        with store.open("large") as stream:
            assert stream.read() == LARGE


@pytest.mark.parametrize(
    ("fate", "times"),
    [("garbled", 2), pytest.param("unchecked", 1, id="by a service that stores whatever it is given")],
)
def test_what_changes_on_its_way_to_the_store_is_sent_again_and_nobody_elses_is_replaced(
    cloud_storage: CloudStorage, monkeypatch: pytest.MonkeyPatch, fate: str, times: int
) -> None:
    with behind(cloud_storage, monkeypatch, only(fate, "POST", 2)) as (store, weather):
        assert store.create("a", b"as it was sent")
        assert weather.counts[fate] == 2
        data, generation = store.read_versioned("a")
        assert data == b"as it was sent"
        weather.choose = only(fate, "POST", times)
        store.swap("a", b"and what came after", generation)
        assert store.read("a") == b"and what came after"
        weather.choose = only(fate, "POST", times)
        assert not store.create("a", b"another's")
        assert store.read("a") == b"and what came after"


def test_what_arrives_damaged_is_read_again(
    cloud_storage: CloudStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with behind(cloud_storage, monkeypatch, only("", "none")) as (store, weather):
        store.create("a", b"as it was stored")
        weather.choose = only("flipped", "GET", 2)
        assert store.read("a") == b"as it was stored"
        assert weather.counts["flipped"] == 2


def test_trouble_that_does_not_pass_ends_with_a_sentence(
    one_cloud_storage: CloudStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        behind(one_cloud_storage, monkeypatch, lambda *_: "down") as (store, _),
        pytest.raises(StoreError, match=r"/out/a: .*run again when the service is well"),
    ):
        GcsStore(store.root, patience=Patience(0.5)).read("a")


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        (
            "forbidden",
            "403 worker@example does not have .*; grant this account roles/storage.objectUser on the",
        ),
        ("kept", "403 Object 'b/a' is subject to .*; an output needs a bucket without retention policies"),
    ],
)
@pytest.mark.parametrize(
    "work",
    [lambda s: s.create("a", b"x"), lambda s: s.read("a"), lambda s: s.delete("a"), lambda s: [*s.list("")]],
    ids=["create", "read", "delete", "list"],
)
def test_what_the_service_refuses_is_said_in_its_words_with_what_to_do(
    one_cloud_storage: CloudStorage,
    monkeypatch: pytest.MonkeyPatch,
    fate: str,
    said: str,
    work: Callable[[GcsStore], object],
) -> None:
    with (
        behind(one_cloud_storage, monkeypatch, lambda *_: fate) as (store, weather),
        pytest.raises(StoreError, match=said),
    ):
        work(store)
    assert weather.counts == {fate: 1}, "it was not tried again"


def test_credentials_whose_renewal_is_out_of_reach_are_tried_again_and_refused_ones_are_not() -> None:
    out_of_reach = RefreshError("the metadata server is unavailable")
    out_of_reach.__cause__ = TransportError("unavailable")
    for error in (RefreshError("internal_failure", retryable=True), out_of_reach):
        fates: list[Exception] = [error, error]

        def work(fates: list[Exception] = fates) -> str:
            if fates:
                raise fates.pop()
            return "done"

        assert PATIENCE.retry(work) == "done"
        assert str(trouble("gs://b/a", error)).endswith("; run again")
    refused = RefreshError("invalid_grant: Token has been expired or revoked.")
    assert not is_transient(refused)
    assert str(trouble("gs://b/a", refused)).endswith("; log in again, or mend the service account")


def test_listings_of_more_than_a_page_are_whole(cloud_storage: CloudStorage) -> None:
    store = GcsStore(cloud_storage.bucket(), patience=PATIENCE, page_size=7)
    names = [f"ledger/{number:02d}/0" for number in range(30)]
    for name in names:
        store.create(name, b"x")
    assert list(store.list("ledger")) == names
    assert list(store.folders("ledger")) == [f"{number:02d}" for number in range(30)]


def test_a_range_is_of_the_generation_that_was_asked_for_or_of_none(cloud_storage: CloudStorage) -> None:
    store = GcsStore(cloud_storage.bucket(), patience=PATIENCE)
    store.create("a", b"0123456789")
    generation = store.info("a").generation
    assert store.read_range("a", 2, 3, generation) == b"234"
    assert store.read_range("a", 8, 100, generation) == b"89"
    store.swap("a", b"abcdefghij", generation)
    with pytest.raises(FileNotFoundError):
        store.read_range("a", 2, 3, generation)


def test_a_question_is_one_request_whatever_the_answer(
    cloud_storage: CloudStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with behind(cloud_storage, monkeypatch, only("", "none")) as (store, weather):
        assert store.create("a", b"x")
        assert [store.exists(name) for name in ("a", "b", "c", "d")] == [True, False, False, False]
        assert weather.counts == {"fine": 5}


def test_a_bucket_that_is_not_there_is_said(cloud_storage: CloudStorage) -> None:
    store = GcsStore("gs://no-such-bucket-here/out", patience=PATIENCE)
    with pytest.raises(StoreError, match="there is no such bucket"):
        list(store.list("a"))
    with pytest.raises(StoreError, match="there is no such bucket"):
        store.create("a", b"x")


def test_without_credentials_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/at-all.json")
    with pytest.raises(ConfigurationError, match="gcloud auth application-default login"):
        open_store("gs://bucket/out")


def test_who_uses_no_such_address_does_not_wait_for_its_library() -> None:
    code = (
        "import sys, transforms.plan, transforms.settle, transforms.worker, transforms.call.engine\n"
        "print([name for name in sys.modules if name.startswith('google.cloud.storage')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("address", ["gs://", "gs:///x", "gs://b//x", "gs://b/../x", "s3://b/x"])
def test_odd_addresses_are_refused(address: str) -> None:
    with pytest.raises(StoreError, match="give gs://BUCKET/FOLDER"):
        split_address(address)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_patience_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, text)
    with pytest.raises(ConfigurationError, match="give a number of seconds"):
        Patience.configured()
