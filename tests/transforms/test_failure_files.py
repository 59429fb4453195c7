"""`failures/`: what readers see is what the commit records have, after any crash and with any files there."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.arrow import FAILURES_SCHEMA
from schemas.batches import CommitRecord, PartRef
from schemas.errors import StoreError
from tests.support.failing import batch, draft, draft_of, rows_of
from tests.support.stepping import MUTATIONS, Countdown, CrashError, SteppedStore
from transforms.commit import Draft
from transforms.commit_index import read_index
from transforms.compaction import Compactor
from transforms.failure_files import add_failures, read_failure_files, show_failures
from transforms.failures import failures_left
from transforms.layout import commit_path
from transforms.store import LocalStore, Store

Shown = Counter[tuple[str, int, int]]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "out"))


def commit(store: Store, number: int, attempt: int = 1, rows: int = 1) -> CommitRecord:
    made = draft(number, attempt, rows)
    assert store.create(commit_path(made.record.batch_id, attempt), made.to_bytes())
    return made.record


def show(store: Any, few_files: int = 16) -> None:
    show_failures(store, read_index(LocalStore(store.root)).committed, few_files)


def shown(root: str) -> Shown:
    """How often readers find each failing batch and attempt, with how many rows."""
    found: Counter[tuple[str, int]] = Counter()
    for path in Path(root, "failures").glob("*.parquet"):
        lineage = pq.read_table(path).column("lineage").to_pylist()
        found.update((row["batch_id"], row["attempt"]) for row in lineage)
    return Counter({(name, attempt, count): 1 for (name, attempt), count in found.items()})


def stand(root: str) -> Shown:
    """The failures that the newest attempts have left."""
    index = read_index(LocalStore(root)).committed
    standings = [index.standing(int(row)) for row in index.rows_with_failures()]
    return Counter((s.batch_id, s.attempt, sum(s.failures_by_class.values())) for s in standings)


def test_failures_of_all_batches_stand_in_one_file_that_any_reader_takes(store: LocalStore) -> None:
    for number in range(300):
        commit(store, number, rows=number % 3)
    show(store)
    (path,) = store.list("failures")
    assert path == f"failures/{hashlib.sha256(store.read(path)).hexdigest()[:32]}.parquet"
    assert pl.scan_parquet(f"{store.root}/failures/*.parquet").select(pl.len()).collect().item() == 300
    assert shown(store.root) == stand(store.root)
    assert pq.read_table(store.local_path(path)).schema.equals(FAILURES_SCHEMA, check_metadata=False)


def test_what_is_shown_already_is_not_written_again(store: LocalStore) -> None:
    commit(store, 1)
    show(store)
    changes: list[str] = []
    show(SteppedStore(store.root, lambda operation, _: changes.append(operation)))
    assert not MUTATIONS & set(changes)


def test_a_further_attempt_takes_its_batchs_rows_away_and_no_others(store: LocalStore) -> None:
    for number in range(3):
        commit(store, number, rows=2)
    show(store)
    commit(store, 1, attempt=2, rows=1)
    commit(store, 2, attempt=2, rows=0)
    show(store)
    assert shown(store.root) == Counter({(batch(0), 1, 2): 1, (batch(1), 2, 1): 1})
    commit(store, 0, attempt=2, rows=0)
    commit(store, 1, attempt=3, rows=0)
    show(store)
    assert list(store.list("failures")) == []


def test_many_small_files_become_one(store: LocalStore) -> None:
    for number in range(5):
        add_failures(store, [(commit(store, number).batch_id, 1)])
    show(store, few_files=5)
    assert len(list(store.list("failures"))) == 5
    show(store, few_files=4)
    assert len(list(store.list("failures"))) == 1
    assert shown(store.root) == stand(store.root)


def test_many_rows_are_never_in_memory_together(store: LocalStore) -> None:
    for number in range(5):
        commit(store, number, rows=20_000)
    show(store)
    files, _ = read_failure_files(store)
    assert sorted(file.rows for file in files) == [40_000, 60_000]
    assert shown(store.root) == stand(store.root)


def test_long_answers_are_never_in_memory_together(store: LocalStore) -> None:
    for number in range(4):
        table = rows_of(number, 1, 1)
        place = table.schema.get_field_index("answer")
        table = table.set_column(place, table.schema.field(place), pa.array(["a" * (6 << 20)]))
        made = draft_of(number, 1, table)
        store.create(commit_path(batch(number), 1), made.to_bytes())
    show(store)
    files, _ = read_failure_files(store)
    assert sorted(file.rows for file in files) == [1, 3]


def test_files_of_others_are_left_alone_and_damaged_ones_made_anew(store: LocalStore) -> None:
    commit(store, 1)
    show(store)
    (path,) = store.list("failures")
    whole = store.read(path)
    store.local_path(path).write_bytes(whole[: len(whole) // 2])
    store.create("failures/notes.txt", b"mine")
    store.create("failures/mine.parquet", b"mine")
    show(store)
    assert store.read(path) == whole
    assert {*store.list("failures")} == {path, "failures/notes.txt", "failures/mine.parquet"}


def test_a_file_whose_rows_are_damaged_is_no_obstacle_to_a_further_attempt(store: LocalStore) -> None:
    for number in range(3):
        commit(store, number, rows=2)
    show(store)
    (path,) = store.list("failures")
    data = bytearray(store.read(path))
    data[4:2000] = bytes(1996)
    store.local_path(path).write_bytes(bytes(data))
    commit(store, 1, attempt=2, rows=1)
    show(store)
    assert shown(store.root) == stand(store.root)


@pytest.mark.parametrize("has_gone", [False, True])
def test_a_listing_that_lags_shows_nothing_twice_and_misses_nothing(
    store: LocalStore, has_gone: bool
) -> None:
    class Lagging(LocalStore):
        def list(self, prefix: str) -> Iterator[str]:
            return iter(before if prefix == "failures" else super().list(prefix))

    before: list[str] = []
    lagging = Lagging(store.root)
    add_failures(lagging, [(commit(store, 1).batch_id, 1)])
    if has_gone:  # and is listed still
        before = list(store.list("failures"))
        store.delete(before[0])
    commit(store, 2)  # so that no file of the same bytes is written again
    show(lagging)
    assert shown(store.root) == stand(store.root)


def test_rows_that_two_launchers_have_shown_stand_there_once_in_the_end(store: LocalStore) -> None:
    names = [(commit(store, number).batch_id, 1) for number in range(3)]
    add_failures(store, names[:2])
    add_failures(store, names[1:])
    show(store)
    assert shown(store.root) == stand(store.root)


@pytest.mark.parametrize("seed", range(12))
def test_a_crash_at_any_change_takes_nothing_away_and_the_next_run_shows_what_stands(
    tmp_path: Path, seed: int
) -> None:
    source, store = Random(seed), LocalStore(str(tmp_path / "out"))
    newest: dict[int, int] = {}
    for _ in range(6):
        first = [number for number in range(8) if number not in newest and source.random() < 0.5]
        again = [number for number in newest if source.random() < 0.3]
        for number in (*first, *again):
            newest[number] = newest.get(number, 0) + 1
            commit(store, number, newest[number], rows=source.choice((0, 1, 1, 2)))
        before = set(shown(store.root)) & set(stand(store.root))
        crashing = SteppedStore(store.root, Countdown(source.randrange(4)))
        try:
            add_failures(crashing, [(batch(n), 1) for n in first])  # type: ignore[arg-type]
            show(crashing, few_files=source.choice((0, 1, 16)))
        except CrashError:
            after = {(name, attempt) for name, attempt, _ in shown(store.root)}
            assert after >= {(name, attempt) for name, attempt, _ in before}
        if source.random() < 0.5:
            show(store)
            assert shown(store.root) == stand(store.root)
    show(store)
    assert shown(store.root) == stand(store.root)


# ---- while a run goes on


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_failures_of_a_first_attempt_are_shown_every_so_often_while_a_run_goes_on(store: LocalStore) -> None:
    clock = Clock()
    notes = Compactor(store, show_every_s=30.0, clock=clock)
    for number in range(7):
        clock.now += 10.0
        notes.note(commit(store, number))
    notes.close()
    files, _ = read_failure_files(store)
    assert sorted(len(file.attempts) for file in files) == [1, 3, 3]
    assert shown(store.root) == stand(store.root)


def test_what_is_tried_again_is_exchanged_at_the_end_so_that_nothing_is_there_twice(
    store: LocalStore,
) -> None:
    commit(store, 1, rows=2)
    show(store)
    clock = Clock()
    notes = Compactor(store, clock=clock)
    clock.now = 1000.0
    notes.note(commit(store, 1, attempt=2, rows=1))
    notes.close()
    assert shown(store.root) == Counter({(batch(1), 1, 2): 1})
    show(store)
    assert shown(store.root) == Counter({(batch(1), 2, 1): 1})


def test_a_disk_that_fails_meanwhile_leaves_it_to_the_end_of_the_run(
    store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(LocalStore):
        def create(self, path: str, data: bytes) -> bool:
            raise OSError(28, "No space left on device")

    record = commit(store, 1)
    notes = Compactor(Full(store.root))
    notes.note(record)
    notes.close()
    assert "failures of 1 batches are shown later" in caplog.text
    show(store)
    assert shown(store.root) == stand(store.root)


# ---- what travels with a record


def test_a_record_with_failures_of_another_is_named(store: LocalStore) -> None:
    path = commit_path(batch(1), 1)
    store.create(path, Draft(draft(1, 1, 2).record, draft(1, 1, 3).failures).to_bytes())
    with pytest.raises(StoreError, match=rf"{path}: its failures have .* bytes.*Someone changed it"):
        failures_left(store, batch(1), 1)


@pytest.mark.parametrize(
    "tail", [b"", b"{", b"[]", b'{"failures": 1}', b'{"failures": "*"}', b'{"others": ""}']
)
def test_a_damaged_tail_is_named_and_not_believed(store: LocalStore, tail: bytes) -> None:
    store.create(commit_path(batch(1), 1), draft(1, 1, 2).record.to_json() + b"\n" + tail)
    with pytest.raises(StoreError, match="its failures have 0 bytes"):
        failures_left(store, batch(1), 1)


def test_a_record_that_is_gone_is_named(store: LocalStore) -> None:
    with pytest.raises(StoreError, match=r"commits/.* was committed and is not there"):
        add_failures(store, [(batch(1), 1)])


# ---- outputs of earlier versions


def of_the_first_version(store: LocalStore, number: int, *, is_published: bool) -> tuple[str, pa.Table]:
    """A record whose failures are a part of its own; where that stands in the end, and its rows."""
    table = rows_of(number, 1, 2)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    staged, final = (
        f"_staging/{batch(number)}.0001.w/_failures.parquet",
        f"failures/{batch(number)}.0001.parquet",
    )
    store.create(final if is_published else staged, data)
    part = PartRef("failures", "", staged, final, 2, len(data), hashlib.sha256(data).hexdigest())
    record = replace(draft(number, 1, 2).record, parts=(part,), version="commit/1")
    store.create(commit_path(batch(number), 1), record.to_json())
    return final, table


@pytest.mark.parametrize("is_published", [True, False])
def test_failures_that_an_earlier_version_left_are_read_where_they_are(
    store: LocalStore, is_published: bool
) -> None:
    _, table = of_the_first_version(store, 1, is_published=is_published)
    assert failures_left(store, batch(1), 1).equals(table)


def test_a_file_of_an_earlier_version_stays_until_a_further_attempt_is_committed(store: LocalStore) -> None:
    old, _ = of_the_first_version(store, 1, is_published=True)
    commit(store, 2)
    show(store, few_files=0)
    assert old in set(store.list("failures"))
    assert shown(store.root) == stand(store.root)
    commit(store, 1, attempt=2, rows=1)
    show(store)
    assert old not in set(store.list("failures"))
    assert shown(store.root) == stand(store.root)


def test_a_lost_file_of_an_earlier_version_is_named(store: LocalStore) -> None:
    old, _ = of_the_first_version(store, 1, is_published=True)
    store.delete(old)
    with pytest.raises(StoreError, match=rf"{old} was committed and is not there"):
        failures_left(store, batch(1), 1)
