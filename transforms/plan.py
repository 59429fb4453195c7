"""The plan: which batches there are, which are done, and which this run works on.

Planning never pays for anything. It reads footers (and, to find repeated ids, the id column),
finishes what a killed run had committed but not published, adds up what was spent so far, and
freezes what is due as `runs/<run_id>/plan.parquet`, which the workers read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from schemas.errors import InputError, OutputError
from schemas.load import LoadedWorkload
from schemas.run import RunContext
from transforms.batch_refs import BatchRefs, Rows
from transforms.batchmode.tickets import batches_waiting
from transforms.call.budget_parts import parts_for
from transforms.commit import recover
from transforms.commit_index import CommitIndex, no_commits, read_index
from transforms.committed import Committed
from transforms.compaction import take_stock
from transforms.cut import cut_batches
from transforms.due import Due, beginning_with, beyond_caps, find_due_batches
from transforms.files import find_input, refuse_own_results
from transforms.input_files import InputFiles
from transforms.layout import plan_path, run_path
from transforms.plan_file import plan_bytes
from transforms.spend import start_caps
from transforms.store import Store, is_remote, open_store
from transforms.unique_ids import mark_repeated

WORKLOAD_FILE = "workload.toml"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run has to do. `refs` are the batches that are due, in input order.

    `rows_due` counts rows of batches that are new and failures that are tried again. `rows_beyond` are
    failures that are left as they are, because what the caps have left is less than any of them needs.
    `batches_left_out` were due too, and the run was told to leave them alone.
    """

    run_id: str
    refs: BatchRefs
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
    return freeze_plan(loaded, run, find_work(loaded, run, retry_classes))


def find_work(
    loaded: LoadedWorkload,
    run: RunContext,
    retry_classes: Sequence[str] = (),
    found: InputFiles | None = None,
) -> DueWork:
    """What a run has to do: finishes what was committed and not published, then looks; see `plan_run`.

    `found` is the input, where it was read a moment ago.
    """
    store = open_store(run.output)
    recover(store)
    work = only_batches(find_due(loaded, store, retry_classes, found, take_stock(store)), run.only_batches)
    return mark_duplicates(loaded, work)


def freeze_plan(loaded: LoadedWorkload, run: RunContext, work: DueWork) -> Plan:
    """Start the records of the caps, and write down what is due, for the workers."""
    store = open_store(run.output)
    parts = parts_for(run.workers) if is_remote(store.root) else 1
    left = start_caps(loaded.workload, store, work.index, run.run_id, datetime.now(UTC), parts=parts)
    beyond = beyond_caps(work.due, work.commits, left)
    due = work.due.where(~beyond)
    plan_uri = plan_path(run.run_id)
    store.create(plan_uri, plan_bytes(due.refs, work.found.schema))
    store.create(run_path(run.run_id, WORKLOAD_FILE), loaded.source)
    return Plan(
        run_id=run.run_id,
        refs=due.refs,
        rows_due=int(due.rows.sum()),
        rows_total=work.found.files.rows,
        batches_total=len(work.every),
        batches_committed=_count_committed(work),
        files=len(work.found.files),
        skipped_files=work.found.skipped,
        plan_uri=plan_uri,
        rows_beyond=int(work.due.rows[beyond].sum()),
        batches_left_out=work.left_out,
    )


def _count_committed(work: DueWork) -> int:
    if not len(work.commits):
        return 0
    return int((work.commits.rows_of(work.every.ids) >= 0).sum())


@dataclass(frozen=True, slots=True)
class DueWork:
    """What there is to do, before anything is written: all batches, those that are due, what is committed.

    `index` has all commits, `left_out` is how many batches are due and not to be worked on.
    """

    found: InputFiles
    index: CommitIndex
    every: BatchRefs
    due: Due
    left_out: int = 0

    @property
    def commits(self) -> Committed:
        """How every batch stands of which anything is committed."""
        return self.index.committed

    @property
    def refs(self) -> BatchRefs:
        """The batches that are due."""
        return self.due.refs

    @property
    def rows(self) -> Rows:
        """Of each batch that is due its rows: all of a new one, else the failures that are tried again."""
        return self.due.rows


def find_due(
    loaded: LoadedWorkload,
    store: Store | None,
    retry_classes: Sequence[str] = (),
    found: InputFiles | None = None,
    index: CommitIndex | None = None,
) -> DueWork:
    """Find what is due in an output, writing nothing; without a store, as for an empty output.

    Repeated ids are not looked for yet: see `mark_duplicates`. `found` is the input and `index` the output's
    commits, where they were read already.

    Raises:
        InputError: see `transforms.files.find_input` and `refuse_own_results`.
        OutputError: an input file was replaced since its documents were answered.
    """
    found = found or find_input(loaded.input_uri, loaded.workload.input)
    refuse_own_results(found, loaded.output_uri)
    if index is None:
        index = no_commits() if store is None else read_index(store)
    _refuse_changed_input(found, index.committed)
    every = cut_batches(found.files, loaded.workload.limits)
    waiting = () if store is None else batches_waiting(store)
    return DueWork(found, index, every, find_due_batches(every, index.committed, waiting, retry_classes))


def only_batches(work: DueWork, wanted: Sequence[str]) -> DueWork:
    """The work on the batches whose ids begin with one of `wanted`; all of it when that is empty.

    Raises:
        InputError: one of them is no batch of the input.
    """
    if not wanted:
        return work
    is_wanted = np.zeros(len(work.every), bool)
    for beginning, mask in zip(wanted, beginning_with(work.every, wanted), strict=True):
        if not mask.any():
            raise InputError(
                f"batch {beginning!r}: the input has no such batch. Give the beginning of a batch id as the "
                "batch table or `switchgear failures OUTPUT --json` shows it"
            )
        is_wanted |= mask
    due = work.due.where(is_wanted[work.due.numbers])
    return replace(work, due=due, left_out=len(work.refs) - len(due.refs))


def mark_duplicates(loaded: LoadedWorkload, work: DueWork) -> DueWork:
    """Note in each new batch the rows whose id stood before, if ids must be unique in the whole input."""
    settings = loaded.workload.input
    if settings.unique_ids != "run":
        return work
    refs = mark_repeated(settings, work.found.schema, work.every, work.commits, work.due)
    return replace(work, due=replace(work.due, refs=refs))


def _refuse_changed_input(found: InputFiles, commits: Committed) -> None:
    """Results of two versions of one file must not stand side by side."""
    generations = found.files.generations() if len(commits) else {}
    for answered in commits.files():
        now = generations.get(answered.uri, answered.generation)
        if now != answered.generation:
            raise OutputError(
                f"input {answered.uri} was replaced after run {answered.run_id} had answered documents of it "
                f"(content {answered.generation} then, {now} now). Restore the file, or give a new output "
                "folder: results of both versions would stand side by side"
            )
