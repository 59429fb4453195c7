from pathlib import Path

import pytest

from tests.support.records import commit_record
from transforms.layout import (
    commit_path,
    failures_path,
    list_commits,
    newest_attempt,
    parse_name,
    read_commit,
    results_path,
    run_path,
    staging_folder,
)
from transforms.store import LocalStore

BATCH = "0123456789abcdef" * 2


def test_the_names_are_those_that_users_glob() -> None:
    assert results_path("ask", BATCH, 2) == f"results/route=ask/{BATCH}.0002.parquet"
    assert failures_path(BATCH) == f"failures/{BATCH}.parquet"
    assert commit_path(BATCH, 12345) == f"commits/{BATCH}.12345.json"
    assert staging_folder(BATCH, 1, "00ff") == f"_staging/{BATCH}.0001.00ff"
    assert run_path("r1", "plan.parquet") == "runs/r1/plan.parquet"


@pytest.mark.parametrize(
    "path", [results_path("a", BATCH, 7), commit_path(BATCH, 7), staging_folder(BATCH, 7, "w")]
)
def test_a_name_says_which_batch_and_attempt_it_is_of(path: str) -> None:
    name = parse_name(path.rsplit("/", 1)[1])
    assert name is not None
    assert name[:2] == (BATCH, 7)


@pytest.mark.parametrize("name", ["notes.txt", f"{BATCH}.json", f"{BATCH}.0001.json.bak", "x.0001.json", ""])
def test_other_names_are_not_taken_for_ours(name: str) -> None:
    assert parse_name(name) is None


def test_commits_are_listed_by_attempt_and_strangers_left_alone(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    for attempt in (2, 1, 10_000, 9_999):
        store.create(commit_path(BATCH, attempt), b"{}")
    store.create(f"commits/{BATCH}.0003.json.bak", b"{}")
    store.create("commits/notes.txt", b"{}")
    assert list_commits(store) == {BATCH: [1, 2, 9_999, 10_000]}
    assert newest_attempt(store, BATCH) == 2
    assert newest_attempt(store, "0" * 32) == 0


def test_a_commit_record_is_read_by_batch_and_attempt(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.create(commit_path(BATCH, 1), commit_record().to_json())
    assert read_commit(store, BATCH, 1) == commit_record()
    with pytest.raises(FileNotFoundError):
        read_commit(store, BATCH, 2)
