"""Locks of single bytes of a file: as many as there are names, in one file, let go of by the kernel.

A lock belongs to the open file, so two openings of it, in one process or in two, keep each other out, and
the same opening may set it again.
"""

from __future__ import annotations

import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux
_SET_LOCK = getattr(fcntl, "F_OFD_SETLK", None)  # locks of an open file; Linux only


def lock_byte(file: int, place: int) -> bool:
    """Lock the byte at `place`; False if another holds it.

    True without a lock where the system, or the file system, has none.
    """
    return _set(file, place, fcntl.F_WRLCK)


def unlock_byte(file: int, place: int) -> None:
    """Let go of the byte at `place`; nothing happens if this file doesn't hold it."""
    _set(file, place, fcntl.F_UNLCK)


def _set(file: int, place: int, kind: int) -> bool:
    if _SET_LOCK is None:
        return True
    try:
        fcntl.fcntl(file, _SET_LOCK, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
