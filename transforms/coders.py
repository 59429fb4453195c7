"""Coders for Beam: tables and record batches travel as Arrow IPC, batches at work don't travel at all.

By default Beam pickles them, and a pickled slice carries its parent's whole buffers. It also pickles
what never leaves the process, only to know how large it would be: every coder here estimates instead.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from apache_beam import coders
from apache_beam.coders import registry
from apache_beam.coders.coder_impl import CallbackCoderImpl

from transforms.work import WorkBatch


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

    def estimate_size(self, value: Any) -> int:
        """Bytes in memory; Beam asks for every element of its first bundles."""
        return int(value.nbytes)

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

    def estimate_size(self, value: Any) -> int:
        """Bytes in memory; Beam asks for every element of its first bundles."""
        return int(value.nbytes)

    def to_type_hint(self) -> Any:
        """What it encodes."""
        return pa.RecordBatch


class WorkBatchCoder(coders.PickleCoder):
    """A batch at work. The stages it goes through are fused, so nothing is encoded."""

    def estimate_size(self, value: Any) -> int:
        """About; pickling it to count costs as much as half of all its calls."""
        return int(value.table.nbytes)

    def _create_impl(self) -> Any:
        pickled = coders.PickleCoder()
        return CallbackCoderImpl(pickled.encode, pickled.decode, self.estimate_size)

    def to_type_hint(self) -> Any:
        """What it encodes."""
        return WorkBatch


def _encode(schema: pa.Schema, batches: list[pa.RecordBatch]) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def register_arrow_coders() -> None:
    """Make Beam use these coders, for Arrow values and for batches at work."""
    registry.register_coder(WorkBatch, WorkBatchCoder)
    registry.register_coder(pa.Table, TableCoder)
    registry.register_coder(pa.RecordBatch, RecordBatchCoder)
