"""Reading the footers of many files in a few reader processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

from schemas.errors import StoreError
from transforms.probe import Elsewhere, Reader, ReaderError, ReaderLimits, leave_reader, take_reader
from transforms.probe_footer import Footer
from transforms.side_by_side import in_order

_PROCESSES = 8
_FILES_A_PROCESS = 500  # a process takes 0.2 s to start, a footer 0.4 ms to read
_CHUNK = 25
_CHUNKS_BEGUN = 2  # for each process


@dataclass(frozen=True, slots=True)
class Located:
    """A file whose footer is wanted; `elsewhere` is where its ranges come from if it has no path here."""

    path: str
    size: int
    generation: str = ""
    mtime_ns: int = 0
    elsewhere: Elsewhere | None = None


Looked = tuple[Located, Footer | ReaderError] | str
"""A file with its footer or with what is wrong with it; or a sentence about one that was never looked at."""


def read_footers(
    files: Iterable[Located | str], columns: Sequence[str], limits: ReaderLimits | None = None
) -> Iterator[Looked]:
    """The footers of files, or what is wrong with them, in the files' order; sentences pass through.

    Files are taken as there is room for them: of any number of them some hundreds are in memory.
    A file that its reader dies of is the only one that comes to harm: another reader goes on.
    """
    left = iter(files)
    first = list(islice(left, _FILES_A_PROCESS))
    processes = 1 if len(first) < _FILES_A_PROCESS else min(_PROCESSES, os.cpu_count() or 1)
    read = partial(_read_chunk, columns=tuple(columns), limits=limits or ReaderLimits())
    chunks = _chunks(chain(first, left))
    del first
    with ThreadPoolExecutor(processes, thread_name_prefix="footers") as pool:
        yield from chain.from_iterable(in_order(pool, read, chunks, _CHUNKS_BEGUN * processes))


def _chunks(files: Iterator[Located | str]) -> Iterator[list[Located | str]]:
    while chunk := list(islice(files, _CHUNK)):
        yield chunk


def _read_chunk(
    files: Sequence[Located | str], columns: tuple[str, ...], limits: ReaderLimits
) -> list[Looked]:
    found: list[Looked] = []
    reader = take_reader(limits)
    try:
        for file in files:
            if isinstance(file, str):
                found.append(file)
                continue
            if not reader.alive:
                reader = take_reader(limits)
            reader.elsewhere = file.elsewhere
            found.append((file, _footer(reader, file, columns)))
    finally:
        leave_reader(reader)
    return found


def _footer(reader: Reader, file: Located, columns: tuple[str, ...]) -> Footer | ReaderError:
    try:
        return Footer(*reader.footer(file.path, file.size, columns))
    except ReaderError as error:
        return error
    except (StoreError, OSError) as error:
        return ReaderError(str(error))
