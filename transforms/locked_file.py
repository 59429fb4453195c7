"""A file that one process has at a time, until it closes it or ends."""

from __future__ import annotations

from pathlib import Path
from typing import IO


def lock_file(path: Path) -> IO[str] | None:
    """The file, made if need be, locked until it is closed or the process ends; None if another has it."""
    import fcntl  # Windows has none

    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
