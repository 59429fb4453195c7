"""Documents for tests: small Parquet files with the columns of the minimal workload."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("kind", pa.string()), ("size", pa.int64())])


def rows(ids: Iterable[Any], **columns: Any) -> pa.Table:
    """One document per id; a column is a value for all, a list with one each, or left to a default."""
    names = list(ids)
    defaults: dict[str, Any] = {
        "id": [None if n is None else str(n) for n in names],
        "text": [f"text of {n}" for n in names],
        "kind": "note",
        "size": list(range(len(names))),
    }
    values = {**defaults, **columns}
    spread = {k: list(v) if isinstance(v, list) else [v] * len(names) for k, v in values.items()}
    fields = [
        SCHEMA.field(k) if k in SCHEMA.names else pa.field(k, pa.array(v).type) for k, v in spread.items()
    ]
    return pa.table(spread, schema=pa.schema(fields))


def write(path: Path, table: pa.Table, row_group: int | None = None, **options: Any) -> Path:
    """A Parquet file with row groups of that many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group or max(1, table.num_rows), **options)
    return path


def with_bad_utf8(table: pa.Table, column: str, positions: Sequence[int]) -> pa.Table:
    """The table with bytes that are no UTF-8 in some rows of a string column."""
    data = table.column(column).cast(pa.binary()).to_pylist()
    for position in positions:
        data[position] = b"\xff\xfe bad"
    bad = pa.array(data, pa.binary()).view(pa.string())
    return table.set_column(table.schema.get_field_index(column), column, bad)
