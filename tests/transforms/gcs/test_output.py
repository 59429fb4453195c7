"""An output in Cloud Storage: one run at a time, nobody else's folder, nothing swept by who lost it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from schemas.errors import OutputError, StoreError
from schemas.load import LoadedWorkload
from tests.peers.cloud_storage import CloudStorage
from tests.support import workloads
from tests.support.failing import draft
from tests.support.flaky_cloud import Weather, flaky
from transforms.commit import recover
from transforms.committed import Committed
from transforms.compaction import take_stock
from transforms.failure_files import add_failures, show_failures
from transforms.layout import commit_path, compacted_path, failures_path
from transforms.lease import Times
from transforms.output import MARKER, open_output, read_marker
from transforms.output_lock import _HELD, REMOTE_LOCK, is_locked, locked
from transforms.store import open_store


@pytest.fixture
def loaded(cloud_storage: CloudStorage, tmp_path: Path) -> LoadedWorkload:
    return workloads.load(tmp_path, output__uri=f"{cloud_storage.bucket()}/out")


def test_an_output_is_held_while_it_is_open_and_free_after_an_error(loaded: LoadedWorkload) -> None:
    store = open_store(loaded.output_uri)
    assert not is_locked(store)
    with open_output(loaded, rehearsal=True):
        assert is_locked(store)
        assert read_marker(loaded.output_uri)["rehearsal"] is True
    assert not is_locked(store)
    with pytest.raises(ZeroDivisionError), open_output(loaded, rehearsal=True):
        raise ZeroDivisionError
    assert not is_locked(store)
    assert list(store.list("")) == [MARKER]


def test_a_second_run_is_refused_while_the_first_lives(loaded: LoadedWorkload) -> None:
    store = open_store(loaded.output_uri)
    with (
        locked(store, Times(renew_every_s=0.2)),
        pytest.raises(OutputError, match=r"another run \(process \d+ on .*\) is at work on gs://"),
        open_output(loaded, rehearsal=True),
    ):
        pass


@pytest.mark.parametrize(
    ("fate", "kind", "said"),
    [
        ("forbidden", "DELETE", "does not have this access.*grant this account roles/storage.objectUser"),
        ("kept", "DELETE", "a bucket without retention policies"),
        ("kept", "ifGenerationMatch=[1-9]", "a bucket without retention policies"),
    ],
)
def test_what_can_not_be_replaced_or_deleted_is_said_before_anything_is_planned(
    one_cloud_storage: CloudStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fate: str,
    kind: str,
    said: str,
) -> None:
    loaded = workloads.load(tmp_path, output__uri=f"{one_cloud_storage.bucket()}/out")
    weather = Weather(0, {})
    weather.choose = lambda method, path: fate if re.search(kind, f"{method} {path}") else "fine"
    with flaky(one_cloud_storage.url, weather) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        with (
            pytest.raises(OutputError, match=f"(?s)create, replace and delete objects there.*{said}"),
            open_output(loaded, rehearsal=True),
        ):
            pass
        weather.choose = lambda *_: "fine"
        with open_output(loaded, rehearsal=True) as output:  # once it is mended, the output can be used
            assert [path for path in output.store.list("") if not path.startswith("claims/")] == [
                REMOTE_LOCK,
                MARKER,
            ]


def test_a_folder_with_something_else_in_it_is_no_output(loaded: LoadedWorkload) -> None:
    store = open_store(loaded.output_uri)
    store.create("holiday/picture.jpg", b"x")
    with (
        pytest.raises(OutputError, match=r"no Switchgear output \(found 'holiday/picture\.jpg'\)"),
        open_output(loaded, rehearsal=True),
    ):
        pass
    assert list(store.list("")) == ["holiday/picture.jpg"]


def test_another_version_of_the_workload_is_refused(loaded: LoadedWorkload, tmp_path: Path) -> None:
    with open_output(loaded, rehearsal=True):
        pass
    folder = tmp_path / "other"
    folder.mkdir()
    changed = workloads.load(folder, output__uri=loaded.output_uri, input__columns=["kind"])
    with (
        pytest.raises(OutputError, match="holds the results of another workload"),
        open_output(changed, rehearsal=True),
    ):
        pass
    with pytest.raises(OutputError, match="holds rehearsed results"), open_output(loaded, rehearsal=False):
        pass


def test_who_was_taken_over_sweeps_nothing_of_those_who_came_after(loaded: LoadedWorkload) -> None:
    store = open_store(loaded.output_uri)
    staged = f"_staging/{'a' * 32}.0001.{'b' * 16}/ask.parquet"
    with open_output(loaded, rehearsal=True):
        recover(store)
        data, generation = store.read_versioned(REMOTE_LOCK)
        heir = json.dumps({**json.loads(data), "token": "another run's"}).encode()
        store.swap(REMOTE_LOCK, heir, generation)
        _HELD[store.root].renew()  # as its thread does every few seconds
        store.create(staged, b"rows of the other run")
        with pytest.raises(StoreError, match=r"could not renew its lease.*Nothing was swept"):
            recover(store)
        damaged = compacted_path("0" * 32)
        store.create(damaged, b"to be swept by the other run, if at all")
        with pytest.raises(StoreError, match=r"could not renew its lease.*Nothing was swept"):
            take_stock(store)
        damaged_failures, failed = failures_path("0" * 32), draft(1, 1, 1)
        store.create(damaged_failures, b"as well")
        with pytest.raises(StoreError, match=r"could not renew its lease.*Nothing was swept"):
            show_failures(store, Committed.of([]))
        store.create(commit_path(failed.record.batch_id, 1), failed.to_bytes())
        with pytest.raises(StoreError, match=r"could not renew its lease.*Nothing was swept"):
            add_failures(store, [(failed.record.batch_id, 1)])
    assert store.exists(damaged)
    assert list(store.list("failures")) == [damaged_failures]
    assert store.read(staged) == b"rows of the other run"
    assert json.loads(store.read(REMOTE_LOCK))["token"] == "another run's"
