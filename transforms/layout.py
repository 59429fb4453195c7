"""What stands where in an output folder. Names are made of ids of ours alone, never of data."""

from __future__ import annotations

import re
from collections import defaultdict

from schemas.batches import CommitRecord
from transforms.commit_file import parse_commit
from transforms.store import Store

STAGING = "_staging"
COMMITS = "commits"
COMPACTED = "compacted"
RUNS = "runs"
FAILURES = "failures"
RESULTS = "results"
LEDGER = "ledger"
_BATCH_ID = re.compile(r"[0-9a-f]{32}")
_OF_AN_ATTEMPT = re.compile(r"(?P<batch>[0-9a-f]{32})\.(?P<attempt>\d{4,})\.(?P<rest>\w+)")


def results_path(route: str, batch_id: str, attempt: int) -> str:
    """Final name of a results part."""
    return f"{RESULTS}/route={route}/{batch_id}.{attempt:04d}.parquet"


def failures_path(digest: str) -> str:
    """Name of a file of failures, after the digest of its bytes."""
    return f"{FAILURES}/{digest}.parquet"


def commit_path(batch_id: str, attempt: int) -> str:
    """Name of a commit record."""
    return f"{COMMITS}/{batch_id}.{attempt:04d}.json"


def staging_folder(batch_id: str, attempt: int, writer: str) -> str:
    """Folder of the parts that one writer stages for one attempt."""
    return f"{STAGING}/{batch_id}.{attempt:04d}.{writer}"


def plan_path(run_id: str) -> str:
    """Name of a run's frozen plan."""
    return run_path(run_id, "plan.parquet")


def run_path(run_id: str, name: str) -> str:
    """Name of a file of a run."""
    return f"{RUNS}/{run_id}/{name}"


def compacted_path(digest: str) -> str:
    """Name of a file of compacted commit records, after the digest of its bytes."""
    return f"{COMPACTED}/{digest}.parquet"


def report_path(run_id: str, batch_id: str, attempt: int) -> str:
    """Where a worker that its launcher can't hear leaves what it says of a batch that was not committed."""
    return run_path(run_id, f"reports/{batch_id}.{attempt:04d}.json")


def stop_path(run_id: str) -> str:
    """What a launcher leaves there to stop workers that it can't signal."""
    return run_path(run_id, "stop")


def parse_name(name: str) -> tuple[str, int, str] | None:
    """Batch, attempt and rest (extension or writer) of a name made above; None for any other name."""
    found = _OF_AN_ATTEMPT.fullmatch(name)
    return (found["batch"], int(found["attempt"]), found["rest"]) if found else None


def is_batch_id(name: str) -> bool:
    """Whether a name is that of a batch."""
    return _BATCH_ID.fullmatch(name) is not None


def list_commits(store: Store) -> dict[str, list[int]]:
    """The committed attempts of every batch in order, from the names of the commit records alone."""
    attempts: dict[str, list[int]] = defaultdict(list)
    for path in store.list(COMMITS):
        match parse_name(path.rsplit("/", 1)[1]):
            case batch, attempt, "json":
                attempts[batch].append(attempt)
    return {batch: sorted(found) for batch, found in attempts.items()}


def newest_attempt(store: Store, batch_id: str) -> int:
    """The newest committed attempt of a batch, asked for by name from the first; 0 if there is none."""
    attempt = 0
    while store.exists(commit_path(batch_id, attempt + 1)):
        attempt += 1
    return attempt


def read_commit(store: Store, batch_id: str, attempt: int) -> CommitRecord:
    """The commit record of an attempt; FileNotFoundError if it is not committed."""
    return parse_commit(store.read(commit_path(batch_id, attempt)))[0]
