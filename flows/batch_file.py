"""Every batch of a run in one Parquet file, because a page can't show ten thousand of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq

from flows.batch_lines import BatchLine
from schemas.outcomes import MONEY_SCALE
from transforms.layout import run_path
from transforms.store import open_store

BATCHES_FILE = "batches.parquet"
_AT_A_TIME = 16_384
BATCHES_SCHEMA = pa.schema(
    [
        ("batch_id", pa.string()),
        ("group", pa.int32()),
        ("attempt", pa.int32()),
        ("state", pa.string()),
        ("rows", pa.int64()),
        ("results", pa.int64()),
        ("failures", pa.int64()),
        ("retryable", pa.int64()),
        ("amount", pa.decimal128(24, MONEY_SCALE)),  # NULL: not committed, or a price is unknown
        ("source_uri", pa.string()),
        ("error", pa.string()),
    ]
)


def write_batch_file(lines: Sequence[BatchLine], output: str, run_id: str) -> str:
    """Write what became of each batch that was due, in the order given; where it is."""
    written = io.BytesIO()
    with pq.ParquetWriter(written, BATCHES_SCHEMA, compression="zstd") as writer:
        for first in range(0, len(lines), _AT_A_TIME):
            rows = [_row(line) for line in lines[first : first + _AT_A_TIME]]
            writer.write_table(pa.Table.from_pylist(rows, schema=BATCHES_SCHEMA))
    path = run_path(run_id, BATCHES_FILE)
    open_store(output).create(path, written.getvalue())
    return f"{output}/{path}"


def _row(line: BatchLine) -> dict[str, object]:
    return {
        "batch_id": line.batch_id,
        "group": line.group if line.group >= 0 else None,
        "attempt": line.attempt,
        "state": line.state,
        "rows": line.rows,
        "results": line.results,
        "failures": line.failures,
        "retryable": line.retryable,
        "amount": None if line.is_failed or line.amount is None else Decimal(line.amount),
        "source_uri": line.uri or None,
        "error": line.error or None,
    }
