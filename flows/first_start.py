"""Prefect's database is made by one server at a time: of two that make it at once, one ends with an error."""

from __future__ import annotations

import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO

from transforms.locked_file import lock_file

_LOOK_AGAIN_S = 0.1


class FirstStart:
    """The first start of a server with this version of Prefect over a folder; later ones wait for nothing."""

    def __init__(self, home: Path) -> None:
        self._lock = home / "starting.lock"
        self._made = home / f"made-by-prefect-{version('prefect')}"
        self._file: IO[str] | None = None

    def wait(self, timeout_s: float) -> None:
        """Wait until no other process makes the database; after `timeout_s` seconds go on all the same."""
        until = time.monotonic() + timeout_s
        while not self._made.exists() and time.monotonic() < until:
            self._file = lock_file(self._lock)
            if self._file is not None:
                return
            time.sleep(_LOOK_AGAIN_S)

    def made(self) -> None:
        """The server answers, so the database is there."""
        if self._file is not None:
            with suppress(OSError):
                self._made.touch()
        self.release()

    def release(self) -> None:
        """Let the next one try."""
        if self._file is not None:
            self._file.close()
            self._file = None
