"""Compacted commit records: what is read, asked for, written and lost, and what a resume costs."""

from __future__ import annotations

import hashlib
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from schemas.batches import CommitRecord
from schemas.errors import StoreError
from tests.support.records import REF, commit_record, run_context
from transforms.attempt_keys import unpacked_keys
from transforms.batch_ids import name_of
from transforms.batch_refs import BatchRefs
from transforms.commit_index import CommitIndex, read_index
from transforms.commit_survey import listing_is_cheaper
from transforms.compaction import Compactor, take_stock
from transforms.layout import commit_path, plan_path
from transforms.plan_file import plan_bytes
from transforms.store import LocalStore, Store
from transforms.tally import add_up
from transforms.verify_commits import check_compacted

SCHEMA = pa.schema([])
DONE = replace(commit_record(), failures=0, failures_by_class={}, assignments=4, results=4, ambiguous=())


def batch(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def record(number: int, attempt: int = 1, **changes: Any) -> CommitRecord:
    ref = replace(REF, batch_id=batch(number), attempt=attempt)
    return replace(DONE, batch_id=batch(number), attempt=attempt, ref=ref, **changes)


def plan(store: Store, run_id: str, *numbers: int, attempt: int = 1) -> None:
    refs = BatchRefs.of(replace(REF, batch_id=batch(n), attempt=attempt) for n in numbers)
    store.create(plan_path(run_id), plan_bytes(refs, SCHEMA))


def commit(store: Store, *records: CommitRecord) -> None:
    for each in records:
        assert store.create(commit_path(each.batch_id, each.attempt), each.to_json())


def attempts(index: CommitIndex) -> set[tuple[str, int]]:
    """What an index says is committed, by its lookup and by its tables, which must agree."""
    rows = [
        (row["batch_id"].hex(), row["attempt"])
        for t in index.tables(["attempt", "batch_id"])
        for row in t.to_pylist()
    ]
    assert len(set(rows)) == len(rows), "an attempt stands twice"
    newest = {name: max(a for b, a in rows if b == name) for name, _ in rows}
    assert newest == dict(zip(index.committed, index.committed.attempts, strict=True))
    return set(rows)


def names(*numbers: int, attempt: int = 1) -> set[tuple[str, int]]:
    return {(batch(n), attempt) for n in numbers}


def begun(index: CommitIndex) -> set[tuple[str, int]] | None:
    if index.begun is None:
        return None
    batches, attempts = unpacked_keys(index.begun)
    return set(zip(map(name_of, batches), map(int, attempts), strict=True))


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "out"))


class CountedStore:
    """A local store that counts what is asked of it, by operation and folder."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.asked: Counter[tuple[str, str]] = Counter()
        self._store = LocalStore(root)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)

        def counted(path: Any, *rest: Any) -> Any:
            self.asked[name, str(path).split("/")[0]] += 1
            return found(path, *rest)

        return counted


def test_what_a_run_commits_is_compacted_and_known_to_the_next(store: Store) -> None:
    plan(store, "run-1", 1, 2, 3)
    commit(store, record(1), record(2))
    index = take_stock(store)
    assert attempts(index) == names(1, 2)
    assert len(list(store.list("compacted"))) == 1
    again = read_index(store)
    assert attempts(again) == names(1, 2)
    assert begun(again) == names(3)
    assert again.loose == ()


def test_who_comes_late_is_found_after_compaction_and_his_name_stays_taken(store: Store) -> None:
    plan(store, "run-1", 1, 2)
    commit(store, record(1))
    take_stock(store)
    commit(store, record(2, writer="zombie"))  # after its run was settled without it
    assert attempts(read_index(store)) == names(1, 2)
    assert attempts(take_stock(store)) == names(1, 2)
    assert not store.create(commit_path(batch(1), 1), record(1, writer="late").to_json())


def test_a_newer_attempt_counts_although_an_older_one_is_compacted(store: Store) -> None:
    first = record(1, results=2, failures=2, failures_by_class={"refused": 2})
    plan(store, "run-1", 1)
    commit(store, first)
    take_stock(store)
    plan(store, "run-2", 1, attempt=2)  # it was asked to retry refusals; later runs are not
    plan(store, "run-3")
    take_stock(store)
    commit(store, record(1, attempt=2, results=1, failures=1, failures_by_class={"refused": 1}))
    index = read_index(store)
    assert list(index.committed.attempts) == [2]
    assert attempts(take_stock(store)) == names(1) | names(1, attempt=2)
    sums = add_up(read_index(store), run_context(store.root, run_id="run-2"))
    assert (sums.results, sums.failures_by_class, sums.batches) == (3, Counter(refused=1), 1)


def test_attempts_that_a_later_run_planned_again_are_asked_for_once(local: LocalStore) -> None:
    plan(local, "run-1", *range(50))
    commit(local, record(0))
    take_stock(local)
    plan(local, "run-2", *range(1, 50))
    take_stock(local)
    counted = CountedStore(local.root)
    read_index(counted)  # type: ignore[arg-type]
    assert counted.asked["open", "runs"] == 1  # the first run's plan says nothing new


@pytest.mark.parametrize("damage", [lambda d: d[:-9], lambda d: d[:50] + b"\0\0" + d[52:], lambda d: b""])
def test_a_damaged_file_is_noticed_told_and_made_anew(
    local: LocalStore, damage: Callable[[bytes], bytes]
) -> None:
    plan(local, "run-1", 1, 2)
    commit(local, record(1), record(2))
    take_stock(local)
    (path,) = local.list("compacted")
    local.local_path(path).write_bytes(damage(local.read(path)))
    told: list[tuple[str, str, str]] = []
    check_compacted(local, {batch(1): [1], batch(2): [1]}, lambda *finding: told.append(finding))
    assert [(kind, place) for kind, place, _ in told] == [("unfinished", path)]
    assert attempts(read_index(local)) == names(1, 2)
    assert attempts(take_stock(local)) == names(1, 2)
    (new,) = local.list("compacted")
    check_compacted(local, {batch(1): [1], batch(2): [1]}, lambda *finding: pytest.fail(str(finding)))
    assert local.read(new)[:4] == b"PAR1"


def test_files_that_contradict_each_other_are_both_made_anew_from_the_record(local: LocalStore) -> None:
    plan(local, "run-1", 1)
    commit(local, record(1))
    take_stock(local)
    notes = Compactor(local)
    notes.note(record(1, results=3))  # it says something else than the record
    notes.close()
    assert len(list(local.list("compacted"))) == 2
    for index in (read_index(local), take_stock(local), read_index(local)):
        assert [table.column("results").to_pylist() for table in index.tables(["results"])] == [[4]]
    assert len(list(local.list("compacted"))) == 1


def test_a_proof_finds_rows_that_differ_from_their_records_and_records_that_runs_would_not_see(
    local: LocalStore,
) -> None:
    plan(local, "run-1", 1, 2)
    notes = Compactor(local)
    for each in (record(1, results=3), record(2)):
        notes.note(each)
    notes.close()
    commit(local, record(1), record(9))
    told: list[tuple[str, str, str]] = []
    check_compacted(local, {batch(1): [1], batch(9): [1]}, lambda *finding: told.append(finding))
    (path,) = local.list("compacted")
    found = sorted((place, sentence.split(" ")[0]) for _, place, sentence in told)
    assert found == sorted([(path, "says"), (path, "has"), (commit_path(batch(9), 1), "is")])
    assert {kind for kind, _, _ in told} == {"contradiction"}


def test_what_is_reported_while_a_run_goes_on_is_compacted_without_being_read(local: LocalStore) -> None:
    plan(local, "run-1", *range(7))
    commit(local, *(record(n) for n in range(6)))
    counted = CountedStore(local.root)
    notes = Compactor(counted, piece=2)  # type: ignore[arg-type]
    for n in range(5):
        notes.note(record(n))
    notes.close()
    assert counted.asked == {("create", "compacted"): 3}
    counted.asked.clear()
    assert attempts(read_index(counted)) == names(*range(6))  # type: ignore[arg-type]
    assert counted.asked["read", "commits"] == 2  # the one that nobody reported, and the one that is open


def test_records_that_wait_to_be_compacted_do_not_wait_as_objects(local: LocalStore) -> None:
    class Watched(CommitRecord):
        """One that can be referred to weakly."""

    alive: weakref.WeakValueDictionary[int, Watched] = weakref.WeakValueDictionary()
    then: list[int] = []

    class Watching(LocalStore):
        def create(self, path: str, data: bytes) -> bool:
            then.append(len(alive))
            return super().create(path, data)

    plan(local, "run-1", *range(600))
    notes = Compactor(Watching(local.root), piece=512)
    for n in range(600):
        each = Watched(**{name.name: getattr(record(n), name.name) for name in fields(CommitRecord)})
        alive[n] = each
        notes.note(each)
    notes.close()
    assert len(then) == 2
    assert max(then) <= 600 - 256
    assert attempts(read_index(local)) == names(*range(600))


def test_many_small_files_become_one_and_nothing_is_lost_or_doubled(local: LocalStore) -> None:
    for n in range(6):
        plan(local, f"run-{n}", n)
        commit(local, record(n))
        take_stock(local, few_files=4)
    assert len(list(local.list("compacted"))) < 3
    assert attempts(read_index(local)) == names(*range(6))
    counted = CountedStore(local.root)
    read_index(counted)  # type: ignore[arg-type]
    assert counted.asked["open", "runs"] == 0, "every run is covered"


def test_a_file_whose_rows_come_together_again_stays(local: LocalStore) -> None:
    """As the last piece of many small ones does now and then: it has the name that it had."""
    plan(local, "run-0", 0, 1)
    commit(local, record(0), record(1))
    assert attempts(take_stock(local)) == names(0, 1)
    paths = list(local.list("compacted"))
    index = take_stock(local, few_files=0)
    assert list(local.list("compacted")) == paths
    assert [rows.path for rows in index.files] == paths
    assert attempts(read_index(local)) == names(0, 1)


class _CrashError(Exception):
    pass


class CrashingStore(LocalStore):
    """Dies before, or right after, its n-th change."""

    def __init__(self, root: str, at: int, *, after: bool) -> None:
        super().__init__(root)
        self._left, self._after = at, after

    def _change(self, work: Callable[[], Any]) -> Any:
        self._left -= 1
        if self._left == -1 and not self._after:
            raise _CrashError
        done = work()
        if self._left == -1:
            raise _CrashError
        return done

    def create(self, path: str, data: bytes) -> bool:
        return bool(self._change(lambda: LocalStore.create(self, path, data)))

    def delete(self, path: str) -> None:
        self._change(lambda: LocalStore.delete(self, path))


def _half_done(root: str) -> LocalStore:
    """Compacted files to join, a damaged one, a late second attempt, and records in no file."""
    store = LocalStore(root)
    failed = record(0, results=2, failures=2, failures_by_class={"timeout": 2})
    plan(store, "run-0", 0, 1, 2, 3)
    commit(store, failed)
    take_stock(store)
    commit(store, record(1))
    take_stock(store)
    commit(store, record(2))
    take_stock(store)
    store.local_path(min(store.list("compacted"))).write_bytes(b"torn")
    plan(store, "run-1", 0, attempt=2)
    commit(store, record(0, attempt=2, results=2))
    return store


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_change_of_a_compaction_loses_nothing(tmp_path: Path, after: bool) -> None:
    expected = names(0, 1, 2) | names(0, attempt=2)
    for step in range(20):
        root = str(tmp_path / str(step))
        _half_done(root)
        try:
            take_stock(CrashingStore(root, step, after=after), few_files=1)
        except _CrashError:
            assert attempts(read_index(LocalStore(root))) == expected
            assert attempts(take_stock(LocalStore(root), few_files=1)) == expected
        else:
            assert step >= 3
            return
        assert begun(read_index(LocalStore(root))) == names(3)
    pytest.fail("compaction never ended")


def test_a_resume_costs_a_few_reads_and_what_is_open(local: LocalStore) -> None:
    for size, still_open in ((40, 3), (400, 3), (400, 30)):
        store = LocalStore(f"{local.root}-{size}-{still_open}")
        plan(store, "run-1", *range(size))
        notes = Compactor(store)
        for n in range(still_open, size):
            notes.note(record(n))
        notes.close()
        counted = CountedStore(store.root)
        index = take_stock(counted)  # type: ignore[arg-type]
        assert len(index.committed) == size - still_open
        assert counted.asked == {
            ("list", "compacted"): 1,
            ("folders", "runs"): 1,
            ("read", "compacted"): 1,
            ("open", "runs"): 1,
            ("read", "commits"): still_open,
        }


@pytest.mark.parametrize(
    ("asked", "there", "listed"),
    [(0, 10**6, False), (64, 0, False), (1000, 10**6, False), (10**5, 10**6, True)],
)
def test_names_are_listed_only_where_that_takes_fewer_round_trips(
    asked: int, there: int, listed: bool
) -> None:
    assert listing_is_cheaper(asked, there) is listed


def test_many_that_are_open_are_listed_and_the_same_are_found(local: LocalStore) -> None:
    plan(local, "run-1", *range(300))
    commit(local, *(record(n) for n in range(0, 300, 100)))
    notes = Compactor(local)
    notes.note(record(0))
    notes.close()
    counted = CountedStore(local.root)
    index = read_index(counted)  # type: ignore[arg-type]
    assert attempts(index) == names(0, 100, 200)
    assert counted.asked["list", "commits"] == 1
    assert counted.asked["read", "commits"] == 2


def test_a_plan_that_cannot_be_read_makes_a_run_list(local: LocalStore) -> None:
    plan(local, "run-1", 1)
    commit(local, record(1))
    take_stock(local)
    local.create(plan_path("run-2"), b"no Parquet")
    commit(local, record(2))
    assert attempts(take_stock(local)) == names(1, 2)


def test_a_run_that_lost_the_output_compacts_nothing_and_says_so(
    local: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(LocalStore):
        def create(self, path: str, data: bytes) -> bool:
            raise StoreError("the disk is full")

    notes = Compactor(Full(local.root))
    notes.note(record(1))
    notes.close()
    assert "1 commit records are compacted later: the disk is full" in caplog.text
