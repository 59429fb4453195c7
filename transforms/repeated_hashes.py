"""Hashes that stand more than once among any number of them, in bounded memory: the rest is on disk.

Beyond 65,536, hashes go to temporary files by their first bits, so that equal ones meet in one file;
each file is then looked at by itself. 16 bytes a hash, in the system's folder for temporary files.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO

import numpy as np
import numpy.typing as npt

from schemas.errors import InputError

IN_MEMORY = 1 << 16
"""Hashes that are held before they are written: 1 MB, and a few times as much while they are. With sixteen
times as many a launcher had 86 MiB more at 10 million documents than at 100,000; with these it has 25."""

_FILE_BITS = 8
Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


class RepeatedHashes:
    """Takes hashes with their places, from several threads, and gives the places of those that repeat."""

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._in_memory = in_memory
        self._guard = threading.Lock()
        self._held: list[npt.NDArray[np.uint64]] = []
        self._rows = 0
        self._files: list[IO[bytes]] = []
        self._open = ExitStack()

    def __enter__(self) -> RepeatedHashes:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, hashes: Hashes, places: Places) -> None:
        """Take in some hashes, each with a place of its own that is not negative.

        Raises:
            InputError: they can't be written.
        """
        with self._guard:
            self._held.append(np.column_stack([hashes, places.astype(np.uint64)]))
            self._rows += len(hashes)
            if self._rows >= self._in_memory:
                self._write()

    def repeated(self) -> Places:
        """The places of all hashes that were given more than once, ascending."""
        found = [np.empty(0, np.int64)]
        with self._guard:
            for rows in self._pieces():
                order = np.argsort(rows[:, 0])
                ordered = rows[order, 0]
                is_repeated = np.zeros(len(ordered), bool)
                same = ordered[1:] == ordered[:-1]
                is_repeated[1:] |= same
                is_repeated[:-1] |= same
                found.append(rows[order[is_repeated], 1].astype(np.int64))
        places = np.concatenate(found)
        places.sort()
        return places

    def _pieces(self) -> Iterator[npt.NDArray[np.uint64]]:
        """All rows, equal hashes in one piece."""
        if not self._files:
            yield np.concatenate([np.empty((0, 2), np.uint64), *self._held])
            return
        self._write()
        for file in self._files:
            file.seek(0)
            yield np.frombuffer(file.read(), np.uint64).reshape(-1, 2)

    def _write(self) -> None:
        try:
            if not self._files:
                for _ in range(1 << _FILE_BITS):
                    self._files.append(self._open.enter_context(_temporary_file()))
            rows = np.concatenate([np.empty((0, 2), np.uint64), *self._held])
            file_of = (rows[:, 0] >> np.uint64(64 - _FILE_BITS)).astype(np.uint8)
            rows = rows[np.argsort(file_of, kind="stable")]
            ends = np.cumsum(np.bincount(file_of, minlength=1 << _FILE_BITS))
            for file, piece in zip(self._files, np.split(rows, ends[:-1]), strict=True):
                file.write(piece.tobytes())
        except OSError as error:
            raise InputError(
                f"repeated ids can't be looked for: {tempfile.gettempdir()} can't be written "
                f"({error.strerror}); 16 bytes a document are needed there. Make room, name another folder "
                'in TMPDIR, or set input.unique_ids = "batch"'
            ) from None
        self._held, self._rows = [], 0


def _temporary_file() -> IO[bytes]:
    """A file without a name: it goes with the process, however that ends."""
    return tempfile.TemporaryFile()
