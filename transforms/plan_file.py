"""The frozen plan, `runs/<run_id>/plan.parquet`: written once, read by each worker as far as it needs it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import PLAN_SCHEMA
from schemas.errors import OutputError, first_line
from transforms.batch_ids import binary_ids, ids_in, written_ids
from transforms.batch_refs import REFS_SCHEMA, BatchRefs
from transforms.store import Store

INPUT_SCHEMA_KEY = b"switchgear.input_schema"
_PACKED_FROM = 100  # batches: to compress fewer takes longer than to write them
ROW_GROUP = 16_384
"""Batches of a row group of the plan: a worker reads those row groups that its group lies in."""


def plan_bytes(refs: BatchRefs, input_schema: pa.Schema) -> bytes:
    """The plan as a Parquet file, with the schema that workers read the input as."""
    metadata = dict(PLAN_SCHEMA.metadata)
    metadata[INPUT_SCHEMA_KEY] = input_schema.serialize().to_pybytes().hex().encode()
    schema = PLAN_SCHEMA.with_metadata(metadata)
    sink = io.BytesIO()
    compression = "zstd" if len(refs) >= _PACKED_FROM else "none"
    with pq.ParquetWriter(sink, schema, compression=compression) as writer:
        for first in range(0, len(refs), ROW_GROUP):
            writer.write_table(_shown(refs.table.slice(first, ROW_GROUP), schema), ROW_GROUP)
    return sink.getvalue()


def read_plan(store: Store, plan_uri: str) -> tuple[BatchRefs, pa.Schema]:
    """The batches of a frozen plan, and the schema that their columns are read as."""
    with _opened(store, plan_uri) as plan:
        return _refs(plan, 0, plan.metadata.num_rows), _input_schema(plan)


def read_group(store: Store, plan_uri: str, group: int, groups: int) -> tuple[BatchRefs, pa.Schema]:
    """The same for the batches of one group; of a large plan only a part is read (see `group_slice`)."""
    with _opened(store, plan_uri) as plan:
        place = group_place(plan.metadata.num_rows, group, groups)
        return _refs(plan, place.start, place.stop), _input_schema(plan)


def group_slice(refs: BatchRefs, group: int, groups: int) -> BatchRefs:
    """The batches of group `group` (from 0) of `groups`: neighbours stay together, sizes differ by one."""
    place = group_place(len(refs), group, groups)
    return refs[place.start : place.stop]


def group_place(batches: int, group: int, groups: int) -> range:
    """The places in a plan of so many batches that are a group's.

    Raises:
        OutputError: there is no such group.
    """
    if not 0 <= group < groups:
        raise OutputError(f"group {group} of {groups}: must be 0 to {groups - 1}")
    size, rest = divmod(batches, groups)
    start = group * size + min(group, rest)
    return range(start, start + size + (group < rest))


@contextmanager
def _opened(store: Store, plan_uri: str) -> Iterator[pq.ParquetFile]:
    """A plan that is there.

    Raises:
        OutputError: it is damaged.
    """
    try:
        with store.open(plan_uri) as stream, pq.ParquetFile(stream) as plan:
            yield plan
    except pa.ArrowException as error:
        raise OutputError(
            f"{store.root}/{plan_uri} can't be read ({first_line(error)}): it was damaged. Run again: every "
            "run makes a plan of its own"
        ) from None


def _refs(plan: pq.ParquetFile, start: int, stop: int) -> BatchRefs:
    """The batches at some places: row groups that hold none of them are not read."""
    pieces, first = [], 0
    for number in range(plan.metadata.num_row_groups):
        rows = plan.metadata.row_group(number).num_rows
        if max(start, first) < min(stop, first + rows):
            piece = plan.read_row_group(number)
            pieces.append(_kept(piece.slice(max(0, start - first), stop - max(start, first))))
        first += rows
    return BatchRefs(pa.concat_tables([REFS_SCHEMA.empty_table(), *pieces]))


def _input_schema(plan: pq.ParquetFile) -> pa.Schema:
    encoded = bytes.fromhex(plan.schema_arrow.metadata[INPUT_SCHEMA_KEY].decode())
    return pa.ipc.read_schema(pa.py_buffer(encoded))


def _shown(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Columns as people read them: ids as digits, names in full."""
    return table.set_column(0, "batch_id", written_ids(BatchRefs(table).ids)).cast(schema)


def _kept(table: pa.Table) -> pa.Table:
    """The same as they are in memory."""
    for place, name in enumerate(REFS_SCHEMA.names):
        column = table.column(name)
        if name == "batch_id":
            table = table.set_column(place, name, binary_ids(ids_in(column)))
        elif pa.types.is_dictionary(REFS_SCHEMA.field(name).type):
            table = table.set_column(place, name, column.dictionary_encode())
    return table.cast(REFS_SCHEMA)
