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
import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.arrow import COMMITS_SCHEMA
from schemas.errors import StoreError
from transforms.attempt_keys import Keys, ascending, keys_of, no_keys, places_of
from transforms.committed import LOOKED_UP, Lookups
from transforms.layout import COMPACTED, compacted_path
from transforms.side_by_side import side_by_side
from transforms.store import Store, create_by_digest

MOST_ROWS = 100_000
"""Of one file: some 10 MB, which is what a reader holds of them at a time, and 40 MB before it is written."""

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


class ChangedError(StoreError):
    """A file of compacted records that was read a moment ago can't be read any more."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Where rows are: in a file, and of a small one in memory as well."""

    path: str
    whole: pa.Table | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CompactedFile:
    """A file: where its rows are, how many these are, and the runs that it covers."""

    rows: Rows
    count: int
    covers: frozenset[str]

    @property
    def path(self) -> str:
        """Its name."""
        return self.rows.path


@dataclass(frozen=True, slots=True, eq=False)
class Compacted:
    """The files of an output, and what lookups need of them all; `damaged` can't be used."""

    files: tuple[CompactedFile, ...]
    lookups: Lookups
    damaged: tuple[str, ...] = ()
    covers: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """The runs that are covered by all files together."""
        object.__setattr__(self, "covers", frozenset(run for file in self.files for run in file.covers))


def write_compacted(store: Store, pieces: Sequence[pa.Table], covers: Collection[str]) -> CompactedFile:
    """Create a file of some rows; durable when this returns."""
    data = _encode(pieces, covers)
    path = compacted_path(hashlib.sha256(data).hexdigest()[:_DIGITS])
    create_by_digest(store, path, data)
    count = sum(map(len, pieces))
    whole = pa.concat_tables([COMMITS_SCHEMA.empty_table(), *pieces]) if count <= _SMALL_ROWS else None
    return CompactedFile(Rows(path, whole), count, frozenset(covers))


def _encode(pieces: Sequence[pa.Table], covers: Collection[str]) -> bytes:
    metadata = {**COMMITS_SCHEMA.metadata, _COVERS: json.dumps(sorted(covers)).encode()}
    schema = COMMITS_SCHEMA.with_metadata(metadata)
    sink = io.BytesIO()
    compression = "zstd" if sum(map(len, pieces)) >= _PACKED_FROM else "none"
    with pq.ParquetWriter(sink, schema, compression=compression) as writer:
        for piece in pieces:
            writer.write_table(piece.cast(schema), row_group_size=_GROUP_ROWS)
    return sink.getvalue()


def read_compacted(store: Store) -> Compacted:
    """The files as they stand. One that goes while this reads has gone into another: they are read anew."""
    for tries_left in reversed(range(_TRIES)):
        try:
            return _read_all(store)
        except (FileNotFoundError, ChangedError):
            if not tries_left:
                raise
    raise AssertionError


def _read_all(store: Store) -> Compacted:
    def read(path: str) -> tuple[CompactedFile, Lookups] | str:
        try:
            parquet = open_compacted(store, path)
        except DamagedError:
            return path
        count, covers = parquet.metadata.num_rows, json.loads(parquet.schema_arrow.metadata[_COVERS])
        whole = parquet.read(use_threads=False) if count <= _SMALL_ROWS else None
        pieces = _row_groups(parquet, LOOKED_UP) if whole is None else [whole]
        return CompactedFile(Rows(path, whole), count, frozenset(covers)), Lookups.of(pieces)

    paths = sorted(path for path in store.list(COMPACTED) if path.endswith(".parquet"))
    found = list(side_by_side(store, read, paths, _FILES_AT_ONCE))
    damaged = [file for file in found if isinstance(file, str)]
    files = [file for file in found if not isinstance(file, str)]
    every = Lookups.joined([lookups for _, lookups in files])
    wrong: frozenset[str] = frozenset()
    if len(every.keys) < sum(len(lookups.keys) for _, lookups in files):
        wrong = _contradicting(store, files)
    if wrong:
        files = [(file, lookups) for file, lookups in files if file.path not in wrong]
        every = Lookups.joined([lookups for _, lookups in files])
    return Compacted(tuple(file for file, _ in files), every, (*damaged, *sorted(wrong)))


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
        ChangedError: a file that was read a moment ago can't be read any more.
    """
    for rows in several:
        if rows.whole is not None:
            yield rows.whole.select(columns)
            continue
        try:
            file = open_compacted(store, rows.path)
        except (DamagedError, FileNotFoundError):
            raise ChangedError(f"{store.root}/{rows.path} was changed while it was read; run again") from None
        yield from _row_groups(file, columns)


def _row_groups(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.Table]:
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=list(columns), use_threads=False)


def _contradicting(store: Store, files: Sequence[tuple[CompactedFile, Lookups]]) -> frozenset[str]:
    """The files that say different things of one record. Those that have records in common are read again."""
    twice = _in_several([lookups.keys for _, lookups in files])
    said = []
    for number, (file, lookups) in enumerate(files):
        if not (places_of(twice, lookups.keys) >= 0).any():
            continue
        for table in rows_in(store, [file.rows], ("batch_id", "attempt", "record_digest")):
            places = places_of(keys_of(table), twice)
            rows = pa.table({"place": places, "digest": table.column("record_digest")})
            said.append(
                rows.append_column("file", pa.repeat(number, len(rows))).filter(pa.array(places >= 0))
            )
    if not said:
        return frozenset()
    every = pa.concat_tables(said)
    digests = every.group_by("place").aggregate([("digest", "count_distinct")])
    disputed = digests.filter(pc.greater(digests.column("digest_count_distinct"), 1)).column("place")
    wrong = every.filter(pc.is_in(every.column("place"), value_set=disputed)).column("file")
    return frozenset(files[number][0].path for number in wrong.unique().to_pylist())


def _in_several(several: Sequence[Keys]) -> Keys:
    """The keys that are in more than one of some arrays, each of which has a key once."""
    keys = np.concatenate([no_keys(), *several])
    keys.sort()
    return ascending([keys[1:][keys[1:] == keys[:-1]]])
