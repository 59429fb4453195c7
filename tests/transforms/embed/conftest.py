"""The embedders that most tests share: a tiny random model, and the real all-MiniLM-L6-v2."""

from pathlib import Path

import pytest

from tests.transforms.embed.tiny_model import REAL_MODEL, backend, write_tiny_model
from transforms.embed.embedder import Embedder, open_embedder


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path, cache_dir: Path) -> Embedder:
    return open_embedder(backend(tiny_folder), base_dir=tiny_folder, cache_dir=cache_dir)


@pytest.fixture(scope="session")
def minilm(cache_dir: Path) -> Embedder:
    return open_embedder(backend(REAL_MODEL), base_dir=Path(), cache_dir=cache_dir)
