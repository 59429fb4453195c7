"""Every module can be imported without a network: nothing is fetched before it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

_IMPORT_ALL = """
import importlib, pkgutil, socket, sys

def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise SystemExit(f"looked up {arguments[0]!r} at import")
    if event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
        raise SystemExit(f"connected to {arguments[1]!r} at import")

sys.addaudithook(refuse)
names = []
for layer in ("schemas", "transforms", "pipelines", "flows"):
    package = importlib.import_module(layer)
    names.extend(found.name for found in pkgutil.walk_packages(package.__path__, f"{layer}."))
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""


def test_every_module_can_be_imported_with_the_network_off() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 150


def test_a_module_that_looks_something_up_would_be_noticed() -> None:
    code = _IMPORT_ALL.replace("names = []", "socket.getaddrinfo('example.org', 443)")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert "example.org" in done.stderr
