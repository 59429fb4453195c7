"""Defects of writing, committing, publishing and recovering."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from tests.simulator.planting import defect, swap
from transforms import commit as commits
from transforms import failure_files, previous, write
from transforms.layout import commit_path
from transforms.store import Store

IMMUTABLE = "what is committed never changes"
COMMITTED_ONLY = "readers see committed rows only"
ONCE = "every row exactly once"
FINISHES = "the same command finishes the job"
LEFT_OVER = "nothing is left over"
SUMS = "the cost column adds up"
LISTED = "every ambiguous call is listed"
SHOWN = "the failures that stand are shown"
REASONS = "a failure says what happened"
TROUBLE = "production code fails in foreseen ways only"


@defect("commit", IMMUTABLE)
def a_commit_replaces_the_record_that_is_there(replaced: ExitStack) -> None:
    """By rename, and not create-only: the last writer wins."""

    def commit(store: Any, draft: Any) -> commits.Commit:
        record = draft.record
        store.put(commit_path(record.batch_id, record.attempt), draft.to_bytes())
        commits.publish(store, record)
        return commits.Commit(record, True)

    swap(replaced, commits, "commit", commit)


@defect("commit", COMMITTED_ONLY)
def parts_are_published_before_the_commit(replaced: ExitStack) -> None:
    def commit(store: Store, draft: Any) -> commits.Commit:
        commits.publish(store, draft.record)
        return before(store, draft)

    before = swap(replaced, commits, "commit", commit)
    swap(replaced, commits, "_require_staged", lambda *_: None)


@defect("commit", COMMITTED_ONLY, "readers see whole files only")
def who_loses_the_race_publishes_its_own_parts(replaced: ExitStack) -> None:
    def commit(store: Store, draft: Any) -> commits.Commit:
        record = draft.record
        created = store.create(commit_path(record.batch_id, record.attempt), draft.to_bytes())
        commits.publish(store, record)
        return commits.Commit(record, created)

    swap(replaced, commits, "commit", commit)


@defect("commit", IMMUTABLE, ONCE, FINISHES)
def who_loses_the_race_takes_the_winners_parts_away(replaced: ExitStack) -> None:
    def commit(store: Store, draft: Any) -> commits.Commit:
        done = before(store, draft)
        if not done.won:
            for part in commits.files_of(draft.record):
                store.delete(part.final)
        return done

    before = swap(replaced, commits, "commit", commit)


@defect("commit", FINISHES, ONCE, LEFT_OVER)
def recovery_sweeps_what_was_committed_and_not_published(replaced: ExitStack) -> None:
    swap(replaced, commits, "_committed_from", lambda store, folder: None)


@defect("commit", SHOWN)
def failures_that_were_retried_are_shown_for_ever(replaced: ExitStack) -> None:
    def sorted_out(files: Any, wanted: Any, few_files: int) -> Any:
        kept, old, missing = before(files, wanted, few_files)
        return [*kept, *old], [], missing

    before = swap(replaced, failure_files, "_sorted_out", sorted_out)


@defect("commit", SHOWN)
def failures_are_shown_twice_where_a_run_had_shown_them_before(replaced: ExitStack) -> None:
    def sorted_out(files: Any, wanted: Any, few_files: int) -> Any:
        kept, old, _ = before(files, wanted, few_files)
        return kept, old, before((), wanted, few_files)[2]

    before = swap(replaced, failure_files, "_sorted_out", sorted_out)


@defect("commit", SHOWN)
def failures_beside_those_that_were_retried_go_with_them(replaced: ExitStack) -> None:
    """A file that has some of both is deleted, and what still stands in it is not written anew."""

    def sorted_out(files: Any, wanted: Any, few_files: int) -> Any:
        kept, old, missing = before(files, wanted, few_files)
        for file in old:
            missing.found(file.attempts)
        return kept, old, missing

    before = swap(replaced, failure_files, "_sorted_out", sorted_out)


@defect("commit", TROUBLE, FINISHES)
def failures_do_not_travel_with_the_record(replaced: ExitStack) -> None:
    swap(replaced, commits.Draft, "to_bytes", lambda draft: draft.record.to_json())


@defect("commit", ONCE, TROUBLE, FINISHES)
def failures_that_are_not_tried_again_are_dropped(replaced: ExitStack) -> None:
    def load(store: Store, ref: Any) -> Any:
        found = before(store, ref)
        return None if found is None else replace(found, carried=found.carried.slice(0, 0))

    before = swap(replaced, previous, "load_previous", load)


@defect("commit", SUMS)
def what_earlier_attempts_cost_is_forgotten(replaced: ExitStack) -> None:
    before = swap(
        replaced, write, "cost_column", lambda outcomes, priors: before(outcomes, [None] * len(priors))
    )


@defect("commit", LISTED)
def the_commit_record_leaves_ambiguous_calls_out(replaced: ExitStack) -> None:
    def record(*arguments: Any) -> Any:
        return replace(before(*arguments), ambiguous=())

    before = swap(replaced, commits, "make_record", record)


@defect("commit", ONCE, FINISHES, TROUBLE)
def a_row_is_lost_on_the_way_and_nobody_counts(replaced: ExitStack) -> None:
    def record(batch: Any, *rest: Any) -> Any:
        return before(batch, *rest)

    def write_fewer(self: Any, batch: Any, writer: str) -> Any:
        if len(batch.outcomes) > 1:
            batch.outcomes.pop()
        return written(self, batch, writer)

    swap(replaced, commits, "reconcile", lambda batch, parts: "0" * 32)
    before = swap(replaced, commits, "make_record", record)
    written = swap(replaced, write.PartWriter, "write", write_fewer)
