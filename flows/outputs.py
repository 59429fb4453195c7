"""What an output folder says about itself: where its run stands, and its failures. Reads only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from flows.asked import Asked, open_question
from flows.parameters import LAUNCH_FILE, EnrichParameters
from schemas.errors import OutputError
from schemas.run import Manifest
from transforms.batchmode.standing import OpenBatch, open_batches
from transforms.commit_index import read_index
from transforms.failures import failures_left
from transforms.layout import run_path
from transforms.output import read_manifest, read_marker
from transforms.output_lock import is_locked
from transforms.plan_file import read_plan
from transforms.side_by_side import side_by_side
from transforms.store import Store, open_store

_FAILURE_COLUMNS = ("document_id", "error_class", "message", "retryable", "answer", "cost", "lineage")
_ROWS_AT_ONCE = 1024

StatusState = Literal["running", "waiting", "interrupted", "complete", "incomplete", "empty"]


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A run without a manifest: it is at work, waits for a person, or was interrupted.

    Counts are of its own plan.
    """

    run_id: str
    batches: int
    batches_committed: int
    rows: int
    rows_committed: int


@dataclass(frozen=True, slots=True)
class Status:
    """Where an output stands. `manifest` is the newest there is, `live` a newer run without one.

    `provider_batches` are those that have not been collected, `asked` is what a run waits for that has
    asked a person.
    """

    output: str
    state: StatusState
    rehearsal: bool
    live: LiveRun | None
    manifest: Manifest | None
    provider_batches: tuple[OpenBatch, ...] = ()
    asked: Asked | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        live = self.live
        return {
            "output": self.output,
            "state": self.state,
            "rehearsal": self.rehearsal,
            "live": None if live is None else {name: getattr(live, name) for name in LiveRun.__slots__},
            "manifest": None if self.manifest is None else self.manifest.to_dict(),
            "provider_batches": [batch.to_dict() for batch in self.provider_batches],
            "asked": None if self.asked is None else asdict(self.asked),
        }


def read_status(output: str) -> Status:
    """Where an output stands, from its files alone.

    Raises:
        OutputError: there is no output of ours.
    """
    marker = read_marker(output)
    store = open_store(output)
    manifest = read_manifest(output)
    live = _live_run(store, manifest)
    newest = live.run_id if live is not None else "" if manifest is None else manifest.run_id
    asked = open_question(store, newest) if newest else None
    state, batches = _state(store, manifest, live, asked), tuple(open_batches(store))
    return Status(output, state, bool(marker["rehearsal"]), live, manifest, batches, asked)


def _state(store: Store, manifest: Manifest | None, live: LiveRun | None, asked: Asked | None) -> StatusState:
    if is_locked(store):
        return "running"
    if asked is not None:
        return "waiting"
    if live is not None:
        return "interrupted"
    return manifest.state if manifest is not None else "empty"


def _live_run(store: Store, manifest: Manifest | None) -> LiveRun | None:
    """The newest run, if it has no manifest (run ids sort by time)."""
    runs = {path.split("/")[1] for path in store.list("runs") if path.endswith("/plan.parquet")}
    newest = max(runs, default=None)
    if newest is None or (manifest is not None and manifest.run_id >= newest):
        return None
    refs, _ = read_plan(store, run_path(newest, "plan.parquet"))
    commits = read_index(store).committed
    is_committed = commits.attempts_of(refs.ids) >= refs.attempts
    return LiveRun(
        run_id=newest,
        batches=len(refs),
        batches_committed=int(is_committed.sum()),
        rows=int(refs.row_counts.sum()),
        rows_committed=int(refs.row_counts[is_committed].sum()),
    )


def read_failures(
    output: str, *, classes: Sequence[str] = (), limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """The failures as they now stand, one after the other; never more than a few in memory.

    Only the newest committed attempt of a batch counts. `classes` keeps those failure classes alone.

    Raises:
        OutputError: there is no output of ours.
    """
    read_marker(output)
    store = open_store(output)
    left = limit
    for table in _failures(store):
        for row in _rows(table):
            if classes and row["error_class"] not in classes:
                continue
            if left is not None:
                if left <= 0:
                    return
                left -= 1
            yield row


def _failures(store: Store) -> Iterator[pa.Table]:
    """What the newest attempts left, batch by batch."""
    committed = read_index(store).committed
    standings = (committed.standing(int(row)) for row in committed.rows_with_failures())
    return side_by_side(store, lambda one: failures_left(store, one.batch_id, one.attempt), standings)


def _rows(failures: pa.Table) -> Iterator[dict[str, Any]]:
    for piece in failures.select(list(_FAILURE_COLUMNS)).to_batches(_ROWS_AT_ONCE):
        for row in piece.to_pylist():
            yield _flat(row)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A failure as plain values for a line of JSON. Money stays a decimal string."""
    lineage, cost = row["lineage"], row["cost"]
    amount = cost["amount"]
    return {
        "document_id": row["document_id"],
        "error_class": row["error_class"],
        "message": row["message"],
        "retryable": row["retryable"],
        "answer": row["answer"],
        "route": lineage["route"],
        "amount": None if amount is None else format(amount, "f"),
        "basis": cost["basis"],
        "calls": cost["calls"],
        "attempt": lineage["attempt"],
        "batch_id": lineage["batch_id"],
        "uri": lineage["source"]["uri"],
        "row_group": lineage["source"]["row_group"],
        "row": lineage["source"]["row"],
    }


def launched_with(output: str, run_id: str | None = None) -> EnrichParameters:
    """What a run over an output was started with; by default the newest.

    Raises:
        OutputError: there is no output of ours, no (such) run has noted it, or its workload file is gone.
    """
    read_marker(output)
    store = open_store(output)
    noted = [path for path in store.list("runs") if path.endswith(f"/{LAUNCH_FILE}")]
    if run_id is not None:
        noted = [path for path in noted if path == run_path(run_id, LAUNCH_FILE)]
    if not noted:
        which = "no run" if run_id is None else f"no run {run_id}"
        raise OutputError(
            f"{output}: {which} has noted what it was started with. Give the workload file instead"
        )
    parameters = EnrichParameters.model_validate_json(store.read(max(noted)))
    parameters = parameters.model_copy(update={"approved_by": "", "reason": ""})  # of that run alone
    if not Path(parameters.workload).exists():
        raise OutputError(
            f"{output}: its workload file {parameters.workload} is no longer there. "
            "Give the workload file instead"
        )
    return parameters
