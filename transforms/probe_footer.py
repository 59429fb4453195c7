"""Reading a Parquet file's footer without believing it; runs in a reader process alone.

A footer can claim anything. What it says decides how many batches are planned, so claims that no
honest file makes are refused before anything is planned by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MAX_COLUMNS = 20_000
MAX_ROW_GROUPS = 100_000
MAX_DEPTH = 64
# Documents have ids: an honest file has a byte a row. A file of 15 kB that claims ten million rows
# repeats one page's worth of runs, and would be planned as thousands of batches.
ROWS_A_BYTE = 64
FREE_ROWS = 1_000_000
# zstd's run-length blocks reach about 30,000 : 1; nothing in use reaches more.
MAX_RATIO = 100_000
FREE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Footer:
    """What a file's footer says.

    `groups` are (rows, uncompressed bytes of the needed columns); the schema is without metadata.
    """

    schema: pa.Schema
    groups: tuple[tuple[int, int], ...]


def read_footer(path: Any, size: int, columns: Sequence[str]) -> Footer:
    """The footer of a file (path, or open file) of `size` bytes, of which some columns are needed.

    Raises:
        ValueError: it claims what can't be. Whatever pyarrow raises besides.
    """
    with pq.ParquetFile(path) as parquet:
        metadata = parquet.metadata
        _require("columns", metadata.num_columns, MAX_COLUMNS)
        _require("row groups", metadata.num_row_groups, MAX_ROW_GROUPS)
        fields = [field.remove_metadata() for field in parquet.schema_arrow]
        _require("levels of nesting", max((_depth(field.type) for field in fields), default=0), MAX_DEPTH)
        paths = [parquet.schema.column(i).path for i in range(metadata.num_columns)]
    leaves = [i for i, leaf in enumerate(paths) if _is_of(leaf, columns)]
    str(fields)  # whoever asked will read all names: bytes that are no UTF-8 must show here
    groups = tuple(_group(metadata.row_group(i), i, size, leaves) for i in range(metadata.num_row_groups))
    _require("rows", sum(rows for rows, _, _ in groups), ROWS_A_BYTE * size + FREE_ROWS)
    _require("compressed bytes", sum(compressed for _, _, compressed in groups), size)
    return Footer(pa.schema(fields), tuple((rows, uncompressed) for rows, uncompressed, _ in groups))


def _group(group: pq.RowGroupMetaData, index: int, size: int, leaves: Sequence[int]) -> tuple[int, int, int]:
    """Rows, and uncompressed and compressed bytes of some leaves."""
    if group.num_rows < 0:
        raise ValueError(f"row group {index} claims {group.num_rows} rows")
    chunks = [group.column(leaf) for leaf in leaves]
    compressed = [chunk.total_compressed_size for chunk in chunks]
    uncompressed = [chunk.total_uncompressed_size for chunk in chunks]
    if min([0, *compressed, *uncompressed]) < 0:
        raise ValueError(f"row group {index} claims a negative number of bytes")
    _require(f"compressed bytes of row group {index}", sum(compressed), size)
    allowed = MAX_RATIO * sum(compressed) + FREE_BYTES
    _require(f"uncompressed bytes of row group {index}", sum(uncompressed), allowed)
    return group.num_rows, sum(uncompressed), sum(compressed)


def _require(what: str, claimed: int, allowed: int) -> None:
    if claimed > allowed:
        raise ValueError(f"its footer claims {claimed:,} {what}; at most {allowed:,} are believed of it")


def _is_of(path: str, columns: Sequence[str]) -> bool:
    """Whether a leaf belongs to one of some columns; names may have dots in them."""
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _depth(kind: pa.DataType) -> int:
    """Levels of a type, counted without recursion: a stranger chose how deep it is."""
    deepest, level = 0, [kind]
    while level and deepest <= MAX_DEPTH:
        level = [inner.field(i).type for inner in level for i in range(inner.num_fields)]
        deepest += 1
    return deepest
