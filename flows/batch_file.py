"""Every batch of a run in one Parquet file, because a page can't show ten thousand of them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from flows.batch_lines import BatchLines
from flows.worst_first import WorstFirst
from schemas.outcomes import MONEY_SCALE
from transforms.batch_ids import ids_in, written_ids
from transforms.layout import run_path
from transforms.store import open_store
from transforms.table_file import write_pieces

BATCHES_FILE = "batches.parquet"
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


def write_batch_file(lines: WorstFirst, output: str, run_id: str) -> str:
    """Write what became of each batch that was due, in the order given; where it is."""
    path = run_path(run_id, BATCHES_FILE)
    write_pieces(open_store(output), path, BATCHES_SCHEMA, map(_columns, lines.pieces()))
    return f"{output}/{path}"


def _columns(lines: BatchLines) -> pa.Table:
    columns = {name: lines.table[name] for name in BATCHES_SCHEMA.names if name != "source_uri"}
    columns["batch_id"] = written_ids(ids_in(lines.batches))
    columns["source_uri"] = lines.table["uri"]
    for name in ("source_uri", "error", "state"):
        columns[name] = columns[name].cast(pa.string())
    is_unsaid = {
        "group": pc.less(columns["group"], 0),
        "amount": pc.invert(lines.is_committed()),
        "source_uri": pc.equal(columns["source_uri"], ""),
        "error": pc.equal(columns["error"], ""),
    }
    for name, mask in is_unsaid.items():
        columns[name] = pc.if_else(mask, None, columns[name])
    return pa.table([columns[name] for name in BATCHES_SCHEMA.names], BATCHES_SCHEMA.names).cast(
        BATCHES_SCHEMA
    )
