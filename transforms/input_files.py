"""What the footers of an input say, kept as columns: a hundred thousand files take some megabytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow as pa

_MOST_REMEMBERED = 64
NAMES_A_PIECE = 16_384
"""Names that are kept together, in one Arrow array."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group: its rows, and the uncompressed bytes of the columns that are read."""

    index: int
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class InputFile:
    """One readable Parquet file, as its footer describes it.

    `generation` is `sha256:` and 32 digits of the content's digest: a copied or touched file is
    the same, a changed one never is. In Cloud Storage it is `gcs:` and the generation that it gives.
    """

    uri: str
    generation: str
    size: int
    mtime_ns: int
    schema: pa.Schema
    row_groups: tuple[RowGroup, ...]

    @property
    def rows(self) -> int:
        """Rows of the whole file."""
        return sum(group.rows for group in self.row_groups)


class Names(Sequence[str]):
    """Many strings in little more than their bytes: a piece is an Arrow array as soon as it is full."""

    def __init__(self) -> None:
        self._full: list[pa.StringArray] = []
        self._last: list[str] = []

    def append(self, name: str) -> None:
        """Take one in, behind the others."""
        self._last.append(name)
        if len(self._last) == NAMES_A_PIECE:
            self._full.append(pa.array(self._last, pa.string()))
            self._last = []

    def __len__(self) -> int:
        return len(self._full) * NAMES_A_PIECE + len(self._last)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        piece, place = divmod(range(len(self))[index], NAMES_A_PIECE)
        name: str = self._last[place] if piece == len(self._full) else self._full[piece][place].as_py()
        return name

    def array(self, first: int, stop: int) -> pa.StringArray:
        """Some neighbours; no copy if they are in one piece. Pieces begin at multiples of `NAMES_A_PIECE`."""
        place = first % NAMES_A_PIECE
        if first // NAMES_A_PIECE < len(self._full) and place + stop - first <= NAMES_A_PIECE:
            return self._full[first // NAMES_A_PIECE].slice(place, stop - first)
        return pa.array(self[first:stop], pa.string())

    def __iter__(self) -> Iterator[str]:
        for piece in self._full:
            yield from piece.to_pylist()
        yield from self._last


class Files(Sequence[InputFile]):
    """Readable files in the order of their names.

    Each is made when it is asked for; what stays in memory is its name, its generation, 36 bytes, and 16
    bytes for each of its row groups. A schema is there once, however many files have it.
    """

    def __init__(self) -> None:
        self.schemas: list[pa.Schema] = []
        self._known: dict[bytes, int] = {}
        self._same: dict[int, tuple[pa.Schema, int]] = {}
        self._uris = Names()
        self._generations = Names()
        self._sizes = array("q")
        self._mtimes = array("q")
        self._schema_of = array("i")
        self._first_group = array("q", [0])
        self._rows = array("q")
        self._bytes = array("q")

    @classmethod
    def of(cls, files: Iterable[InputFile]) -> Files:
        """Some files, in this order."""
        found = cls()
        for file in files:
            found.append(file)
        return found

    def append(self, file: InputFile) -> None:
        """Take a file in, behind the others."""
        self._uris.append(file.uri)
        self._generations.append(file.generation)
        self._sizes.append(file.size)
        self._mtimes.append(file.mtime_ns)
        self._schema_of.append(self._place_of(file.schema))
        for group in file.row_groups:
            self._rows.append(group.rows)
            self._bytes.append(group.bytes)
        self._first_group.append(len(self._rows))

    def _place_of(self, schema: pa.Schema) -> int:
        """Where a schema stands among those that were seen; a reader gives neighbours the same object."""
        same = self._same.get(id(schema))
        if same is not None:
            return same[1]
        place = self._known.setdefault(schema.serialize().to_pybytes(), len(self.schemas))
        if place == len(self.schemas):
            self.schemas.append(schema)
        if len(self._same) >= _MOST_REMEMBERED:
            self._same.clear()
        self._same[id(schema)] = schema, place
        return place

    def __len__(self) -> int:
        return len(self._uris)

    @overload
    def __getitem__(self, index: int) -> InputFile: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[InputFile, ...]: ...

    def __getitem__(self, index: int | slice) -> InputFile | tuple[InputFile, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        number = range(len(self))[index]
        first, end = self._first_group[number], self._first_group[number + 1]
        pairs = zip(self._rows[first:end], self._bytes[first:end], strict=True)
        return InputFile(
            self._uris[number],
            self._generations[number],
            self._sizes[number],
            self._mtimes[number],
            self.schemas[self._schema_of[number]],
            tuple(RowGroup(index, rows, size) for index, (rows, size) in enumerate(pairs)),
        )

    def __iter__(self) -> Iterator[InputFile]:
        return (self[number] for number in range(len(self)))

    @property
    def uris(self) -> Sequence[str]:
        """The files' names."""
        return self._uris

    def generations(self) -> dict[str, str]:
        """The generation of each file by its name."""
        return dict(zip(self._uris, self._generations, strict=True))

    def names(self, first: int, stop: int) -> tuple[pa.StringArray, pa.StringArray]:
        """The names and generations of some neighbours; see `Names.array`."""
        return self._uris.array(first, stop), self._generations.array(first, stop)

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return int(np.frombuffer(self._rows, np.int64).sum()) if self._rows else 0

    @property
    def bytes(self) -> int:
        """Uncompressed bytes of the columns that are read, of all files."""
        return int(np.frombuffer(self._bytes, np.int64).sum()) if self._bytes else 0

    def with_schema(self) -> Iterator[tuple[str, int]]:
        """The name of each file, and the number of its schema."""
        return zip(self._uris, self._schema_of, strict=True)

    def first_of(self) -> list[int]:
        """For each schema, the number of the first file that has it; these ascend."""
        return [int(number) for number in np.unique(np.array(self._schema_of), return_index=True)[1]]


@dataclass(frozen=True, slots=True)
class InputFiles:
    """All input files by name, their common schema, and the files that were skipped with the reason."""

    files: Files
    schema: pa.Schema
    skipped: tuple[str, ...]
