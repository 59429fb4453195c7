"""The provider batches that have not come back, as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from flows.tables import Row
from flows.words import duration, usd
from transforms.batchmode.standing import OpenBatch

_MEANINGS = {
    "intended": "not submitted yet",
    "refused": "not taken by the provider so far",
    "undecided": "submitted, response lost: looked for",
    "submitted": "submitted",
    "cancelled": "past its deadline, cancelled",
}


def waiting_rows(batches: Sequence[OpenBatch], now: datetime) -> list[Row]:
    """One row for each open batch: what it is, how old, and what is set aside for it."""
    return [
        {
            "provider batch": batch.provider_batch_id or "(none)",
            "backend": batch.backend,
            "state": _MEANINGS[batch.state],
            "requests": batch.requests,
            "submitted at": "" if batch.submitted_at is None else f"{_minute(batch.submitted_at)} UTC",
            "age": duration((now - datetime.fromisoformat(batch.waiting_since)).total_seconds()),
            "set aside": usd(batch.reserved),
        }
        for batch in batches
    ]


def _minute(instant: str) -> str:
    return instant[:16].replace("T", " ")
