"""What a quote starts from: the work that is due, the output as it stands, what it has cost. Read-only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.batches import CommitRecord
from schemas.errors import OutputError
from schemas.failures import FailureClass
from schemas.load import LoadedWorkload
from schemas.outcomes import ZERO, money
from transforms.batch_refs import Rows
from transforms.batchmode.standing import open_batches
from transforms.check import require_usable
from transforms.commit_index import sample_commits
from transforms.input_files import InputFiles
from transforms.output import read_marker
from transforms.plan import DueWork, find_due, mark_duplicates, only_batches
from transforms.quote.budget import money_words
from transforms.quote.history import baseline_of
from transforms.quote.values import Baseline
from transforms.route import Rules, compile_rules
from transforms.spend import Spending, count_spending
from transforms.store import Store, is_remote, open_store

MOST_IDS = 20_000_000
"""With more rows than this, repeated ids are not looked for: it takes 16 bytes a row."""

MOST_COMMITS = 256
"""Commit records that are read to see what answers took so far, spread over all of them."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What there is. `store` is the output that a run would go on in; None when it would start afresh.

    `commits` are the newest commit records of batches, at most `MOST_COMMITS` of them.
    """

    loaded: LoadedWorkload
    work: DueWork
    rules: Rules
    store: Store | None
    notes: tuple[str, ...]
    waiting: int = 0
    commits: tuple[CommitRecord, ...] = ()

    @property
    def batches_new(self) -> int:
        """Batches that are due and were never committed."""
        return int((self._places() < 0).sum())

    @property
    def batches_collected(self) -> int:
        """Batches that are due because what they waited for has come back from a provider."""
        places = self._places()
        awaiting = self.work.commits.failures_in([FailureClass.AWAITING_BATCH.value])
        return int((awaiting[places[places >= 0]] > 0).sum())

    @property
    def rows_due(self) -> int:
        """Rows of new batches, and failures that are tried again."""
        return int(self.work.rows.sum())

    def _places(self) -> Rows:
        return self.work.commits.rows_of(self.work.refs.ids)

    def spending(self) -> Spending:
        """What counts against the caps already."""
        if self.store is None:
            return Spending()
        return count_spending(self.loaded.workload, self.store, self.work.index)

    def baseline(self) -> Mapping[str, Baseline]:
        """What each route has cost so far, over all attempts."""
        return baseline_of(self.work.index)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run has looked at before it is quoted: the input, and what is due of the batches it is told."""

    found: InputFiles | None = None
    work: DueWork | None = None

    def work_over(self, store: Store | None) -> DueWork | None:
        """What is due in an output, if it was looked at; without a store it must be as for an empty one."""
        return self.work if self.work and (store or not len(self.work.commits)) else None


UNSEEN = Seen()


def survey_ground(
    loaded: LoadedWorkload,
    retry_classes: tuple[str, ...],
    wanted: Sequence[str] = (),
    seen: Seen = UNSEEN,
) -> Ground:
    """Find what is due (of the batches that are `wanted`) and check that the workload fits the input.

    Raises:
        WorkloadError: expressions or prompts can't be used on this input.
        InputError: the input can't be used.
        OutputError: an input file was replaced since its documents were answered.
    """
    store, note = _usable_output(loaded)
    notes = [note] if note else []
    work = seen.work_over(store)
    if work is None:
        work = only_batches(find_due(loaded, store, retry_classes, seen.found), wanted)
    require_usable(loaded, work.found.schema)
    if work is not seen.work and work.found.files.rows <= MOST_IDS:
        work = mark_duplicates(loaded, work)
    elif work is not seen.work:
        notes.append(f"repeated ids were not looked for: the input has more than {MOST_IDS:,} rows")
    jobs = [] if store is None else open_batches(store)
    if jobs:
        held = money_words(sum((money(job.reserved) for job in jobs), ZERO))
        notes.append(
            f"{sum(job.requests for job in jobs):,} requests wait in provider batches, with {held} set aside "
            "for them at the most: a run collects their answers; they are no part of this price"
        )
    if work.found.skipped:
        notes.append(f"{len(work.found.skipped):,} input files can't be read and are left out")
    waiting = sum(job.requests for job in jobs)
    commits = () if store is None else sample_commits(store, work.commits, MOST_COMMITS)
    return Ground(loaded, work, compile_rules(loaded.workload), store, tuple(notes), waiting, commits)


def _usable_output(loaded: LoadedWorkload) -> tuple[Store | None, str]:
    """The output if a real run would go on in it; else None, with a note if there is one it would refuse."""
    folder, store = loaded.output_uri, open_store(loaded.output_uri)
    if not is_remote(folder) and not Path(folder).exists():
        return None, ""
    refused = "and a run would refuse it: this is the price of a run into an empty folder"
    try:
        marker = read_marker(loaded.output_uri)
    except OutputError:
        is_empty = next(iter(store.list("")), None) is None and not Path(folder).is_file()
        return None, "" if is_empty else f"{folder} is no output of Switchgear, {refused}"
    if marker.get("workload_sha256") != loaded.workload.digest():
        return None, f"{folder} holds the results of another version of the workload, {refused}"
    if marker.get("rehearsal"):
        return None, f"{folder} holds rehearsed results, {refused}"
    return store, ""
