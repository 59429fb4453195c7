"""Fixtures for all tests: peers that others wrote, started on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.peers import mock_vendor as aimock

# A busy machine is no finding: what a property costs is not what these tests are about.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


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
