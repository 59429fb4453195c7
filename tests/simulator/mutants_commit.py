"""Defects of writing, committing, publishing and recovering."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from tests.simulator.planting import defect, swap
from transforms import commit as commits
from transforms import compaction, previous, write
from transforms.layout import commit_path, failures_path
from transforms.store import Store

IMMUTABLE = "what is committed never changes"
COMMITTED_ONLY = "readers see committed rows only"
ONCE = "every row exactly once"
FINISHES = "the same command finishes the job"
LEFT_OVER = "nothing is left over"
SUMS = "the cost column adds up"
LISTED = "every ambiguous call is listed"
REASONS = "a failure says what happened"
TROUBLE = "production code fails in foreseen ways only"


@defect("commit", IMMUTABLE)
def a_commit_replaces_the_record_that_is_there(replaced: ExitStack) -> None:
    """By rename, and not create-only: the last writer wins."""

    def commit(store: Any, record: Any) -> commits.Commit:
        store.put(commit_path(record.batch_id, record.attempt), record.to_json())
        commits.publish(store, record)
        return commits.Commit(record, True)

    swap(replaced, commits, "commit", commit)


@defect("commit", COMMITTED_ONLY)
def parts_are_published_before_the_commit(replaced: ExitStack) -> None:
    def commit(store: Store, record: Any) -> commits.Commit:
        commits.publish(store, record)
        return before(store, record)

    before = swap(replaced, commits, "commit", commit)
    swap(replaced, commits, "_require_staged", lambda *_: None)


@defect("commit", COMMITTED_ONLY, "readers see whole files only")
def who_loses_the_race_publishes_its_own_parts(replaced: ExitStack) -> None:
    def commit(store: Store, record: Any) -> commits.Commit:
        created = store.create(commit_path(record.batch_id, record.attempt), record.to_json())
        commits.publish(store, record)
        return commits.Commit(record, created)

    swap(replaced, commits, "commit", commit)


@defect("commit", IMMUTABLE, ONCE, FINISHES)
def who_loses_the_race_takes_the_winners_parts_away(replaced: ExitStack) -> None:
    def commit(store: Store, record: Any) -> commits.Commit:
        done = before(store, record)
        if not done.won:
            for part in record.parts:
                store.delete(part.final)
        return done

    before = swap(replaced, commits, "commit", commit)


@defect("commit", FINISHES, ONCE, LEFT_OVER)
def recovery_sweeps_what_was_committed_and_not_published(replaced: ExitStack) -> None:
    swap(replaced, commits, "_committed_from", lambda store, folder: None)


@defect("commit", ONCE, LEFT_OVER, FINISHES)
def failures_that_were_retried_are_kept(replaced: ExitStack) -> None:
    def publish(store: Store, record: Any) -> None:
        before(store, replace(record, attempt=1))

    before = swap(replaced, commits, "publish", publish)
    swap(replaced, compaction, "sweep_replaced", lambda store, records: 0)


@defect("commit", ONCE, LEFT_OVER, FINISHES)
def failures_are_replaced_before_their_successor_is_committed(replaced: ExitStack) -> None:
    def commit(store: Store, record: Any) -> commits.Commit:
        for attempt in range(1, record.attempt):
            store.delete(failures_path(record.batch_id, attempt))
        return before(store, record)

    before = swap(replaced, commits, "commit", commit)


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
