"""The failures that an attempt left, from where they are committed."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import FAILURES_SCHEMA
from schemas.batches import PartRef
from schemas.errors import StoreError
from transforms.commit_file import packed_in, parse_commit, unpacked
from transforms.layout import commit_path
from transforms.store import Store


def failures_left(store: Store, batch_id: str, attempt: int) -> pa.Table:
    """The failures that stand after an attempt, rows of `FAILURES_SCHEMA`.

    Raises:
        StoreError: it is not committed, or its failures are not what was committed.
    """
    path = commit_path(batch_id, attempt)
    try:
        record, tail = parse_commit(store.read(path))
    except FileNotFoundError:
        raise StoreError(
            f"{store.root}/{path} was committed and is not there. Someone deleted it; restore it, or use a "
            "new output folder"
        ) from None
    part = next((part for part in record.parts if part.kind == "failures"), None)
    if part is None:
        return FAILURES_SCHEMA.empty_table()
    return _in_a_file(store, part) if part.is_file else _behind(f"{store.root}/{path}", part, tail)


def _behind(place: str, part: PartRef, tail: bytes) -> pa.Table:
    try:
        data = packed_in(tail)
    except (ValueError, KeyError, TypeError):
        data = b""
    digest = hashlib.sha256(data).hexdigest()
    if (len(data), digest) != (part.bytes, part.sha256):
        raise StoreError(
            f"{place}: its failures have {len(data)} bytes, SHA-256 {digest}; committed were "
            f"{part.bytes}, {part.sha256}. Someone changed it; restore it, or use a new output folder"
        )
    return unpacked(data)


def _in_a_file(store: Store, part: PartRef) -> pa.Table:
    """Of a record of the first version, whose failures are a part like results, published or staged."""
    path = part.final if store.exists(part.final) else part.staged
    try:
        with store.open(path) as stream:
            return pq.read_table(stream, schema=FAILURES_SCHEMA)
    except FileNotFoundError:
        raise StoreError(
            f"{store.root}/{part.final} was committed and is not there. Someone deleted it; restore it, or "
            "use a new output folder"
        ) from None
