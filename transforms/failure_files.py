"""`failures/`: what readers see of the failures that stand, a copy of what commit records have.

::

    failures/<digest>.parquet    rows of `FAILURES_SCHEMA`; in its footer the attempts whose failures they are

The holder of the output's lock keeps it. While a run goes on, failures of batches that were never tried
before are added now and then; when it is settled, those stand there that the newest attempts left, and no
others. Nothing that counts is read from it. Files are created once and never changed; one whose rows have to
go is first written anew without them, and then deleted: a crash may leave rows twice until the next run is
settled, and never takes any away. The name is the digest of the file's bytes.

Outputs of earlier versions have a file for each attempt, `failures/<batch>.<attempt>.parquet`. It stays until
a later attempt is committed.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.arrow import FAILURES_SCHEMA
from transforms.attempt_keys import (
    Keys,
    Mask,
    ascending,
    key_of,
    keys_from,
    no_keys,
    places_of,
    unpacked_keys,
)
from transforms.batch_ids import ids_in, name_of
from transforms.committed import Committed
from transforms.failures import failures_left
from transforms.layout import FAILURES, failures_path, parse_name
from transforms.output_lock import require_held
from transforms.side_by_side import side_by_side
from transforms.store import Store, create_by_digest

FEW_FILES = 16
"""Small files that may stand beside each other when a run is settled; more of them are joined."""

_MOST_ROWS = 50_000
_MOST_BYTES = 16 << 20  # of rows in memory before a file of them is written
_GROUP_ROWS = 10_000
_SMALL_ROWS = _MOST_ROWS // 4
_COMBINED = 256
"""Tables that become one as soon as there are so many: 100 buffers of a row or two take 10 kB."""

_FILES_AT_ONCE = 4
_ATTEMPTS = b"switchgear.attempts"
_DIGITS = 32


_WRITTEN: dict[str, set[str]] = {}
"""By output, the files that this process has written: a listing may lag behind."""


@dataclass(frozen=True, slots=True, eq=False)
class FailureFile:
    """A file of failures: the attempts whose failures it has, in the order of its rows."""

    path: str
    attempts: Keys
    rows: int
    is_of_one: bool = False
    """Whether an earlier version has written it, for one attempt."""


def add_failures(store: Store, names: Sequence[tuple[str, int]]) -> None:
    """Show the failures of some attempts that nothing is shown of yet.

    Raises:
        StoreError: see `failures_left` and `transforms.output_lock.require_held`.
    """
    writer = _Writer(store)
    writer.add_all(key_of(names))
    writer.finish()


def show_failures(store: Store, committed: Committed, few_files: int = FEW_FILES) -> None:
    """Make `failures/` show what the newest attempts left, no more and no less, in few files.

    Raises:
        StoreError: see `failures_left` and `transforms.output_lock.require_held`.
    """
    files, damaged = read_failure_files(store)
    kept, replaced, missing = _sorted_out(files, attempts_with_failures(committed), few_files)
    writer = _Writer(store)
    for file in replaced:
        writer.add_from(file, missing)
    writer.add_all(missing.rest)
    writer.finish()
    stay = writer.written | {file.path for file in kept}
    for path in (*damaged, *(file.path for file in replaced)):
        if path not in stay:  # the same rows may have come together again
            require_held(store)
            store.delete(path)


def attempts_with_failures(committed: Committed) -> Keys:
    """The newest attempts that left failures, ascending."""
    rows = committed.rows_with_failures()
    return ascending([keys_from(committed.ids[rows], committed.attempts[rows])])


class _Missing:
    """Of some attempts, which are ascending, those that are not found yet."""

    def __init__(self, wanted: Keys) -> None:
        self._wanted = wanted
        self._is_left = np.ones(len(wanted), bool)

    @property
    def rest(self) -> Keys:
        """They themselves, ascending."""
        return self._wanted[self._is_left]

    def among(self, attempts: Keys) -> Mask:
        """Which of some attempts are missing."""
        places = places_of(attempts, self._wanted)
        is_missing = places >= 0
        is_missing[is_missing] = self._is_left[places[is_missing]]
        return is_missing

    def found(self, attempts: Keys) -> None:
        """These are not missing any more."""
        places = places_of(attempts, self._wanted)
        self._is_left[places[places >= 0]] = False


def _sorted_out(
    files: Sequence[FailureFile], wanted: Keys, few_files: int
) -> tuple[list[FailureFile], list[FailureFile], _Missing]:
    """The files that stay, those that go, and the attempts that have to be written then."""
    small = [file for file in files if not file.is_of_one and file.rows < _SMALL_ROWS]
    joined = {file.path for file in small} if len(small) > few_files else set()
    kept: list[FailureFile] = []
    replaced: list[FailureFile] = []
    missing = _Missing(wanted)
    for file in sorted(files, key=lambda file: (-len(file.attempts), file.path)):
        if file.path not in joined and missing.among(file.attempts).all():
            missing.found(file.attempts)
            kept.append(file)
        else:
            replaced.append(file)
    return kept, replaced, missing


def read_failure_files(store: Store) -> tuple[list[FailureFile], list[str]]:
    """The files of `failures/` as they stand, and the names of damaged ones; no files but ours."""

    def read(path: str) -> FailureFile | str | None:
        match parse_name(path.rsplit("/", 1)[1]):
            case batch, attempt, "parquet":
                return FailureFile(path, key_of([(batch, attempt)]), 0, is_of_one=True)
        return _read_footer(store, path)

    paths = filter(_is_ours, {*store.list(FAILURES), *_WRITTEN.get(store.root, ())})
    found = list(side_by_side(store, read, sorted(paths), _FILES_AT_ONCE))
    files = [file for file in found if isinstance(file, FailureFile)]
    return files, [path for path in found if isinstance(path, str)]


def _is_ours(path: str) -> bool:
    name = path.removeprefix(f"{FAILURES}/").removesuffix(".parquet")
    of_digest = len(name) == _DIGITS and not set(name) - set("0123456789abcdef")
    return path.endswith(".parquet") and (of_digest or parse_name(f"{name}.parquet") is not None)


def forget_written(root: str) -> None:
    """Believe the listing of an output again."""
    _WRITTEN.pop(root, None)


def _read_footer(store: Store, path: str) -> FailureFile | str | None:
    """The file; its name if it is damaged, and nothing if it has gone."""
    try:
        with store.open(path) as stream, pq.ParquetFile(stream) as parquet:
            metadata = parquet.schema_arrow.metadata or {}
            attempts = np.frombuffer(base64.b64decode(metadata[_ATTEMPTS], validate=True), no_keys().dtype)
            return FailureFile(path, attempts, parquet.metadata.num_rows)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, KeyError, ValueError):
        return path


@dataclass(slots=True)
class _Writer:
    """Gathers failures, and writes a file of them whenever there are many."""

    store: Store
    written: set[str] = field(default_factory=set)
    _attempts: list[Keys] = field(default_factory=list)
    _small: list[pa.Table] = field(default_factory=list)
    _tables: list[pa.Table] = field(default_factory=list)
    _rows: int = 0
    _bytes: int = 0

    def add_all(self, attempts: Keys) -> None:
        """Take the failures of some attempts from their commit records."""
        names = zip(*unpacked_keys(attempts), strict=True)
        tables = side_by_side(
            self.store, lambda name: failures_left(self.store, name_of(name[0]), int(name[1])), names
        )
        for place, table in enumerate(tables):
            self._add(attempts[place : place + 1], table)

    def add_from(self, file: FailureFile, missing: _Missing) -> None:
        """Take what is missing from a file that has it; what can't be read there is in the records."""
        found = file.attempts[missing.among(file.attempts)]
        if not len(found) or file.is_of_one:
            return
        try:
            table = _read_rows(self.store, file)
        except (pa.ArrowException, OSError):
            return
        batches = pa.array(map(name_of, unpacked_keys(found)[0]), pa.string())
        self._add(found, table.filter(pc.is_in(_batches_of(table), value_set=batches)))
        missing.found(found)

    def finish(self) -> None:
        """Write what is left."""
        self._combine()
        if not self._tables:
            return
        data = _encode(self._tables, np.concatenate(self._attempts))
        self._attempts, self._tables, self._rows, self._bytes = [], [], 0, 0
        path = path_of(data)
        require_held(self.store)
        create_by_digest(self.store, path, data)
        self.written.add(path)
        _WRITTEN.setdefault(self.store.root, set()).add(path)

    def _add(self, attempts: Keys, table: pa.Table) -> None:
        self._attempts.append(attempts)
        self._small.append(table)
        self._rows += len(table)
        self._bytes += table.nbytes
        if len(self._small) == _COMBINED:
            self._combine()
        if self._rows >= _MOST_ROWS or self._bytes >= _MOST_BYTES:
            self.finish()

    def _combine(self) -> None:
        if self._small:
            self._tables.append(pa.concat_tables(self._small).combine_chunks())
            self._small = []


def path_of(data: bytes) -> str:
    """The name of a file with these bytes."""
    return failures_path(hashlib.sha256(data).hexdigest()[:_DIGITS])


def _encode(tables: Iterable[pa.Table], attempts: Keys) -> bytes:
    metadata = {**FAILURES_SCHEMA.metadata, _ATTEMPTS: base64.b64encode(attempts.tobytes())}
    table = pa.concat_tables(tables).replace_schema_metadata(metadata)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=_GROUP_ROWS)
    return sink.getvalue()


def rows_by_batch(store: Store, file: FailureFile) -> Iterator[tuple[str, pa.Table]]:
    """What a file shows, batch by batch in the order of its rows; one file is in memory at a time.

    A batch whose rows do not stand together comes more than once.
    """
    table = _read_rows(store, file)
    ids = ids_in(_batches_of(table))
    changes = np.flatnonzero(ids[1:] != ids[:-1]) + 1
    for start, end in pairwise([0, *map(int, changes), len(ids)]):
        yield name_of(ids[start]), table.slice(start, end - start)


def _read_rows(store: Store, file: FailureFile) -> pa.Table:
    with store.open(file.path) as stream:
        return pq.read_table(stream, schema=FAILURES_SCHEMA, use_threads=False)


def _batches_of(failures: pa.Table) -> pa.ChunkedArray:
    return pc.struct_field(failures.column("lineage"), "batch_id")
