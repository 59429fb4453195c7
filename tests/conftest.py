"""Fixtures for all tests: peers that others wrote, started on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.peers import mock_vendor as aimock

# A busy machine is no finding: what a property costs is not what these tests are about.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file stay together, but for the simulator's: each is seconds of work of its own."""
    from xdist.scheduler import LoadFileScheduling

    class _BySeeds(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
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
