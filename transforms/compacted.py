"""Files of compacted commit records: a copy of what stands in `commits/`, to be read in a few pieces.

::

    compacted/<digest>.parquet    `COMMITS_SCHEMA`, a row for each record; in its footer the runs it covers

A record never changes, so a row can't be wrong by age, only missing. The name is the digest of the file's
bytes: who reads a file knows that it is what was written. Files are created once and never changed; one
whose rows have gone into another is deleted, and a record that stands in two files counts once.

A run is covered when each attempt that it planned is in some file, or was planned again by a run that is
not covered. An attempt that no run has planned can't be committed. So what may be committed and stands in
no file was planned by a run that is not covered, and there are no others to ask for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import COMMITS_SCHEMA
from schemas.errors import StoreError
from transforms.batch_ids import ids_in
from transforms.committed import LOOKED_UP, Keys, encoded, key_of, keys_of
from transforms.layout import COMPACTED, compacted_path
from transforms.side_by_side import side_by_side
from transforms.store import Store

MOST_ROWS = 250_000
"""Of one file: some 25 MB, which is what a reader holds of them at a time."""

_GROUP_ROWS = 50_000
_PACKED_FROM = 100
"""Rows from which a file is compressed: it takes longer to set a compressor up for each of 44 columns than to
write and read all of a few rows."""

_SMALL_ROWS = 1000
_FILES_AT_ONCE = 4
_TRIES = 5
_COVERS = b"switchgear.covers"
_DIGITS = 32


class DamagedError(Exception):
    """A file of compacted records is not what was written, or another version's."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Where rows are: in a file, and of a small one in memory as well."""

    path: str
    whole: pa.Table | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CompactedFile:
    """What is kept of a file: which attempts it has, and what lookups need."""

    rows: Rows
    covers: frozenset[str]
    keys: Keys
    digests: Keys
    looked_up: pa.Table

    @property
    def path(self) -> str:
        """Its name."""
        return self.rows.path


@dataclass(frozen=True, slots=True, eq=False)
class Compacted:
    """The files of an output. `known` are their attempts, ascending, each once; `damaged` can't be used."""

    files: tuple[CompactedFile, ...]
    known: Keys
    damaged: tuple[str, ...] = ()
    covers: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """The runs that are covered by all files together."""
        object.__setattr__(self, "covers", frozenset(run for file in self.files for run in file.covers))


def write_compacted(store: Store, pieces: Sequence[pa.Table], covers: Collection[str]) -> CompactedFile:
    """Create a file of some rows; durable when this returns."""
    data = _encode(pieces, covers)
    path = compacted_path(hashlib.sha256(data).hexdigest()[:_DIGITS])
    if not store.create(path, data) and store.read(path) != data:
        store.delete(path)
        store.create(path, data)
    return _kept(path, pa.concat_tables([COMMITS_SCHEMA.empty_table(), *pieces]), covers)


def _encode(pieces: Sequence[pa.Table], covers: Collection[str]) -> bytes:
    metadata = {**COMMITS_SCHEMA.metadata, _COVERS: json.dumps(sorted(covers)).encode()}
    schema = COMMITS_SCHEMA.with_metadata(metadata)
    sink = pa.BufferOutputStream()
    compression = "zstd" if sum(map(len, pieces)) >= _PACKED_FROM else "none"
    with pq.ParquetWriter(sink, schema, compression=compression) as writer:
        for piece in pieces:
            writer.write_table(piece.cast(schema), row_group_size=_GROUP_ROWS)
    return sink.getvalue().to_pybytes()


def read_compacted(store: Store) -> Compacted:
    """The files as they stand. One that goes while this reads has gone into another: they are read anew."""
    for tries_left in reversed(range(_TRIES)):
        try:
            return _read_all(store)
        except FileNotFoundError:
            if not tries_left:
                raise
    raise AssertionError


def _read_all(store: Store) -> Compacted:
    def read(path: str) -> CompactedFile | str:
        try:
            file = open_compacted(store, path)
        except DamagedError:
            return path
        small = file.metadata.num_rows <= _SMALL_ROWS
        table = file.read(None if small else [*LOOKED_UP, "record_digest"], use_threads=not small)
        return _kept(path, table, json.loads(file.schema_arrow.metadata[_COVERS]))

    paths = sorted(path for path in store.list(COMPACTED) if path.endswith(".parquet"))
    found = list(side_by_side(store, read, paths, _FILES_AT_ONCE))
    files = [file for file in found if isinstance(file, CompactedFile)]
    damaged = [path for path in found if isinstance(path, str)]
    known, wrong = _ordered(files)
    if wrong:
        files = [file for file in files if file.path not in wrong]
        known, _ = _ordered(files)
    return Compacted(tuple(files), known, (*damaged, *sorted(wrong)))


def open_compacted(store: Store, path: str) -> pq.ParquetFile:
    """A file, whose bytes were compared with its name.

    Raises:
        DamagedError: they differ, or it was written by another version.
        FileNotFoundError: it is not there.
    """
    data = store.read(path)
    if compacted_path(hashlib.sha256(data).hexdigest()[:_DIGITS]) != path:
        raise DamagedError(path)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        if not file.schema_arrow.equals(COMMITS_SCHEMA, check_metadata=False):
            raise DamagedError(path)
    except pa.ArrowException:
        raise DamagedError(path) from None
    return file


def rows_in(store: Store, several: Iterable[Rows], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of files, a piece at a time.

    Raises:
        StoreError: a file that was read a moment ago can't be read any more.
    """
    for rows in several:
        if rows.whole is not None:
            yield rows.whole.select(columns)
            continue
        try:
            file = open_compacted(store, rows.path)
        except (DamagedError, FileNotFoundError):
            raise StoreError(f"{store.root}/{rows.path} was changed while it was read; run again") from None
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=list(columns))


def _kept(path: str, table: pa.Table, covers: Iterable[str]) -> CompactedFile:
    """What is kept of a file's rows; of a small one's, which are whole here, all."""
    is_whole = len(table) <= _SMALL_ROWS and table.schema.names == COMMITS_SCHEMA.names
    return CompactedFile(
        rows=Rows(path, table if is_whole else None),
        covers=frozenset(covers),
        keys=keys_of(table),
        digests=ids_in(table.column("record_digest")),
        looked_up=encoded(table.select(LOOKED_UP)),
    )


def _ordered(files: Sequence[CompactedFile]) -> tuple[Keys, frozenset[str]]:
    """The attempts of files, ascending, each once; and the files that say different things of one record."""
    keys = np.concatenate([key_of([]), *(file.keys for file in files)])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    same = keys[1:] == keys[:-1]
    if not same.any():
        return keys, frozenset()
    digests = np.concatenate([file.digests for file in files])[order]
    wrong = np.flatnonzero(same & (digests[1:] != digests[:-1]))
    owner = np.repeat(np.arange(len(files)), [len(file.keys) for file in files])[order]
    paths = frozenset(files[int(owner[place])].path for row in wrong for place in (row, row + 1))
    return np.concatenate([keys[:1], keys[1:][~same]]), paths
