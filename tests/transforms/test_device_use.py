"""What embedders did with their devices, from the worker to the manifest."""

import logging
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import StoreError
from schemas.run import DeviceUse
from tests.support.documents import rows, write
from tests.support.fakes import FakeEmbedder, FakeOpeners
from tests.support.runs import Place
from tests.support.workloads import EMBEDDER
from transforms.device_use import collect_use, leave_use
from transforms.embed.embedder import EmbedStats
from transforms.store import LocalStore

FIRST = DeviceUse(10, 90, 100, 2, 6.0, 2.0, 1.5, 3, 1, 0)
SECOND = DeviceUse(5, 10, 100, 1, 2.0, 0.0, 0.5, 3, 0, 1)


def test_what_all_processes_left_is_summed_by_route(tmp_path: Path):
    store = LocalStore(str(tmp_path))
    leave_use(store, "run", {"a": FIRST, "b": SECOND})
    leave_use(store, "run", {"a": SECOND})
    leave_use(store, "another run", {"a": FIRST})
    assert collect_use(store, "run") == {"a": DeviceUse(15, 100, 200, 3, 8.0, 2.0, 2.0, 6, 1, 1), "b": SECOND}
    assert collect_use(store, "no run") == {}


def test_padding_and_idle_are_shares():
    assert FIRST.padding_share == pytest.approx(0.1)
    assert FIRST.idle_share == 0.25
    assert (DeviceUse().padding_share, DeviceUse().idle_share) == (0, 0)


class FullStore(LocalStore):
    def create(self, path: str, data: bytes) -> bool:
        raise StoreError("no space left")


def test_a_store_that_takes_no_file_is_a_warning_and_fails_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        leave_use(FullStore(str(tmp_path)), "run", {"a": FIRST})
    assert "no space left; the report says nothing of this process's devices" in caplog.text


class UsedEmbedder(FakeEmbedder):
    """Was at work before this run, too."""

    def stats(self) -> EmbedStats:
        texts = 100 + sum(len(group) for call in self.groups for group in call)
        return EmbedStats(texts, 10 * texts, 20 * texts, 7, 2, 1.0, texts / 10, 0, 1.0, texts / 40, 0)


def test_a_run_says_what_it_did_itself_and_counts_an_embedder_of_two_routes_once(tmp_path: Path):
    place = Place(
        tmp_path,
        {
            "backends__emb": EMBEDDER,
            "match": "all",
            "routes": [{"name": name, "backends": ["emb"]} for name in ("one", "two")],
        },
    )
    write(place.folder / "in" / "a.parquet", rows(range(6)))
    manifest = place.run(FakeOpeners(fake_embedder=UsedEmbedder())).manifest
    assert manifest.devices.keys() == {"one"}
    use = manifest.devices["one"]
    assert (use.texts, use.tokens, use.slots, use.programs) == (12, 120, 240, 0)
    assert use.device_seconds == pytest.approx(1.2)
    assert use.idle_share == pytest.approx(0.2)
    assert type(manifest).from_dict(manifest.to_dict()) == manifest


class WarmedUpEmbedder(FakeEmbedder):
    """Compiled its programs when it was opened, as it does for lengths that are known."""

    def stats(self) -> EmbedStats:
        calls = len(self.groups)
        return EmbedStats(calls, calls, calls, calls, 3, 4.0, 0.0, 0, 2.5, 0.0, 0)


def test_programs_that_were_compiled_when_the_embedder_was_opened_are_the_run_s(tmp_path: Path):
    emb: dict[str, Any] = {"backends__emb": EMBEDDER, "routes": [{"name": "vec", "backends": ["emb"]}]}
    place, embedder = Place(tmp_path, emb), WarmedUpEmbedder()
    write(place.folder / "in" / "a.parquet", rows(range(3)))
    use = place.run(FakeOpeners(fake_embedder=embedder)).manifest.devices["vec"]
    assert (use.programs, use.warm_up_seconds) == (3, 2.5)
    write(place.folder / "in" / "b.parquet", rows(range(3, 5)))
    again = place.run(FakeOpeners(fake_embedder=embedder)).manifest.devices["vec"]
    assert (again.programs, again.warm_up_seconds) == (0, 0)
