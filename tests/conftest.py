"""Fixtures for all tests: peers that others wrote, started on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.peers import cloud_storage as gcs
from tests.peers import mock_vendor as aimock
from transforms.store import Store, open_store

# A busy machine is no finding: what a property costs is not what these tests are about.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


_FIRST = (
    "tests/test_",  # seconds, and what fails here is known at once
    "tests/e2e/test_flink.py",  # those that take longest, longest first: none may begin when others are done
    "tests/simulator/",  # one process each, which leaves a cluster the other cores
    "tests/browser/",
    "tests/e2e/test_kills.py",
    "tests/flows/test_end_to_end.py",
    "tests/infra/test_production.py",
    "tests/e2e/",
    "tests/flows/",
    "tests/transforms/batchmode/",
    "tests/transforms/embed/",
    "tests/transforms/gcs/",
    "tests/pipelines/",
    "tests/hostile/",
)


def _turn(item: pytest.Item) -> int:
    starts = (turn for turn, start in enumerate(_FIRST) if item.nodeid.startswith(start))
    return next(starts, len(_FIRST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the longest files begin first; each file's tests stay together and in their order."""
    items.sort(key=_turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file stay together, those of the browser all of them: they share a server.

    Each of the simulator's goes its own way: it is seconds of work. They are given out in the order in which
    they stand, and not by how many tests a file has.
    """
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False

    class _BySeeds(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith("tests/browser/"):
                return "tests/browser"
            return nodeid if nodeid.startswith("tests/simulator/") else super()._split_scope(nodeid)

    return _BySeeds(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def _mock_vendor_process() -> Iterator[aimock.MockVendor]:
    why = aimock.missing()
    if why is not None:
        pytest.skip(why)
    vendor = aimock.MockVendor.start()
    yield vendor
    vendor.stop()


@pytest.fixture
def mock_vendor(_mock_vendor_process: aimock.MockVendor) -> aimock.MockVendor:
    """A mock vendor with an empty journal and no rules; one process for the whole session.

    It answers 404 until a test gives it rules: `mock_vendor.answer({"topic": "data"})`. Point a
    backend at `mock_vendor.base_url("anthropic")` and count with `mock_vendor.answered(r"doc-\\d+")`.
    Skipped with the command that provides it where node or the package is missing.
    """
    _mock_vendor_process.rules([])
    _mock_vendor_process.clear()
    return _mock_vendor_process


@pytest.fixture(scope="session")
def _cloud_storages() -> Iterator[dict[str, gcs.CloudStorage]]:
    """The stand-ins for Cloud Storage that were started so far."""
    with ExitStack() as running:

        class _Started(dict[str, gcs.CloudStorage]):
            def __missing__(self, kind: str) -> gcs.CloudStorage:
                why = gcs.missing(kind)
                if why is not None:
                    pytest.skip(why)
                self[kind] = running.enter_context(gcs.started(kind))
                return self[kind]

        yield _Started()


@pytest.fixture(params=["strict", pytest.param("go", marks=pytest.mark.peer)])
def cloud_storage(
    request: pytest.FixtureRequest,
    _cloud_storages: dict[str, gcs.CloudStorage],
    monkeypatch: pytest.MonkeyPatch,
) -> gcs.CloudStorage:
    """Each stand-in for Cloud Storage in turn; this process's gs:// addresses go there."""
    found = _cloud_storages[request.param]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", found.url)
    return found


@pytest.fixture(params=["local", "strict", pytest.param("go", marks=pytest.mark.peer)])
def store(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    _cloud_storages: dict[str, gcs.CloudStorage],
    monkeypatch: pytest.MonkeyPatch,
) -> Store:
    """Each kind of store in turn, empty: a folder, and a bucket of each stand-in."""
    if request.param == "local":
        return open_store(str(tmp_path / "out"))
    cloud = _cloud_storages[request.param]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.url)
    return open_store(f"{cloud.bucket()}/a folder/out")


@pytest.fixture
def one_cloud_storage(
    _cloud_storages: dict[str, gcs.CloudStorage], monkeypatch: pytest.MonkeyPatch
) -> gcs.CloudStorage:
    """The best stand-in at hand, for tests that need one and take long."""
    found = _cloud_storages["strict" if gcs.missing("go") else "go"]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", found.url)
    return found


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server, started as a run starts it; once, because that takes 7 CPU seconds."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        environment.delenv("PREFECT_API_URL", raising=False)
        from flows.server import prefect_api, quiet_prefect

        with prefect_api() as url:
            quiet_prefect()
            yield url
