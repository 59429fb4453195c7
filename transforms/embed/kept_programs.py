"""The compiled programs that are kept for the next process, each with the digest of its bytes.

JAX writes a program in place, compares nothing when it reads one, and never replaces one. What a process
that was killed had half written would so be compiled again at every start, and a bit that is lost on a disk
ends every process that runs the program, or changes its vectors.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

PROGRAMS, SEAL = "*-cache", ".sha256"
WRITING_S = 600.0
"""A program without a digest that is older than this is nobody's who is still at work on it."""
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how its frames begin (RFC 8878)
_LOG = logging.getLogger(__name__)


def seal_programs(folder: Path) -> None:
    """Leaves a digest with every whole program that has none, whichever process compiled it."""
    with suppress(OSError):  # a folder that can't be written keeps nothing
        for program in folder.glob(PROGRAMS):
            seal = _seal_of(program)
            if not seal.exists() and _is_whole(program.read_bytes()):
                draft = seal.with_name(f"{seal.name}.{os.getpid()}.tmp")
                draft.write_text(_digest(program), encoding="ascii")
                draft.replace(seal)


def discard_damaged(folder: Path, now: Callable[[], float] = time.time) -> None:
    """Removes programs that are not what was written, or that nobody has sealed in `WRITING_S` seconds."""
    for program in _damaged(folder, now()):
        _LOG.info("%s: damaged or half written; it is compiled again", program)
        with suppress(OSError):
            _seal_of(program).unlink(missing_ok=True)
            program.unlink(missing_ok=True)


def _damaged(folder: Path, now: float) -> Iterator[Path]:
    for program in folder.glob(PROGRAMS):
        try:
            if _seal_of(program).exists():
                is_damaged = _seal_of(program).read_text(encoding="ascii") != _digest(program)
            else:
                is_damaged = now - program.stat().st_mtime > WRITING_S
        except OSError:
            continue  # another process has removed it
        except UnicodeDecodeError:
            is_damaged = True
        if is_damaged:
            yield program


def _is_whole(program: bytes) -> bool:
    """Whether it decompresses; JAX takes zstandard if that is installed."""
    try:
        if program.startswith(_ZSTANDARD):
            import zstandard

            zstandard.ZstdDecompressor().decompress(program)
        else:
            zlib.decompress(program)
    except Exception:  # zstandard has an error of its own
        return False
    return True


def _seal_of(program: Path) -> Path:
    return program.with_name(program.name + SEAL)


def _digest(program: Path) -> str:
    return hashlib.sha256(program.read_bytes()).hexdigest()
