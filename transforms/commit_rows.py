"""Commit records as rows of an Arrow table: what planning, budgets and sums need of them, and no more."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import fields
from decimal import Decimal
from typing import Any

import pyarrow as pa

from schemas.arrow import COMMITS_SCHEMA
from schemas.batches import BackendTotals, CommitRecord

DIGEST_BYTES = 16
_MONEY = frozenset({"ambiguous_amount", "amount", "list_amount"})
_TOTALS = tuple(field.name for field in fields(BackendTotals))
_AMBIGUOUS = ("row", "route", "backend", "cause", "worst_amount", "sent_at", "worst_tokens")
_PLAIN = ("attempt", "run_id", "rows_in", "rows_skipped", "assignments", "results", "failures", "rehearsal")
_BY_NAME = ("failures_by_class", "results_by_route", "failures_by_route", "refused")


def commit_rows(records: Iterable[CommitRecord]) -> pa.Table:
    """Records as a table of `COMMITS_SCHEMA`, a row each, in their order."""
    return pa.Table.from_pylist([_row(record) for record in records], schema=COMMITS_SCHEMA)


def _row(record: CommitRecord) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(record, name) for name in _PLAIN}
    row.update({name: sorted(getattr(record, name).items()) for name in _BY_NAME})
    row["batch_id"] = bytes.fromhex(record.batch_id)
    row["record_digest"] = record_digest(record.to_json())
    row["uri"], row["generation"] = record.ref.uri, record.ref.generation
    row["duplicate_rows"] = record.ref.duplicate_rows
    row["totals"] = [
        {"route": route, "backend": backend, **_totals(totals)}
        for route, backends in sorted(record.totals.items())
        for backend, totals in sorted(backends.items())
    ]
    row["ambiguous"] = [{name: getattr(call, name) for name in _AMBIGUOUS} for call in record.ambiguous]
    return row


def _totals(totals: BackendTotals) -> dict[str, Any]:
    values = {name: getattr(totals, name) for name in _TOTALS}
    return {name: Decimal(value) if name in _MONEY else value for name, value in values.items()}


def record_digest(data: bytes) -> bytes:
    """What tells a record's bytes from any other's: the first half of their SHA-256."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]
