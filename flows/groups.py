"""Groups of batches: how many, what each worker is told, and what became of its batches.

A group is what one worker process works on, and what one task run of the flow stands for.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flows.batch_lines import BatchLine, BatchLines, batch_line
from flows.kept_logs import keep_log
from flows.words import batches as batches_text
from flows.words import count, usd
from flows.worker import STOP_GRACE_S, Event, Worker, WorkerCommand, WorkerEnd
from pipelines.dataflow import Tpu
from pipelines.engines import Engine
from schemas.batches import BatchReport, CommitRecord
from schemas.failures import FAILURE_KINDS, FailureClass
from schemas.run import Progress, RunContext
from transforms.batch_refs import BatchRefs
from transforms.plan_file import group_slice
from transforms.unfinished import Unfinished

MAX_GROUPS = 200  # the Prefect server keeps records of 200 task runs in a flow run without trouble
_SILENT = "its worker ended without a word about it"
_BATCHES_PER_GROUP = 128  # a process costs seconds to start and to compile for: give it minutes of work


@dataclass(frozen=True, slots=True)
class GroupJob:
    """What one worker is told. Paths are absolute; it carries no secret.

    `kept_log` is where its log is copied to in the end, if it does not stay where it is.
    """

    group: int
    groups: int
    run_id: str
    workload: str
    plan: str
    context: str
    log: str
    lock: int | None
    runner_flags: tuple[str, ...] = ()
    engine: Engine = "local"
    tpu: Tpu | None = None
    kept_log: str = ""


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """What became of a group: every batch that its worker spoke of, and how the worker ended.

    `rows_again` are the documents that a retry would take up, `worst_again` what that costs at most, in USD;
    None when nobody knows. `silent` counts the batches that were due and that the worker did not speak of.
    Its representation is short: Prefect logs it with a task run that failed.
    """

    group: int
    lines: Sequence[BatchLine] = field(repr=False)
    failed: Sequence[BatchReport] = field(repr=False)
    end: WorkerEnd = field(repr=False)
    rows_again: int = 0
    silent: int = 0
    worst_again: Decimal | None = None

    def __post_init__(self) -> None:
        """As objects the lines of many groups would fill the memory."""
        object.__setattr__(self, "lines", BatchLines.of(self.lines))
        object.__setattr__(self, "failed", Unfinished.of(self.failed))

    @property
    def columns(self) -> BatchLines:
        """The lines as columns."""
        assert isinstance(self.lines, BatchLines)
        return self.lines

    @property
    def is_good(self) -> bool:
        """Whether the worker ran to its end and nothing of the group is left for a retry."""
        return not self.failed and not self.end.error and not self.silent and not self.again()

    def again(self) -> Counter[str]:
        """The failures that a retry takes up, by class."""
        return self.columns.again()

    def sentence(self) -> str:
        """For an operator: what was done, or what failed, whether a retry can help, and what it costs."""
        if self.is_good:
            done = self.columns.committed()
            counts = f"{done.total('results'):,} results, {done.total('failures'):,} failures"
            return f"{batches_text(len(done))} committed: {counts}"
        if self.end.configuration:
            return f"Group {self.group} is not through: {self.end.error}. Mend that before a retry"
        if self.end.error:
            return f"Group {self.group} is not through: {self.end.error}. {self._retry()}"
        if self.failed:
            failed = f"{len(self.failed)} of {batches_text(len(self.lines))} failed"
            return f"{failed}: {self.failed[0].error}. {self._retry()}"
        if self.silent:
            due = batches_text(len(self.lines) + self.silent)
            return f"{self.silent:,} of {due} not finished: {_SILENT}. {self._retry()}"
        reason, number = self.again().most_common(1)[0]
        kind = FAILURE_KINDS[FailureClass(reason)]
        total = self.columns.total("rows")
        mostly = "" if number == self.again().total() else "mostly "
        return (
            f"{self.again().total():,} of {count(total, 'document')} have no answer ({mostly}{reason}: "
            f"{kind.meaning}). What to do: {kind.remedy}. {self._retry()}"
        )

    def _retry(self) -> str:
        if self.again()[FailureClass.BUDGET_EXHAUSTED] == self.rows_again > 0:
            return "A retry helps only with a higher cap"
        price = (
            "its price is not known" if self.worst_again is None else f"at most about {usd(self.worst_again)}"
        )
        return f"A retry does what is missing and nothing else: {price}"


def default_groups(batches: int, parallel: int) -> int:
    """How many groups: enough for all processes, few enough for each to earn its start-up, at most 200.

    As many for each process: with one more than that, all but one would stand idle while it is worked on.
    """
    rounds = -(-batches // (parallel * _BATCHES_PER_GROUP))
    return max(1, min(batches, parallel * min(rounds, MAX_GROUPS // parallel)))


def worker_arguments(job: GroupJob) -> tuple[str, ...]:
    """The command line of the worker process. `-P` keeps the current folder off the import path."""
    flags = ("--", *job.runner_flags) if job.runner_flags else ()
    tpu = (f"--tpu={job.tpu}",) if job.tpu else ()
    return (
        sys.executable,
        "-P",
        "-m",
        "pipelines.enrich",
        f"--workload={job.workload}",
        f"--run={job.context}",
        f"--plan={job.plan}",
        f"--group={job.group}",
        f"--groups={job.groups}",
        f"--engine={job.engine}",
        *tpu,
        *flags,
    )


def write_context(run: RunContext, folder: Path) -> Path:
    """Write what the workers must know of the run into a file; its path.

    Groups are started from several threads: who reads the file while it is written again finds it whole.
    """
    path = folder / "context.json"
    draft = folder / f"context.{threading.get_ident()}.draft"
    draft.write_text(json.dumps(asdict(run)), encoding="utf-8")
    os.replace(draft, path)
    return path


class Crew:
    """All workers of a run: so that none is left behind, whatever ends the run."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._workers: list[Worker] = []
        self._stopping = False

    def run(self, command: WorkerCommand, on_event: Callable[[Event], None]) -> WorkerEnd:
        """Run one worker to its end, in the calling thread. After `stop`, none is started any more."""
        worker = Worker(command, on_event)
        with self._guard:
            self._workers.append(worker)
            if self._stopping:
                worker.terminate()
        try:
            return worker.run()
        finally:
            with self._guard:
                self._workers.remove(worker)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Stop all workers: first all are asked, then each is waited for, at last killed."""
        with self._guard:
            self._stopping = True
            workers = list(self._workers)
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.stop(grace_s)


def work_on_group(
    job: GroupJob,
    arguments: Sequence[str],
    crew: Crew,
    on_progress: Callable[[Progress], None],
    on_batch: Callable[[BatchLine], None],
    on_commit: Callable[[CommitRecord], None] = lambda _: None,
) -> GroupOutcome:
    """Run the worker of a group, hand on what it says, and gather what became of its batches.

    `on_commit` is given the record of each batch that is committed. Beam may run a bundle again, so a batch
    may be spoken of more than once: it counts once, and a commit counts more than a failure.
    """
    spoken: dict[str, BatchLine] = {}
    failed: dict[str, BatchReport] = {}

    def on_event(event: Event) -> None:
        if event["event"] == "progress":
            on_progress(_progress(event))
        elif event["event"] == "batch":
            report = BatchReport.from_dict(event["report"])
            before = spoken.get(report.batch_id)
            if before is None or before.is_failed:
                line = spoken[report.batch_id] = batch_line(job.group, report)
                failed.pop(report.batch_id, None)
                if line.is_failed:
                    failed[report.batch_id] = report
                elif report.record is not None:
                    on_commit(report.record)
            if before is None:
                on_batch(spoken[report.batch_id])

    command = WorkerCommand(
        arguments=tuple(arguments),
        log=Path(job.log),
        inherit=() if job.lock is None else (job.lock,),
        environment=(("PYTHONPATH", _import_path()),),
    )
    end = crew.run(command, on_event)
    if job.kept_log and keep_log(command.log, job.kept_log):
        end = replace(end, error=end.error.replace(job.log, job.kept_log))
    return GroupOutcome(job.group, tuple(spoken.values()), tuple(failed.values()), end)


def priced(outcome: GroupOutcome, refs: BatchRefs, worst_of_a_row: Decimal | None) -> GroupOutcome:
    """The outcome with what a retry would take up of the group's batches, and what that costs at most."""
    is_done = pc.is_in(refs.batches, value_set=outcome.columns.committed().batches.combine_chunks())
    silent = len(refs) - (pc.sum(_spoken_of(outcome, refs)).as_py() or 0)
    rows = int(refs.row_counts[~is_done.to_numpy().astype(bool)].sum()) + outcome.again().total()
    worst = None if worst_of_a_row is None else worst_of_a_row * rows
    return replace(outcome, rows_again=rows, silent=silent, worst_again=worst)


def _spoken_of(outcome: GroupOutcome, refs: BatchRefs) -> pa.ChunkedArray:
    """Which of a group's batches its worker has spoken of."""
    return pc.is_in(refs.batches, value_set=outcome.columns.batches.combine_chunks())


def failed_reports(outcomes: Iterable[GroupOutcome], refs: BatchRefs, groups: int) -> Unfinished:
    """Every batch that was due and is not committed: reported as failed, or never spoken of.

    The latter were due to a worker that ended early, and get that worker's error.
    """
    failed: list[Unfinished] = []
    for outcome in outcomes:
        due = group_slice(refs, outcome.group, groups)
        is_silent = pc.invert(_spoken_of(outcome, due))
        reason = outcome.end.error or _SILENT
        silent = due.where(is_silent.to_numpy().astype(bool))
        failed += [Unfinished.of(outcome.failed), Unfinished.all_of(silent, reason)]
    return Unfinished.joined(failed)


def _progress(event: dict[str, Any]) -> Progress:
    return Progress(**{known.name: event[known.name] for known in fields(Progress) if known.name in event})


def _import_path() -> str:
    """Where the worker finds this very code, whatever its current folder is."""
    root = str(Path(__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    return f"{root}{os.pathsep}{inherited}" if inherited else root
