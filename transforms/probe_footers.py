"""Reading the footers of many files in a few reader processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Protocol

from schemas.errors import StoreError
from transforms.probe import Elsewhere, Reader, ReaderError, ReaderLimits, leave_reader, take_reader
from transforms.probe_footer import Footer

_PROCESSES = 8
_FILES_A_PROCESS = 500  # a process takes 0.2 s to start, a footer 0.4 ms to read
_CHUNK = 100


class Prepared(Elsewhere, Protocol):
    """Files elsewhere, of which some may be prepared together."""

    def prepare(self, uris: Iterable[str]) -> None:
        """Fetch what their footers need."""


def read_footers(
    files: Sequence[tuple[str, int]],
    columns: Sequence[str],
    limits: ReaderLimits | None = None,
    elsewhere: Prepared | None = None,
) -> list[Footer | ReaderError]:
    """The footers of files (path and size), or what is wrong with them, in the files' order.

    `elsewhere` is where those are fetched from that have no path here.

    A file that its reader dies of is the only one that comes to harm: another reader goes on.
    """
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    processes = min(_PROCESSES, os.cpu_count() or 1, 1 + len(files) // _FILES_A_PROCESS)
    read = partial(_read_chunk, columns=tuple(columns), limits=limits or ReaderLimits(), elsewhere=elsewhere)
    if processes == 1:
        return list(chain.from_iterable(map(read, chunks)))
    with ThreadPoolExecutor(processes) as pool:
        return list(chain.from_iterable(pool.map(read, chunks)))


def _read_chunk(
    files: Sequence[tuple[str, int]],
    columns: tuple[str, ...],
    limits: ReaderLimits,
    elsewhere: Prepared | None,
) -> list[Footer | ReaderError]:
    if elsewhere is not None:
        elsewhere.prepare(path for path, _ in files)
    return list(_footers(files, columns, limits, elsewhere))


def _footers(
    files: Sequence[tuple[str, int]],
    columns: tuple[str, ...],
    limits: ReaderLimits,
    elsewhere: Prepared | None,
) -> Iterator[Footer | ReaderError]:
    reader = take_reader(limits)
    try:
        for path, size in files:
            if not reader.alive:
                reader = take_reader(limits)
            reader.elsewhere = elsewhere
            yield _footer(reader, path, size, columns)
    finally:
        leave_reader(reader)


def _footer(reader: Reader, path: str, size: int, columns: tuple[str, ...]) -> Footer | ReaderError:
    try:
        return Footer(*reader.footer(path, size, columns))
    except ReaderError as error:
        return error
    except (StoreError, OSError) as error:
        return ReaderError(str(error))
