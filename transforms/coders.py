"""Arrow coders for Beam: tables and record batches travel as Arrow IPC, never pickled.

By default Beam pickles them, and a pickled slice carries its parent's whole buffers.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from apache_beam import coders
from apache_beam.coders import registry


class TableCoder(coders.Coder):
    """A `pyarrow.Table` as an Arrow IPC stream (lz4)."""

    def encode(self, value: pa.Table) -> bytes:
        """The table's own rows only, whatever buffers they are slices of."""
        return _encode(value.schema, value.to_batches())

    def decode(self, encoded: bytes) -> pa.Table:
        """The inverse of `encode`."""
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_all()

    def is_deterministic(self) -> bool:
        """Equal tables may be cut in different chunks: not to be used as keys."""
        return False

    def to_type_hint(self) -> Any:
        """What it encodes."""
        return pa.Table


class RecordBatchCoder(coders.Coder):
    """A `pyarrow.RecordBatch` as an Arrow IPC stream (lz4)."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        """The batch's own rows only, whatever buffers they are slices of."""
        return _encode(value.schema, [value])

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """The inverse of `encode`."""
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def is_deterministic(self) -> bool:
        """Not to be used as keys."""
        return False

    def to_type_hint(self) -> Any:
        """What it encodes."""
        return pa.RecordBatch


def _encode(schema: pa.Schema, batches: list[pa.RecordBatch]) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def register_arrow_coders() -> None:
    """Make Beam use these coders for Arrow values."""
    registry.register_coder(pa.Table, TableCoder)
    registry.register_coder(pa.RecordBatch, RecordBatchCoder)
