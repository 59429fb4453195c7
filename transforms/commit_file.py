"""What a commit record looks like in storage: lines of JSON, the record and the failures that it leaves.

::

    commits/<batch>.<attempt>.json    the record; with failures a second line: {"failures": "<base64>"}

The failures are an Arrow IPC stream of `FAILURES_SCHEMA`, compressed with zstd. They are committed by the
creation of the record, so they need no object of their own that would have to be staged and published.
"""

from __future__ import annotations

import base64
import json

import pyarrow as pa

from schemas.arrow import FAILURES_SCHEMA
from schemas.batches import CommitRecord

_BARE = pa.schema(FAILURES_SCHEMA).remove_metadata()
_FIELD = "failures"


def packed(failures: pa.Table) -> bytes:
    """Rows of `FAILURES_SCHEMA` as they travel with a record; nothing for none."""
    if not failures.num_rows:
        return b""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream, pa.ipc.new_stream(stream, _BARE) as writer:
        writer.write_table(failures.cast(_BARE))
    return sink.getvalue().to_pybytes()


def unpacked(data: bytes) -> pa.Table:
    """The rows behind `packed`."""
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        return pa.ipc.open_stream(stream).read_all().cast(FAILURES_SCHEMA)


def commit_bytes(record: CommitRecord, failures: bytes) -> bytes:
    """A record and its packed failures as one object."""
    if not failures:
        return record.to_json()
    tail = json.dumps({_FIELD: base64.b64encode(failures).decode("ascii")})
    return record.to_json() + b"\n" + tail.encode("ascii")


def parse_commit(data: bytes) -> tuple[CommitRecord, bytes]:
    """The record of an object, and what is behind it, which only `packed_in` understands."""
    head, _, tail = data.partition(b"\n")
    return CommitRecord.from_dict(json.loads(head)), tail


def packed_in(tail: bytes) -> bytes:
    """The packed failures behind a record."""
    return base64.b64decode(json.loads(tail)[_FIELD], validate=True) if tail else b""
