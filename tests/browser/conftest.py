"""One server, one worker, one browser and one vendor for the tests of the browser."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.ports import free_port
from tests.browser import chromium
from tests.support.serving import Served


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """`switchgear serve` as an operator starts it."""
    why = chromium.missing()
    if why is not None:
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="switchgear-") as folder:  # stands in the README's pictures
        found = Served(Path(folder), free_port())
        found.start()
        yield found
        found.stop()


@pytest.fixture(scope="module")  # as long as it is there, no other event loop can run in this process
def ui(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Ui]:
    """A browser before the server's UI."""
    profile = tmp_path_factory.mktemp("profile")
    with chromium.browser_page(profile, f"http://127.0.0.1:{served.port}") as found:
        yield found


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """What the browser showed when a test failed is kept beside its pictures."""
    outcome = yield
    found = getattr(item, "funcargs", {}).get("ui")
    if found is not None and outcome.get_result().failed:  # type: ignore[attr-defined]
        found.page.screenshot(path=chromium.PICTURES / f"failed-{item.name}.png")
