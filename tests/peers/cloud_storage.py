"""Stand-ins for Google Cloud Storage that others wrote, each a process on loopback.

- `fake-gcs-server` (Go): `make peers` builds it where Go and its module proxy are reachable.
- the PyPI emulator made strict (`tests.peers.strict_gcs`), which is in the lock.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from flows.ports import free_port
from tests.peers.mock_vendor import REPOSITORY

FAKE_GCS_SERVER = REPOSITORY / "build/peers/bin/fake-gcs-server"
KINDS = ("strict", "go")


def missing(kind: str) -> str | None:
    """Why a stand-in can't be started, with the command that provides it; None if it can."""
    if kind == "go" and not FAKE_GCS_SERVER.exists():
        return "fake-gcs-server is missing: make peers (needs Go and its module proxy)"
    return None


@dataclass(frozen=True, slots=True)
class CloudStorage:
    """A running stand-in; `url` is what STORAGE_EMULATOR_HOST has to say."""

    kind: str
    url: str

    def bucket(self) -> str:
        """The gs:// address of a new bucket."""
        client = storage.Client(
            project="emulator", credentials=AnonymousCredentials(), client_options={"api_endpoint": self.url}
        )
        name = f"test-{secrets.token_hex(6)}"
        client.create_bucket(name)
        return f"gs://{name}"


@contextmanager
def started(kind: str) -> Iterator[CloudStorage]:
    """A stand-in, until the block ends; it dies with this process at the latest."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tests.peers.strict_gcs", str(port)]
    if kind == "go":
        command = [str(FAKE_GCS_SERVER), "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1"]
        command += ["-port", str(port), "-external-url", url, "-public-host", f"127.0.0.1:{port}"]
        command += ["-log-level", "error"]
        command = [sys.executable, "-m", "tests.support.tied", *command]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        _wait_for(url, process)
        yield CloudStorage(kind, url)
    finally:
        assert process.stdin is not None
        process.stdin.close()  # which ends it, and what it has started
        process.wait(60)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{url}/storage/v1/b?project=x", timeout=60).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the stand-in at {url} did not start") from None
            time.sleep(0.05)


def environment(url: str) -> dict[str, str]:
    """The environment of a process that is to use a stand-in."""
    return {**os.environ, "STORAGE_EMULATOR_HOST": url}
