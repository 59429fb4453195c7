"""Logs of worker processes, kept in the output where that is in object storage.

Of a run into a local folder the logs are written where they stay. Elsewhere they are in a temporary folder,
which goes with the launcher, so each is copied into the output when its worker has ended.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from schemas.errors import SwitchgearError
from transforms.layout import run_path
from transforms.store import is_remote, open_store

MOST_BYTES = 4 << 20
_LEFT_OUT = b"(earlier lines are left out)\n"
_LOGGER = logging.getLogger(__name__)


def kept_log(output: str, run_id: str, name: str) -> str:
    """The address that a worker's log is copied to; empty where it stays as it is."""
    return f"{output.rstrip('/')}/{run_path(run_id, f'logs/{name}')}" if is_remote(output) else ""


def keep_log(log: Path, address: str) -> bool:
    """Copy the last MOST_BYTES of a log to an address; False, and a warning, if that does not work."""
    folder, _, name = address.rpartition("/")
    try:
        return open_store(folder).create(name, _end_of(log))
    except (SwitchgearError, OSError) as error:
        _LOGGER.warning("%s could not be kept: %s", log, error)
        return False


def _end_of(log: Path) -> bytes:
    with open(log, "rb") as stream:
        left_out = stream.seek(0, os.SEEK_END) - MOST_BYTES
        stream.seek(max(0, left_out))
        data = stream.read(MOST_BYTES)
    return _LEFT_OUT + data.partition(b"\n")[2] if left_out > 0 else data
