"""Commit records of batches that left failures, and these."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pyarrow as pa

from schemas.arrow import FAILURES_SCHEMA
from schemas.batches import PartRef
from tests.support.records import REF, commit_record
from transforms.commit import Draft
from transforms.commit_file import packed


def batch(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def rows_of(number: int, attempt: int, rows: int) -> pa.Table:
    """So many failures of a batch."""
    lineage = {"batch_id": batch(number), "attempt": attempt, "route": "ask"}
    one = {"document_id": "d", "error_class": "timeout", "message": "why", "retryable": True}
    table = pa.Table.from_pylist([{**one, "lineage": lineage}], schema=FAILURES_SCHEMA)
    if rows == 1:
        return table
    ids = pa.array([f"{number}.{attempt}.{row}" for row in range(rows)], pa.string())
    return table.take(pa.array([0] * rows, pa.int64())).set_column(0, FAILURES_SCHEMA.field(0), ids)


def draft(number: int, attempt: int, rows: int) -> Draft:
    return draft_of(number, attempt, rows_of(number, attempt, rows))


def draft_of(number: int, attempt: int, failures: pa.Table) -> Draft:
    rows, data = len(failures), packed(failures)
    part = PartRef("failures", "", "", "", rows, len(data), hashlib.sha256(data).hexdigest())
    record = commit_record(
        batch_id=batch(number),
        attempt=attempt,
        ref=replace(REF, batch_id=batch(number), attempt=attempt),
        parts=(part,) if rows else (),
        failures=rows,
        failures_by_class={"timeout": rows} if rows else {},
    )
    return Draft(record, data)
