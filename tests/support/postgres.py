"""A PostgreSQL of our own: a cluster in a temporary folder, on loopback, by the machine's own binaries.

PostgreSQL refuses to run as root: then the cluster belongs to the account that Debian's package makes.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.ports import free_port

PROVIDE = "apt-get install postgresql"
_FOLDERS = "/usr/lib/postgresql"
_ACCOUNT = "postgres"
_START_S = 180.0


def binaries() -> Path | None:
    """The newest PostgreSQL that the machine has; None if it has none."""
    found = shutil.which("initdb")
    if found is not None and shutil.which("postgres") is not None:
        return Path(found).resolve().parent
    versions = sorted(Path(_FOLDERS).glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


def missing() -> str | None:
    """Why there is no PostgreSQL, with the command that provides it; None if there is one."""
    if binaries() is None:
        return f"PostgreSQL is missing: {PROVIDE}"
    if os.getuid() == 0 and not _account():
        return f"PostgreSQL does not run as root, and there is no account {_ACCOUNT!r}: {PROVIDE}"
    return None


@dataclass(frozen=True)
class Cluster:
    """A running cluster with an empty database `prefect`, whose only user needs no password here."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        """As SQLAlchemy and Prefect take it."""
        return f"postgresql+asyncpg://prefect:none@127.0.0.1:{self.port}/prefect"

    def query(self, sql: str) -> str:
        """What a statement gives, one value."""
        folder = binaries()
        assert folder is not None
        command = [str(folder / "psql"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "prefect", "-tA"]
        done = subprocess.run([*command, "-c", sql], capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.strip()


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster that lives as long as the block; `folder` must be new or empty, and reachable."""
    found = binaries()
    assert found is not None, missing()
    data, sockets = folder / "data", folder / "sockets"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (data, sockets):
        path.mkdir()
    if os.getuid() == 0:
        for path in (folder, data, sockets):
            shutil.chown(path, _ACCOUNT, _ACCOUNT)
    made = Cluster(free_port(), folder)
    setup = [found / "initdb", "-D", data, "-U", "prefect", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(list(map(str, setup)), check=True, capture_output=True, timeout=120, **_as_owner(folder))
    settings = ["listen_addresses=127.0.0.1", f"port={made.port}", f"unix_socket_directories={sockets}"]
    command = [str(found / "postgres"), "-D", str(data)]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [*command, *(part for setting in settings for part in ("-c", setting))],
            stdout=log,
            stderr=log,
            **_as_owner(folder),
        )
    try:
        _make_database(made, server)
        yield made
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _make_database(made: Cluster, server: subprocess.Popen[bytes]) -> None:
    """Make the database as soon as the server takes connections."""
    folder = binaries()
    assert folder is not None
    command = [str(folder / "createdb"), "-h", "127.0.0.1", "-p", str(made.port), "-U", "prefect", "prefect"]
    deadline = time.monotonic() + _START_S
    while (done := subprocess.run(command, capture_output=True, text=True, timeout=60)).returncode:
        assert server.poll() is None, (made.folder / "log").read_text()
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.1)


def _as_owner(folder: Path) -> dict[str, Any]:
    """Run as somebody who may: never root."""
    if os.getuid() != 0:
        return {"cwd": folder}
    return {"cwd": folder, "user": _ACCOUNT, "group": _ACCOUNT, "extra_groups": []}


def _account() -> bool:
    try:
        pwd.getpwnam(_ACCOUNT)
    except KeyError:
        return False
    return True
