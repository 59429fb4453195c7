import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.batches import AmbiguousCall, BackendTotals
from schemas.errors import ReconcileError, StoreError
from schemas.failures import FailureClass
from schemas.ids import sha256_hex
from schemas.outcomes import Outcome, Usage
from tests.support.batches import NOW, part_writer, staged, work_batch
from tests.support.records import AMBIGUOUS, REF, answered, assignment, failed, run_context
from tests.support.stepping import Countdown, CrashError, SteppedStore, interleave
from tests.support.workloads import workload
from transforms.commit import Commit, Draft, commit, make_record, publish, recover
from transforms.compaction import take_stock
from transforms.failures import failures_left
from transforms.layout import COMPACTED, list_commits, read_commit
from transforms.previous import load_previous
from transforms.store import LocalStore
from transforms.work import WorkBatch

FIRST = [
    answered(100),
    failed(101, FailureClass.TIMEOUT),
    failed(102, FailureClass.NULL_TEXT),
    failed(103, FailureClass.RATE_LIMITED),
]
INTERLEAVINGS = 60


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "out"))


def stage_first(root: str, outcomes: list[Outcome] = FIRST, name: str | None = None) -> Draft:
    """Stage attempt 1: one result, and three failures of which two can be tried again."""
    store = LocalStore(root)
    writer = part_writer(workload(), run_context(root), store)
    return staged(writer, work_batch(REF, outcomes), name)


def stage_second(root: str, name: str | None = None) -> Draft:
    """Stage attempt 2 over a committed attempt 1: one more result, one failure again, one carried."""
    store = LocalStore(root)
    ref = replace(REF, attempt=2, previous_attempt=1)
    previous = load_previous(store, ref)
    assert previous is not None
    outcomes = [answered(101, answer="late"), failed(103, FailureClass.RATE_LIMITED)]
    batch = work_batch(ref, outcomes, carried=previous.carried, prior=previous.retry)
    return staged(part_writer(workload(), run_context(root), store), batch, name)


def tree(root: str) -> dict[str, str]:
    """Path and digest of everything in an output."""
    return {
        str(p.relative_to(root)): sha256_hex(p.read_bytes())
        for p in sorted(Path(root).rglob("*"))
        if p.is_file()
    }


def visible_rows(root: str) -> list[tuple[str, int]]:
    return sorted(
        row for path in Path(root, "results").rglob("*.parquet") for row in rows_of(path.read_bytes())
    )


def failed_rows(store: LocalStore) -> list[tuple[str, int]]:
    """Route and row of the failures that the newest attempt left."""
    return sorted(places(failures_left(store, REF.batch_id, list_commits(store)[REF.batch_id][-1])))


@lru_cache(1000)
def rows_of(part: bytes) -> list[tuple[str, int]]:
    """Route and row of every row of a part."""
    return places(pq.read_table(pa.BufferReader(part)))


def places(table: pa.Table) -> list[tuple[str, int]]:
    return [(row["route"] or "", row["source"]["row"]) for row in table.column("lineage").to_pylist()]


# ---- what a record says


def test_a_record_counts_what_its_parts_hold(store: LocalStore) -> None:
    record = stage_first(store.root).record
    assert (record.rows_in, record.rows_skipped, record.assignments) == (4, 0, 4)
    assert (record.results, record.failures, record.retryable) == (1, 3, 2)
    assert record.failures_by_class == {"timeout": 1, "null_text": 1, "rate_limited": 1}
    assert record.results_by_route == {"ask": 1}
    assert record.failures_by_route == {"ask": 3}
    assert [(p.kind, p.rows) for p in record.parts] == [("results", 1), ("failures", 3)]
    assert record.committed_at == NOW.isoformat()


def test_a_further_attempt_counts_what_it_carries_and_only_that(store: LocalStore) -> None:
    commit(store, stage_first(store.root))
    record = stage_second(store.root).record
    assert (record.attempt, record.assignments, record.results, record.failures) == (2, 3, 1, 2)
    assert record.failures_by_class == {"null_text": 1, "rate_limited": 1}
    assert record.failures_by_route == {"ask": 2}
    assert record.retryable == 1


def test_totals_are_by_route_and_backend_and_add_up_exactly(store: LocalStore) -> None:
    paid_failure = answered(102, amount="0.000000000001", failure=FailureClass.REFUSED)
    unknown = answered(103, charge=replace(answered(0).charge, amount=None, list_amount=None))
    outcomes = [
        answered(100, amount="0.1", calls=2, ambiguous_calls=1, ambiguous_amount=answered(0).charge.amount),
        answered(101, amount="0.2", replayed_calls=1, usage=Usage(None, 5)),
        paid_failure,
        unknown,
        failed(100, FailureClass.BUDGET_EXHAUSTED, "other"),
    ]
    routes = [{"name": n, "backends": ["mini"], "prompt": "topic"} for n in ("ask", "other")]
    writer = part_writer(workload(routes=routes, match="all"), run_context(store.root), store)
    totals = staged(writer, work_batch(REF, outcomes)).record.totals
    assert totals == {
        "ask": {
            "mini": BackendTotals(
                documents=4,
                results=3,
                calls=5,
                replayed=1,
                ambiguous=1,
                ambiguous_amount="0.010000000000",
                input_tokens=300,
                output_tokens=35,
                amount="0.300000000001",
                list_amount="0.300000000001",
                unknown=1,
                basis="tokens",
            )
        }
    }


def test_ambiguous_calls_are_in_the_record(store: LocalStore) -> None:
    batch = work_batch(REF, FIRST, ambiguous=[AMBIGUOUS])
    record = staged(part_writer(workload(), run_context(store.root), store), batch).record
    assert record.ambiguous == (AMBIGUOUS,)
    assert isinstance(record.ambiguous[0], AmbiguousCall)


# ---- reconciliation: every seeded defect is caught before anything is committed


def lose(batch: WorkBatch) -> None:
    batch.outcomes.pop()


def double(batch: WorkBatch) -> None:
    batch.outcomes.append(batch.outcomes[0])


def exchange(batch: WorkBatch) -> None:
    batch.outcomes[0] = replace(batch.outcomes[0], assignment=assignment(103))


def add_a_stranger(batch: WorkBatch) -> None:
    batch.outcomes.append(answered(103))


def move_to_another_route(batch: WorkBatch) -> None:
    batch.outcomes[0] = replace(batch.outcomes[0], assignment=assignment(100, "other"))


def forget_a_row(batch: WorkBatch) -> None:
    batch.rows_skipped -= 1


def leave_one_untaken(batch: WorkBatch) -> None:
    batch.todo.append((0, assignment(100)))


@pytest.mark.parametrize(
    "defect", [lose, double, exchange, add_a_stranger, move_to_another_route, forget_a_row, leave_one_untaken]
)
def test_a_lost_doubled_or_strange_row_is_never_committed(
    store: LocalStore, defect: Callable[[WorkBatch], None]
) -> None:
    batch = work_batch(REF, FIRST[:3])
    defect(batch)
    routes = [{"name": n, "backends": ["mini"], "prompt": "topic"} for n in ("ask", "other")]
    writer = part_writer(workload(routes=routes, match="all"), run_context(store.root), store)
    with pytest.raises(ReconcileError, match="Nothing of it was committed"):
        staged(writer, batch)
    assert list_commits(store) == {}


@pytest.mark.parametrize("rows", [0, 2])
def test_a_part_with_rows_too_few_or_too_many_is_never_committed(store: LocalStore, rows: int) -> None:
    batch = work_batch(REF, FIRST)
    results, failures = part_writer(workload(), run_context(store.root), store).write(batch, "w").parts
    with pytest.raises(ReconcileError):
        make_record(batch, [replace(results, rows=rows), failures], run_context(store.root), "w", NOW)


def test_rows_that_the_writer_forgets_are_noticed(store: LocalStore) -> None:
    """Its own count of a part would agree with the part; the outcomes don't."""
    batch = work_batch(REF, FIRST)
    results, _ = part_writer(workload(), run_context(store.root), store).write(batch, "w").parts
    with pytest.raises(ReconcileError):
        make_record(batch, [results], run_context(store.root), "w", NOW)


# ---- committing


def test_a_commit_makes_exactly_its_parts_visible(store: LocalStore) -> None:
    draft = stage_first(store.root)
    assert visible_rows(store.root) == []
    assert commit(store, draft) == Commit(draft.record, True)
    assert visible_rows(store.root) == [("ask", 100)]
    assert failed_rows(store) == [("ask", 101), ("ask", 102), ("ask", 103)]
    assert list(store.list("_staging")) == []
    results, failures = draft.record.parts
    assert sha256_hex(store.read(results.final)) == results.sha256
    assert sha256_hex(draft.failures) == failures.sha256


def test_a_batch_of_failures_alone_is_committed_by_one_object(store: LocalStore) -> None:
    draft = stage_first(store.root, FIRST[1:])
    assert list(store.list("")) == []
    commit(store, draft)
    assert list(store.list("")) == [f"commits/{REF.batch_id}.0001.json"]
    assert failed_rows(store) == [("ask", 101), ("ask", 102), ("ask", 103)]


def test_the_second_of_two_writers_is_told_who_won_and_leaves_nothing(store: LocalStore) -> None:
    first, second = stage_first(store.root), stage_first(store.root)
    commit(store, first)
    assert commit(store, second) == Commit(first.record, False)
    assert list(store.list("_staging")) == []
    assert visible_rows(store.root) == [("ask", 100)]


def test_a_lost_acknowledgement_counts_as_won(store: LocalStore) -> None:
    draft = stage_first(store.root)
    store.create(f"commits/{REF.batch_id}.0001.json", draft.to_bytes())
    assert commit(store, draft).won
    assert visible_rows(store.root) == [("ask", 100)]


def test_a_further_attempt_replaces_the_failures_and_adds_results(store: LocalStore) -> None:
    commit(store, stage_first(store.root))
    commit(store, stage_second(store.root))
    assert visible_rows(store.root) == [("ask", 100), ("ask", 101)]
    assert failed_rows(store) == [("ask", 102), ("ask", 103)]


def test_a_further_attempt_without_failures_leaves_none(store: LocalStore) -> None:
    commit(store, stage_first(store.root, [answered(100), failed(101, FailureClass.TIMEOUT)]))
    ref = replace(REF, attempt=2, previous_attempt=1)
    previous = load_previous(store, ref)
    assert previous is not None
    batch = work_batch(ref, [answered(101)], carried=previous.carried, prior=previous.retry)
    commit(store, staged(part_writer(workload(), run_context(store.root), store), batch))
    assert failed_rows(store) == []
    assert visible_rows(store.root) == [("ask", 100), ("ask", 101)]


def test_a_zombie_of_an_attempt_that_was_taken_further_changes_nothing(store: LocalStore) -> None:
    zombie = stage_first(store.root)
    commit(store, stage_first(store.root))
    commit(store, stage_second(store.root))
    before = {p: d for p, d in tree(store.root).items() if not p.startswith("_staging")}
    assert not commit(store, zombie).won
    assert tree(store.root) == before


def test_a_writer_whose_parts_were_swept_commits_nothing(store: LocalStore) -> None:
    record = stage_first(store.root)
    recover(store)
    with pytest.raises(StoreError, match="is gone: another run has swept"):
        commit(store, record)
    assert list_commits(store) == {}


def test_a_committed_part_that_someone_deleted_is_named(store: LocalStore) -> None:
    draft = stage_first(store.root)
    commit(store, draft)
    store.delete(draft.record.parts[0].final)
    with pytest.raises(StoreError, match=r"results/route=ask/.*A committed part was deleted"):
        publish(store, draft.record)


# ---- crashes: at every step, then recovery and, where nothing was committed, the same attempt again


def _crash(root: str, draft: Draft, at: int, *, after: bool) -> bool:
    """Commit with a crash before, or right after, the n-th mutation; whether there was one."""
    countdown = Countdown(at)
    store = SteppedStore(root, passed=countdown) if after else SteppedStore(root, gate=countdown)
    try:
        commit(store, draft)
    except CrashError:
        return True
    return False


def _finish(root: str, stage: Callable[[str], Draft], attempt: int) -> None:
    """What the next run does: recover, and do what is not committed."""
    store = LocalStore(root)
    recover(store)
    take_stock(store)
    if attempt not in list_commits(store).get(REF.batch_id, []):
        commit(store, stage(root))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("attempt", [1, 2])
def test_a_crash_at_any_step_of_a_commit_is_recovered_to_the_same_files(
    tmp_path: Path, attempt: int, after: bool
) -> None:
    stages: dict[int, Callable[[str], Draft]] = {
        1: lambda root: stage_first(root, name="w1"),
        2: lambda root: stage_second(root, name="w2"),
    }
    steps = 0
    wanted: dict[str, str] | None = None
    while True:
        root = str(tmp_path / f"{attempt}.{after}.{steps}")
        if attempt == 2:
            commit(LocalStore(root), stage_first(root, name="w1"))
        crashed = _crash(root, stages[attempt](root), steps, after=after)
        _finish(root, stages[attempt], attempt)
        found = {path: data for path, data in tree(root).items() if not path.startswith(COMPACTED)}
        if wanted is None:
            wanted = _undisturbed(tmp_path, stages, attempt)
        assert found == wanted, f"after a crash at step {steps}"
        if not crashed:
            break
        steps += 1
    assert steps == 2  # create, publish


def _undisturbed(tmp_path: Path, stages: dict[int, Callable[[str], Draft]], attempts: int) -> dict[str, str]:
    root = str(tmp_path / "undisturbed")
    for attempt in range(1, attempts + 1):
        commit(LocalStore(root), stages[attempt](root))
    return tree(root)


def test_a_crash_while_staging_leaves_nothing_but_what_is_swept(tmp_path: Path) -> None:
    for at in range(10):
        root = str(tmp_path / str(at))
        store = SteppedStore(root, Countdown(at))
        writer = part_writer(workload(), run_context(root), store)  # type: ignore[arg-type]
        try:
            writer.write(work_batch(REF, FIRST), "w")
        except CrashError:
            recover(LocalStore(root))
            assert tree(root) == {}
            assert not Path(root, "_staging").exists()
        else:
            assert at == 2  # results, staged and finished
            return
    pytest.fail("staging never ended")


# ---- recovery


def test_recovery_publishes_what_was_committed_and_sweeps_the_rest(store: LocalStore) -> None:
    winner, loser = stage_first(store.root), stage_first(store.root)
    store.create(f"commits/{REF.batch_id}.0001.json", winner.to_bytes())
    other = staged(
        part_writer(workload(), run_context(store.root), store),
        work_batch(replace(REF, batch_id="c" * 32), FIRST),
    )
    assert len(list(store.list("_staging"))) == 3
    recover(store)
    assert list(store.list("results")) == [winner.record.parts[0].final]
    assert list(store.list("_staging")) == []
    assert not store.exists(other.record.parts[0].final)
    assert loser.record.writer != winner.record.writer


def test_recovery_leaves_strangers_among_our_names_alone(store: LocalStore) -> None:
    record = stage_first(store.root)
    commit(store, record)
    store.create("failures/notes.txt", b"mine")
    store.create("commits/notes.txt", b"mine")
    store.create("_staging/notes.txt", b"mine")
    recover(store)
    assert store.exists("failures/notes.txt")
    assert store.exists("commits/notes.txt")
    assert not store.exists("_staging/notes.txt")


def test_recovering_twice_is_recovering_once(store: LocalStore) -> None:
    commit(store, stage_first(store.root))
    commit(store, stage_second(store.root))
    recover(store)
    before = tree(store.root)
    recover(store)
    assert tree(store.root) == before


# ---- races: one operation at a time, in many orders, a reader looking on after every step


class Reader:
    """Sees whole committed parts only, and each document at most once per route."""

    def __init__(self, root: str) -> None:
        self.store = LocalStore(root)
        self.looks = 0

    def __call__(self) -> None:
        self.looks += 1
        committed = {
            part.final: part.sha256
            for batch, attempts in list_commits(self.store).items()
            for attempt in attempts
            for part in read_commit(self.store, batch, attempt).parts
        }
        seen: Counter[tuple[str, int]] = Counter()
        for path in self.store.list("results"):
            data = self.store.read(path)
            assert sha256_hex(data) == committed[path]
            seen.update(rows_of(data))
        assert [row for row, count in seen.items() if count > 1] == []


@dataclass(frozen=True)
class Stage:
    """An output in which three writers have staged their parts; copied for every race."""

    root: Path
    drafts: list[Draft]

    def race(self, folder: Path, seed: int) -> tuple[str, list[Any]]:
        root = str(shutil.copytree(self.root, folder / "out"))
        reader = Reader(root)
        done = interleave(root, [_committer(draft) for draft in self.drafts], Random(seed), reader)
        assert reader.looks > 12
        assert all(isinstance(c, Commit) for c in done)
        return root, done


@pytest.fixture(scope="module")
def three_writers(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    root = tmp_path_factory.mktemp("three")
    return Stage(root, [stage_first(str(root), name=name) for name in ("wa", "wb", "wz")])


@pytest.fixture(scope="module")
def two_writers_and_a_zombie(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    root = tmp_path_factory.mktemp("two")
    zombie = stage_first(str(root), name="wz")
    commit(LocalStore(str(root)), stage_first(str(root), name="wa"))
    return Stage(root, [zombie, *(stage_second(str(root), name=name) for name in ("wb", "wc"))])


@pytest.mark.parametrize("seed", range(INTERLEAVINGS))
def test_of_racing_writers_one_wins_whatever_the_order(
    tmp_path: Path, three_writers: Stage, seed: int
) -> None:
    root, commits = three_writers.race(tmp_path, seed)
    (winner,) = [c.record.writer for c in commits if c.won]
    assert {c.record.writer for c in commits} == {winner}
    assert list(LocalStore(root).list("_staging")) == []
    assert visible_rows(root) == [("ask", 100)]


@pytest.mark.parametrize("seed", range(INTERLEAVINGS))
def test_a_zombie_among_the_writers_of_the_next_attempt_changes_nothing(
    tmp_path: Path, two_writers_and_a_zombie: Stage, seed: int
) -> None:
    root, commits = two_writers_and_a_zombie.race(tmp_path, seed)
    assert sorted(c.won for c in commits) == [False, False, True]
    assert not commits[0].won
    assert visible_rows(root) == [("ask", 100), ("ask", 101)]
    assert failed_rows(LocalStore(root)) == [("ask", 102), ("ask", 103)]


def _committer(draft: Draft) -> Callable[[Any], Commit]:
    return lambda store: commit(store, draft)
