"""What the simulation of many workers takes as given: each figure with its source, to be doubted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any

from transforms.call.budget import LARGE_DRAW
from transforms.call.segments import SEAL_S, WINDOW
from transforms.lease import LEASE_S, RENEW_EVERY_S

SEGMENT_ROWS = WINDOW // 2  # ended calls after which a ledger's segment is sealed
BATCH_WRITES = 5  # claim, part, commit record, published name, and the staged part's deletion
REFUSED_S = 20.0  # a worker at the cap keeps asking for so long, then its documents fail


def _given(value: Any, unit: str, what: str, source: str) -> Any:
    return field(default=value, metadata={"unit": unit, "what": what, "source": source})


@dataclass(frozen=True, slots=True)
class Costs:
    """Times in seconds, rates a second. The metadata of each field say what it is and where it comes from."""

    cpu_s: float = _given(
        0.00024, "s", "CPU of a document", "measured: make bench-calls, 256 in flight at 50 ms (ADR 016)"
    )
    upload_cpu_s: float = _given(
        0.0024, "s", "CPU of a request to the store", "measured: python -m infra.bench.scale.upload"
    )
    latency_s: float = _given(1.0, "s", "a provider's answer", "assumed; a case takes 0.05 s")
    in_flight: int = _given(256, "", "calls of a worker at a time", "a setting: limits.max_in_flight")
    batch_rows: int = _given(4096, "", "documents of a batch", "default of limits.batch_rows")
    segment_rows: int = _given(
        SEGMENT_ROWS,
        "",
        "ended calls that a ledger's segment holds",
        f"the code: or {SEAL_S:.0f} s (ADR 018)",
    )
    write_s: float = _given(
        0.05, "s", "an operation of the store, median", "assumed (ADR 018: tens of ms); a case takes 0.25 s"
    )
    spread: float = _given(
        0.69,
        "",
        "its spread (sigma of its logarithm)",
        "assumed: one in a hundred takes five times the median",
    )
    record_s: float = _given(
        1.0, "s", "between two changes of one object", "published: cloud.google.com/storage/quotas"
    )
    bucket_writes: float = _given(
        1000.0,
        "/s",
        "writes that a bucket takes at first",
        "published: cloud.google.com/storage/docs/request-rate",
    )
    bucket_doubles_s: float = _given(
        1200.0, "s", "until it takes twice as many", "published there: double no faster than every 20 minutes"
    )
    renew_s: float = _given(RENEW_EVERY_S, "s", "between renewals of a worker's lease", "the code (ADR 018)")
    provider_rps: float = _given(
        float("inf"), "/s", "calls that the provider allows", "no limit; a case has one"
    )
    preempted_per_hour: float = _given(0.0, "/h", "preemptions of a worker", "assumed; cases take 0.1 and 1")
    takeover_s: float = _given(LEASE_S, "s", "until a lost worker's lease has ended", "the code (ADR 018)")
    restart_s: float = _given(120.0, "s", "until another machine works in its place", "assumed")
    largest_draw: int = _given(LARGE_DRAW, "", "worst cases that a draw takes at most", "the code (ADR 020)")
    cap: float = _given(
        2.0, "", "the cap, in what all workers would spend unhindered", "a choice; cases take 0.9 and none"
    )
    parts: int | None = _given(
        None, "", "records that the cap is in", "the code: one for up to 100 workers (ADR 026)"
    )
    batches_at_once: int | None = _given(
        None, "", "batches after which unused leave is given back", "none: at the end; a case takes 16"
    )

    @property
    def row_s(self) -> float:
        """Time of a document on an unhindered worker: its CPU, or its part of what is in flight."""
        requests = (self.batch_rows / self.segment_rows + BATCH_WRITES) / self.batch_rows
        return max(self.cpu_s + requests * self.upload_cpu_s, self.latency_s / self.in_flight)


def described(costs: Costs) -> Iterator[str]:
    """A line for each input: its value, what it is, where it comes from."""
    for given in fields(costs):
        yield _line(given, getattr(costs, given.name))


def _line(given: Field[Any], value: Any) -> str:
    shown = (
        "by itself"
        if value is None
        else "none"
        if value == float("inf")
        else f"{value:,} {given.metadata['unit']}"
    )
    return f"  {shown:>14}  {given.metadata['what']}  [{given.metadata['source']}]"
