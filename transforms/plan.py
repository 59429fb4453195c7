"""The plan: which batches there are, which are done, and which this run works on.

Planning never pays for anything. It reads footers (and, to find repeated ids, the id column),
finishes what a killed run had committed but not published, adds up what was spent so far, and
freezes what is due as `runs/<run_id>/plan.parquet`, which the workers read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import PLAN_SCHEMA
from schemas.batches import BatchRef, ref_from_dict
from schemas.errors import InputError, OutputError
from schemas.failures import FailureClass, is_retryable
from schemas.ids import batch_id
from schemas.load import LoadedWorkload
from schemas.run import RunContext
from schemas.workload import Limits
from transforms.batchmode.tickets import batches_waiting
from transforms.commit import recover
from transforms.commit_index import CommitIndex, no_commits, read_index
from transforms.committed import Committed, Standing
from transforms.duplicates import IdRun, find_duplicates
from transforms.expressions import compile_condition
from transforms.files import find_input, refuse_own_results
from transforms.input_files import InputFile, InputFiles
from transforms.layout import run_path
from transforms.spend import start_caps
from transforms.store import Store, open_store

INPUT_SCHEMA_KEY = b"switchgear.input_schema"
WORKLOAD_FILE = "workload.toml"
RETRYABLE_CLASSES = frozenset(name.value for name in FailureClass if is_retryable(name))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run has to do. `refs` are the batches that are due, in input order.

    `rows_due` counts rows of batches that are new and failures that are tried again. `rows_beyond` are
    failures that are left as they are, because what the caps have left is less than any of them needs.
    `batches_left_out` were due too, and the run was told to leave them alone.
    """

    run_id: str
    refs: tuple[BatchRef, ...]
    rows_due: int
    rows_total: int
    batches_total: int
    batches_committed: int
    files: int
    skipped_files: tuple[str, ...]
    plan_uri: str
    rows_beyond: int = 0
    batches_left_out: int = 0


def plan_run(loaded: LoadedWorkload, run: RunContext, *, retry_classes: Sequence[str] = ()) -> Plan:
    """Plan a run over an output that is locked by this process (`transforms.output.open_output`).

    `retry_classes` are failure classes that are tried again besides the retryable ones.

    Raises:
        InputError: see `transforms.files.find_input` and `refuse_own_results`.
        OutputError: an input file was replaced since its documents were answered.
    """
    store = open_store(run.output)
    recover(store)
    work = only_batches(find_due(loaded, store, retry_classes), run.only_batches)
    work = mark_duplicates(loaded, work)
    found, commits, due, every = work.found, work.commits, work.refs, work.every
    left = start_caps(loaded.workload, store, work.index, run.run_id, datetime.now(UTC))
    beyond = [ref for ref in due if work.is_beyond(ref, left)]
    due = tuple(ref for ref in due if not work.is_beyond(ref, left))
    plan_uri = run_path(run.run_id, "plan.parquet")
    store.create(plan_uri, plan_bytes(due, found.schema))
    store.create(run_path(run.run_id, WORKLOAD_FILE), loaded.source)
    return Plan(
        run_id=run.run_id,
        refs=due,
        rows_due=sum(work.rows(ref) for ref in due),
        rows_total=found.files.rows,
        batches_total=len(every),
        batches_committed=sum(ref.batch_id in commits for ref in every),
        files=len(found.files),
        skipped_files=found.skipped,
        plan_uri=plan_uri,
        rows_beyond=sum(work.rows(ref) for ref in beyond),
        batches_left_out=work.left_out,
    )


@dataclass(frozen=True, slots=True)
class DueWork:
    """What there is to do, before anything is written: all batches, those that are due, what is committed.

    `index` has all commits, `left_out` is how many batches are due and not to be worked on.
    """

    found: InputFiles
    index: CommitIndex
    every: tuple[BatchRef, ...]
    refs: tuple[BatchRef, ...]
    retry_classes: tuple[str, ...]
    left_out: int = 0

    @property
    def commits(self) -> Committed:
        """How every batch stands of which anything is committed."""
        return self.index.committed

    def rows(self, ref: BatchRef) -> int:
        """Rows of a batch that is due: all of a new one, else the failures that are tried again."""
        return _rows_due(ref, self.commits, self.retry_classes)

    def is_beyond(self, ref: BatchRef, left: Mapping[str, Decimal]) -> bool:
        """Whether all that is left of a batch was refused by caps that have too little left for any of it.

        Trying again would refuse it again, and write the same failures once more.
        """
        standing = self.commits.get(ref.batch_id)
        if standing is None or not standing.refused:
            return False
        refused = standing.failures_by_class.get(FailureClass.BUDGET_EXHAUSTED.value, 0)
        if refused != _failures_to_retry(standing, self.retry_classes):
            return False
        return all(cap in left and left[cap] < Decimal(need) for cap, need in standing.refused.items())


def find_due(loaded: LoadedWorkload, store: Store | None, retry_classes: Sequence[str] = ()) -> DueWork:
    """Find what is due in an output, writing nothing; without a store, as for an empty output.

    Repeated ids are not looked for yet: see `mark_duplicates`.

    Raises:
        InputError: see `transforms.files.find_input` and `refuse_own_results`.
        OutputError: an input file was replaced since its documents were answered.
    """
    found = find_input(loaded.input_uri, loaded.workload.input)
    refuse_own_results(found, loaded.output_uri)
    index = no_commits() if store is None else read_index(store)
    commits = index.committed
    _refuse_changed_input(found, commits)
    every = [ref for file in found.files for ref in cut_batches(file, loaded.workload.limits)]
    due = [ref for ref in (_due(ref, commits.get(ref.batch_id), retry_classes) for ref in every) if ref]
    if store is not None:
        waiting = batches_waiting(store)
        due = [ref for ref in due if not _only_waits(commits.get(ref.batch_id), waiting, retry_classes)]
    return DueWork(found, index, tuple(every), tuple(due), tuple(retry_classes))


def only_batches(work: DueWork, wanted: Sequence[str]) -> DueWork:
    """The work on the batches whose ids begin with one of `wanted`; all of it when that is empty.

    Raises:
        InputError: one of them is no batch of the input.
    """
    if not wanted:
        return work
    for beginning in wanted:
        if not any(ref.batch_id.startswith(beginning) for ref in work.every):
            raise InputError(
                f"batch {beginning!r}: the input has no such batch. Give the beginning of a batch id as the "
                "batch table or `switchgear failures OUTPUT --json` shows it"
            )
    refs = tuple(ref for ref in work.refs if ref.batch_id.startswith(tuple(wanted)))
    return replace(work, refs=refs, left_out=len(work.refs) - len(refs))


def mark_duplicates(loaded: LoadedWorkload, work: DueWork) -> DueWork:
    """Note in each new batch the rows whose id stood before, if ids must be unique in the whole input."""
    if loaded.workload.input.unique_ids != "run":
        return work
    refs = _mark_duplicates(loaded, work.found.schema, work.every, work.refs, work.commits)
    return replace(work, refs=tuple(refs))


def cut_batches(file: InputFile, limits: Limits) -> Iterator[BatchRef]:
    """Cut a file into batches: by rows, and by the bytes that its footer promises."""
    for group in file.row_groups:
        rows = limits.batch_rows
        if group.rows and group.bytes:
            rows = min(rows, max(1, limits.batch_bytes * group.rows // group.bytes))
        for first in range(0, group.rows, rows):
            count = min(rows, group.rows - first)
            yield BatchRef(
                batch_id=batch_id(file.uri, file.generation, group.index, first, count),
                uri=file.uri,
                generation=file.generation,
                row_group=group.index,
                first_row=first,
                row_count=count,
                size=file.size,
                mtime_ns=file.mtime_ns,
            )


def _due(ref: BatchRef, standing: Standing | None, retry_classes: Sequence[str]) -> BatchRef | None:
    """The attempt that is due for a batch; None if nothing is."""
    if standing is None:
        return ref
    if not _failures_to_retry(standing, retry_classes):
        return None
    return replace(
        ref,
        attempt=standing.attempt + 1,
        previous_attempt=standing.attempt,
        duplicate_rows=standing.duplicate_rows,
        retry_classes=tuple(sorted(set(retry_classes))),
    )


def _only_waits(standing: Standing | None, waiting: Set[str], retry_classes: Sequence[str]) -> bool:
    """Whether all that a batch has left to try again is in provider batches that have not come back."""
    if standing is None or standing.batch_id not in waiting:
        return False
    awaiting = standing.failures_by_class.get(FailureClass.AWAITING_BATCH.value, 0)
    return _failures_to_retry(standing, retry_classes) == awaiting


def _failures_to_retry(standing: Standing, retry_classes: Sequence[str]) -> int:
    return standing.failures_in(RETRYABLE_CLASSES.union(retry_classes))


def _rows_due(ref: BatchRef, commits: Committed, retry_classes: Sequence[str]) -> int:
    standing = commits.get(ref.batch_id)
    return ref.row_count if standing is None else _failures_to_retry(standing, retry_classes)


def _refuse_changed_input(found: InputFiles, commits: Committed) -> None:
    """Results of two versions of one file must not stand side by side."""
    generations = {file.uri: file.generation for file in found.files}
    for answered in commits.files():
        now = generations.get(answered.uri, answered.generation)
        if now != answered.generation:
            raise OutputError(
                f"input {answered.uri} was replaced after run {answered.run_id} had answered documents of it "
                f"(content {answered.generation} then, {now} now). Restore the file, or give a new output "
                "folder: results of both versions would stand side by side"
            )


def _mark_duplicates(
    loaded: LoadedWorkload,
    schema: pa.Schema,
    every: Sequence[BatchRef],
    due: Sequence[BatchRef],
    commits: Committed,
) -> list[BatchRef]:
    """Note in each new batch the rows whose id stood before; committed rows come first."""
    if all(ref.batch_id in commits for ref in due):
        return list(due)
    settings = loaded.workload.input
    row_filter = compile_condition("input.filter", settings.filter) if settings.filter else None
    duplicates = find_duplicates(_id_runs(every, commits), schema, settings.id, row_filter)
    return [
        ref
        if ref.batch_id in commits
        else replace(ref, duplicate_rows=_rows_inside(ref, duplicates.get((ref.uri, ref.row_group), set())))
        for ref in due
    ]


def _id_runs(every: Sequence[BatchRef], commits: Committed) -> list[IdRun]:
    """The row groups in input order, with what is committed of them."""
    groups: dict[tuple[str, int], list[BatchRef]] = defaultdict(list)
    for ref in every:
        groups[ref.uri, ref.row_group].append(ref)
    runs = []
    for (uri, row_group), refs in groups.items():
        done = [ref for ref in refs if ref.batch_id in commits]
        ranges = tuple((ref.first_row, ref.first_row + ref.row_count) for ref in done)
        standings = (commits.get(ref.batch_id) for ref in done)
        known = frozenset(row for standing in standings if standing for row in standing.duplicate_rows)
        runs.append(IdRun(uri, row_group, ranges, known))
    return runs


def _rows_inside(ref: BatchRef, rows: set[int]) -> tuple[int, ...]:
    return tuple(sorted(r for r in rows if ref.first_row <= r < ref.first_row + ref.row_count))


def plan_bytes(refs: Sequence[BatchRef], input_schema: pa.Schema) -> bytes:
    """The plan as a Parquet file, with the schema that workers read the input as."""
    metadata = dict(PLAN_SCHEMA.metadata)
    metadata[INPUT_SCHEMA_KEY] = input_schema.serialize().to_pybytes().hex().encode()
    table = pa.Table.from_pylist([asdict(ref) for ref in refs], schema=PLAN_SCHEMA.with_metadata(metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_plan(store: Store, plan_uri: str) -> tuple[list[BatchRef], pa.Schema]:
    """The batches of a frozen plan, and the schema that their columns are read as."""
    with store.open(plan_uri) as stream:
        table = pq.read_table(stream)
    encoded = bytes.fromhex(table.schema.metadata[INPUT_SCHEMA_KEY].decode())
    return [ref_from_dict(row) for row in table.to_pylist()], pa.ipc.read_schema(pa.py_buffer(encoded))


def group_slice(refs: Sequence[BatchRef], group: int, groups: int) -> list[BatchRef]:
    """The batches of group `group` (from 0) of `groups`: neighbours stay together, sizes differ by one."""
    if not 0 <= group < groups:
        raise OutputError(f"group {group} of {groups}: must be 0 to {groups - 1}")
    size, rest = divmod(len(refs), groups)
    start = group * size + min(group, rest)
    return list(refs[start : start + size + (group < rest)])
