"""One run: what its workers are told, what they say on the way, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from schemas.batches import AmbiguousCall, BackendTotals
from schemas.ids import canonical_json

CODE_VERSION = "0.1.0"
MANIFEST_VERSION = "manifest/1"
State = Literal["complete", "incomplete"]


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a worker must know of its run, besides the workload. Carries no secret.

    `output` is the absolute output folder or URI, `max_in_flight` this process's share of the run's
    limit on calls at a time, `processes` how many of them work at a time, and `workers` how many there may
    be on all machines, as far as the engine's flags say. `budget_amount`, a decimal string, is a cap that was
    approved for this run instead of the workload's. `skip_routes` send nothing in this run, `reroute` gives
    routes another backend instead of their chain (see `schemas.changes`), and with `only_batches` (beginnings
    of batch ids) it leaves all other batches alone. `approvals` say who decided what, and why. With a
    `secret_project` workers look keys that their environment lacks up in that Google Cloud project's Secret
    Manager. `lengths` says of each embedder's backend how long its texts are, as
    `schemas.lengths.TextLengths` has it.
    """

    run_id: str
    output: str
    workload_sha256: str
    rehearsal: bool
    max_in_flight: int
    code_version: str = CODE_VERSION
    budget_amount: str | None = None
    skip_routes: Sequence[str] = ()
    reroute: Mapping[str, str] = field(default_factory=dict)
    only_batches: Sequence[str] = ()
    approvals: Sequence[Mapping[str, str]] = ()
    secret_project: str | None = None
    processes: int = 1
    workers: int = 1
    lengths: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What JSON makes of tuples is taken as well."""
        for name in ("skip_routes", "only_batches", "approvals"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a worker process is, cumulatively since it started; sent about twice a second.

    `documents` are finished assignments (results and failures), `amount` is a decimal string.
    `soft_passed` says that the run has spent what it should warn at.
    """

    group: int
    documents: int
    batches: int
    calls: int
    amount: str
    soft_passed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As plain values for a line of JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failures of one class, with a few document ids to look at."""

    error_class: str
    count: int
    retryable: bool
    meaning: str
    remedy: str
    example_ids: tuple[str, ...]
    example_message: str


@dataclass(frozen=True, slots=True)
class FailedBatch:
    """A batch of which nothing is committed, and why in a plain sentence."""

    batch_id: str
    uri: str
    row_group: int
    first_row: int
    row_count: int
    error: str


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What a run's embedder did with the devices, summed over the processes that ended by themselves.

    `slots` is what the steps had room for, `device_seconds` what they took. Idle is device time without a
    step between a process's first and last one; `warm_up_seconds` is what texts waited for compilation.
    `late_programs` were compiled after a process's first step, `steady_programs` of them so late that it
    is worth asking why.
    """

    texts: int = 0
    tokens: int = 0
    slots: int = 0
    steps: int = 0
    device_seconds: float = 0.0
    idle_seconds: float = 0.0
    warm_up_seconds: float = 0.0
    programs: int = 0
    late_programs: int = 0
    steady_programs: int = 0

    @property
    def padding_share(self) -> float:
        """Share of the slots that held no token."""
        return 1 - self.tokens / self.slots if self.slots else 0.0

    @property
    def idle_share(self) -> float:
        """Share of the time from the first step to the last in which a device had none."""
        whole = self.device_seconds + self.idle_seconds
        return self.idle_seconds / whole if whole else 0.0

    def plus(self, other: DeviceUse, sign: int = 1) -> DeviceUse:
        """The sum of both, or with `sign=-1` the difference."""
        theirs = asdict(other)
        return DeviceUse(**{name: value + sign * theirs[name] for name, value in asdict(self).items()})


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run left behind, over everything committed in the output; written last.

    `state` is `complete` when every row is a result, a final failure or skipped; else `incomplete`,
    with `reason` saying in one sentence what is left and what to do. `reason_class` is `failures`,
    `batches` or `budget`. `failed_batches` names the first 1,000 batches that were not finished, of
    `failed_batches_count`; where there are more, the output has a Parquet file with a row for each,
    `failed_batches_file`. Amounts are decimal strings. `budget_soft_passed` says that what was spent, at
    list price and with calls of unknown end at their worst, has reached `budget_soft_amount`. `approvals`
    say what people decided for this run: `what`, `by`, `reason`, `up_to` in USD, `at`.
    """

    run_id: str
    workload: str
    workload_sha256: str
    rehearsal: bool
    state: State
    reason: str
    reason_class: str
    started_at: str
    ended_at: str
    input_files: int
    skipped_files: tuple[str, ...]
    rows_in: int
    rows_skipped: int
    assignments: int
    results: int
    failures: int
    retryable: int
    batches: int
    batches_committed: int
    batches_committed_by_this_run: int
    calls_by_this_run: int
    results_by_route: dict[str, int]
    failures_by_route: dict[str, int]
    failure_groups: tuple[FailureGroup, ...]
    failed_batches: tuple[FailedBatch, ...]
    totals: dict[str, dict[str, BackendTotals]]  # route → backend
    amount: str
    list_amount: str
    unknown_prices: int
    budget_amount: str | None
    ambiguous: tuple[AmbiguousCall, ...] = ()
    budget_soft_amount: str | None = None
    budget_soft_passed: bool = False
    approvals: tuple[Mapping[str, str], ...] = ()
    devices: dict[str, DeviceUse] = field(default_factory=dict)  # embed route → what this run did
    failed_batches_count: int = 0
    failed_batches_file: str = ""
    version: str = MANIFEST_VERSION
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Manifests of earlier versions name every batch and have no count."""
        object.__setattr__(
            self, "failed_batches_count", max(self.failed_batches_count, len(self.failed_batches))
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)

    def to_json(self) -> bytes:
        """Canonical JSON bytes."""
        return canonical_json(asdict(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Manifest:
        """The manifest behind parsed JSON; ValueError for another version."""
        if data.get("version") != MANIFEST_VERSION:
            raise ValueError(f"manifest of version {data.get('version')!r}; known: {MANIFEST_VERSION!r}")
        values = dict(data)
        values["failure_groups"] = tuple(
            FailureGroup(**{**g, "example_ids": tuple(g["example_ids"])}) for g in data["failure_groups"]
        )
        values["failed_batches"] = tuple(FailedBatch(**b) for b in data["failed_batches"])
        values["ambiguous"] = tuple(AmbiguousCall(**a) for a in data["ambiguous"])
        values["approvals"] = tuple(data.get("approvals", ()))
        values["skipped_files"] = tuple(data["skipped_files"])
        values["devices"] = {route: DeviceUse(**use) for route, use in data.get("devices", {}).items()}
        values["totals"] = {
            route: {name: BackendTotals(**t) for name, t in backends.items()}
            for route, backends in data["totals"].items()
        }
        return cls(**values)
