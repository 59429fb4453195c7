"""Batches on their way: what is planned, what is committed, what is reported."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from schemas.ids import canonical_json

COMMIT_VERSION = "commit/2"
_KNOWN_VERSIONS = ("commit/1", COMMIT_VERSION)
"""Records of the first version have their failures in a part of its own."""


@dataclass(frozen=True, slots=True)
class BatchRef:
    """A contiguous run of rows of one row group of one input file, and which attempt at it is due.

    `previous_attempt` is the committed attempt whose retryable failures are tried again; those
    rows alone are worked on. None means that nothing of the batch is committed yet.
    `duplicate_rows` are rows (numbers in the row group) whose id stood in an earlier batch.
    `size` and `mtime_ns` only serve to notice that a local file has changed since it was planned.
    """

    batch_id: str
    uri: str
    generation: str
    row_group: int
    first_row: int
    row_count: int
    attempt: int = 1
    previous_attempt: int | None = None
    duplicate_rows: tuple[int, ...] = ()
    retry_classes: tuple[str, ...] = ()
    size: int = 0
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class PartRef:
    """What an attempt left of one kind: where it is staged, where it will stand, and what is in it.

    Results of a route are a Parquet file. Failures travel with the commit record and have no name of their
    own: `staged` and `final` are empty, size and digest are those of `transforms.commit_file.packed`.
    """

    kind: str  # results | failures
    route: str  # empty for failures
    staged: str
    final: str
    rows: int
    bytes: int
    sha256: str

    @property
    def is_file(self) -> bool:
        """Whether it is a file that is staged and published."""
        return bool(self.final)


@dataclass(frozen=True, slots=True)
class BackendTotals:
    """Calls, tokens and money of one backend on one route in one batch. Amounts are decimal strings.

    `unknown` counts the documents whose price is unknown: they are in none of the amounts. `shared`
    counts those that took the answer to another document's identical request, which cost nothing.
    """

    documents: int = 0
    results: int = 0
    calls: int = 0
    replayed: int = 0
    ambiguous: int = 0
    ambiguous_amount: str = "0"
    input_tokens: int = 0
    output_tokens: int = 0
    amount: str = "0"
    list_amount: str = "0"
    unknown: int = 0
    device_seconds: float = 0.0
    basis: str = "none"
    shared: int = 0


@dataclass(frozen=True, slots=True)
class AmbiguousCall:
    """A call that was sent and whose end is not known: it may have been billed.

    `worst_amount` is the most that it can have cost, a decimal string; None when there is no price.
    `worst_tokens` bounds its tokens.
    """

    batch_id: str
    attempt: int
    row: int
    route: str
    backend: str
    cause: str  # crash | timeout | connection | malformed | cancelled
    worst_amount: str | None
    sent_at: str
    worst_tokens: int = 0


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """The one moment that counts: what a batch's attempt left, and where it stands.

    Counts are of assignments: one (document, route) pair each. `results + failures` equals
    `assignments`, and `rows_in` equals skipped rows plus the distinct rows of the assignments.
    """

    batch_id: str
    attempt: int
    run_id: str
    writer: str
    workload_sha256: str
    committed_at: str
    ref: BatchRef
    rows_in: int
    rows_skipped: int
    assignments: int
    results: int
    failures: int
    retryable: int
    key_sum: str
    parts: tuple[PartRef, ...]
    failures_by_class: dict[str, int] = field(default_factory=dict)
    results_by_route: dict[str, int] = field(default_factory=dict)
    failures_by_route: dict[str, int] = field(default_factory=dict)
    totals: dict[str, dict[str, BackendTotals]] = field(default_factory=dict)  # route → backend
    ambiguous: tuple[AmbiguousCall, ...] = ()
    rehearsal: bool = False
    refused: dict[str, str] = field(default_factory=dict)  # cap → the least that it refused
    version: str = COMMIT_VERSION

    def to_json(self) -> bytes:
        """Canonical JSON bytes."""
        return canonical_json(asdict(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CommitRecord:
        """The record behind parsed JSON; ValueError for another version."""
        if data.get("version") not in _KNOWN_VERSIONS:
            raise ValueError(f"commit record of version {data.get('version')!r}; known: {_KNOWN_VERSIONS}")
        values = dict(data)
        values["ref"] = ref_from_dict(data["ref"])
        values["parts"] = tuple(PartRef(**part) for part in data["parts"])
        values["ambiguous"] = tuple(AmbiguousCall(**call) for call in data["ambiguous"])
        values["totals"] = {
            route: {name: BackendTotals(**totals) for name, totals in backends.items()}
            for route, backends in data["totals"].items()
        }
        return cls(**values)


def ref_from_dict(data: dict[str, Any]) -> BatchRef:
    """A BatchRef from parsed JSON or an Arrow row."""
    values = dict(data)
    for key in ("duplicate_rows", "retry_classes"):
        values[key] = tuple(values.get(key) or ())
    return BatchRef(**values)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What a worker says about a batch when it is through with it. The commit record is the truth.

    `state` is `committed`, `already_committed` or `failed`.
    `error` is a plain sentence for the operator, `record` the winning commit record.
    """

    batch_id: str
    attempt: int
    state: str
    error: str = ""
    record: CommitRecord | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for a line of JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BatchReport:
        """The inverse of `to_dict`."""
        record = data.get("record")
        return cls(**{**data, "record": CommitRecord.from_dict(record) if record else None})
