"""What stands where in an output folder. Names are made of ids of ours alone, never of data."""

from __future__ import annotations

import json

from schemas.batches import CommitRecord
from transforms.store import Store

STAGING = "_staging"
COMMITS = "commits"
FAILURES = "failures"
RESULTS = "results"
LEDGER = "ledger"


def results_path(route: str, batch_id: str, attempt: int) -> str:
    """Final name of a results part."""
    return f"{RESULTS}/route={route}/{batch_id}.{attempt:04d}.parquet"


def failures_path(batch_id: str, attempt: int) -> str:
    """Final name of a failures part."""
    return f"{FAILURES}/{batch_id}.{attempt:04d}.parquet"


def commit_path(batch_id: str, attempt: int) -> str:
    """Name of a commit record."""
    return f"{COMMITS}/{batch_id}.{attempt:04d}.json"


def staging_folder(batch_id: str, attempt: int, writer: str) -> str:
    """Folder of the parts that one writer stages for one attempt."""
    return f"{STAGING}/{batch_id}.{attempt:04d}.{writer}"


def run_path(run_id: str, name: str) -> str:
    """Name of a file of a run."""
    return f"runs/{run_id}/{name}"


def newest_commits(store: Store) -> dict[str, int]:
    """The newest committed attempt of every batch, from the names of the commit records alone."""
    newest: dict[str, int] = {}
    for path in store.list(COMMITS):
        batch, attempt, _ = path.rsplit("/", 1)[1].split(".", 2)
        newest[batch] = max(newest.get(batch, 0), int(attempt))
    return newest


def read_commit(store: Store, batch_id: str, attempt: int) -> CommitRecord:
    """The commit record of an attempt; FileNotFoundError if it is not committed."""
    return CommitRecord.from_dict(json.loads(store.read(commit_path(batch_id, attempt))))
