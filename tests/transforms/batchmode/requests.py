"""Held requests for tests."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from transforms.call.ports import HeldRequest


def held(row: int, backend: str = "mini", sha256: str | None = None, **changes: Any) -> HeldRequest:
    """The request of a row on route `r`, with a body and a worst case of 0.5."""
    values: dict[str, Any] = {
        "row": row,
        "route": "r",
        "document_id": f"d{row}",
        "backend": backend,
        "request_sha256": sha256 or f"{row:064x}",
        "worst": Decimal("0.5"),
        "worst_tokens": 700,
        "body": b'{"prompt":"prompt of %04d"}' % row,
    }
    return HeldRequest(**{**values, **changes})
