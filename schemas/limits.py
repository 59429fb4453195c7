"""The sizes, times and concurrency that a run keeps to."""

from __future__ import annotations

from pydantic import Field

from schemas.sections import Section

MEBIBYTE = 1 << 20


class Limits(Section):
    """Sizes, times and concurrency."""

    batch_rows: int = Field(4096, ge=1, le=1_000_000, description="rows of a batch at most")
    batch_bytes: int = Field(32 * MEBIBYTE, ge=1024, description="uncompressed bytes of the columns read")
    reader_bytes: int = Field(
        1024 * MEBIBYTE,
        ge=256 * MEBIBYTE,
        description="memory of a process that decodes input files; a batch is a fourth of it at most",
    )
    max_in_flight: int = Field(256, ge=1, le=16384, description="calls at a time of the whole run")
    max_calls: int = Field(
        6,
        ge=1,
        le=100,
        description="calls for a document and backend at most; on a chain's last backend 429s don't count",
    )
    request_timeout_s: float = Field(60.0, gt=0, le=3600, description="for one call, from sending to the end")
    document_deadline_s: float = Field(
        600.0, gt=0, le=86400, description="for all calls of a document on a route"
    )
    batch_deadline_h: float = Field(
        24.0,
        gt=0,
        le=168,
        description='of backends with mode = "batch": what no provider batch has answered by then goes out '
        "one by one, at full price",
    )
    share_identical: bool = Field(
        True,
        description="identical requests to a backend are paid once and all get the same answer; false asks "
        "(and pays) for each, for independent samples",
    )
    groups: int | None = Field(None, ge=1, le=500, description="task runs; default: by number of batches")
    parallel_groups: int = Field(1, ge=1, le=64, description="Beam processes at a time")
