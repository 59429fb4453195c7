"""Embedding models in Cloud Storage: fetched once, checked, pickles left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import ModelError
from tests.peers.cloud_storage import CloudStorage
from tests.support.flaky_cloud import Weather, flaky
from transforms.embed.model_files import find_folder
from transforms.gcs import models
from transforms.store import Store, open_store

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "model.safetensors": bytes(range(256)) * 1000,
    "1_Pooling/config.json": b'{"pooling": 1}',
}
LEFT = {
    "pytorch_model.bin": b"a pickle",
    "deep/er/config.json": b"{}",
    ".hidden.json": b"{}",
    "README.md": b"",
}


@pytest.fixture
def model(cloud_storage: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SWITCHGEAR_CACHE_DIR", str(tmp_path / "cache"))
    store = open_store(f"{cloud_storage.bucket()}/models/mini")
    for name, data in {**FILES, **LEFT}.items():
        store.create(name, data)
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_a_model_needs_is_fetched_once_and_pickles_never(
    model: Store, cloud_storage: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = find_folder(f"{model.root}/", Path("/nowhere"))
    assert contents(folder) == FILES
    weather = Weather(0, {})
    asked: list[str] = []
    weather.choose = lambda method, path: asked.append(path) or "fine"  # type: ignore[func-returns-value]
    with flaky(cloud_storage.url, weather) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        assert find_folder(model.root, Path("/nowhere")) == folder
    assert len(asked) == 1, "a listing, and no file again"


def test_another_generation_of_a_file_is_another_folder(model: Store) -> None:
    before = find_folder(model.root, Path())
    _, generation = model.read_versioned("config.json")
    model.swap("config.json", b'{"new": 1}', generation)
    after = find_folder(model.root, Path())
    assert (after != before, contents(after)["config.json"]) == (True, b'{"new": 1}')
    assert contents(before) == FILES


def test_large_files_are_fetched_in_pieces(model: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "PIECE_BYTES", 1009)
    assert contents(find_folder(model.root, Path())) == FILES


def test_a_file_that_arrives_damaged_leaves_no_folder(
    model: Store, cloud_storage: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weather = Weather(0, {})
    weather.choose = lambda method, path: "flipped" if "alt=media" in path else "fine"
    with flaky(cloud_storage.url, weather) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        with pytest.raises(ModelError, match=r"arrived damaged \(CRC32C .*run again"):
            find_folder(model.root, Path())
    assert [p for p in (tmp_path / "cache/models").iterdir() if p.is_dir()] == []
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud_storage.url)
    assert contents(find_folder(model.root, Path())) == FILES


def test_a_folder_without_a_model_is_said(cloud_storage: CloudStorage) -> None:
    with pytest.raises(ModelError, match=r"no \.json or \.safetensors in that folder"):
        find_folder(f"{cloud_storage.bucket()}/none", Path())
    with pytest.raises(ModelError, match="there is no such bucket"):
        find_folder("gs://no-such-bucket-at-all/none", Path())
    with pytest.raises(ModelError, match="no such kind of storage"):
        find_folder("s3://bucket/model", Path())
