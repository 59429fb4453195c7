"""Logs of workers outlive the launcher's temporary folder, whose output is in object storage."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.groups import Crew, GroupJob, GroupOutcome, work_on_group
from flows.kept_logs import MOST_BYTES, keep_log, kept_log
from tests.peers.cloud_storage import CloudStorage
from transforms.store import open_store

Script = Callable[[str], Path]


def worked(path: Path, log: Path, kept: str) -> GroupOutcome:
    job = GroupJob(0, 1, "r1", "/w.toml", "plan.parquet", "/c.json", str(log), None, kept_log=kept)
    return work_on_group(job, [sys.executable, str(path)], Crew(), lambda _: None, lambda _: None)


def test_the_log_of_a_worker_that_died_is_in_the_output_and_its_sentence_says_where(
    script: Script, tmp_path: Path, one_cloud_storage: CloudStorage
) -> None:
    output = f"{one_cloud_storage.bucket()}/out"
    path = script("import os, sys\nsys.stderr.write('out of something\\n')\nos.kill(os.getpid(), 9)")
    kept = kept_log(f"{output}/", "r1", "group-0000.log")
    outcome = worked(path, tmp_path / "logs/group-0000.log", kept)
    assert kept == f"{output}/runs/r1/logs/group-0000.log"
    assert outcome.end.error == (
        f"it was killed by signal SIGKILL: out of something. Log: {output}/runs/r1/logs/group-0000.log"
    )
    assert open_store(output).read("runs/r1/logs/group-0000.log") == b"out of something\n"


def test_of_a_long_log_the_end_is_kept_from_a_whole_line_on(
    tmp_path: Path, one_cloud_storage: CloudStorage
) -> None:
    store, log = open_store(f"{one_cloud_storage.bucket()}/out"), tmp_path / "a.log"
    line = b"x" * 999 + b"\n"
    log.write_bytes(line * (MOST_BYTES // 1000 + 10) + b"the end\n")
    assert keep_log(log, f"{store.root}/a.log")
    found = store.read("a.log").splitlines(keepends=True)
    assert (found[0], found[-1]) == (b"(earlier lines are left out)\n", b"the end\n")
    assert set(found[1:-1]) == {line}


def test_where_a_log_can_not_be_kept_the_group_ends_as_it_would_have(
    script: Script, tmp_path: Path, one_cloud_storage: CloudStorage, caplog: pytest.LogCaptureFixture
) -> None:
    path, log = script("import sys\nsys.exit(7)"), tmp_path / "logs/group-0000.log"
    outcome = worked(path, log, "gs://no-such-bucket-here/out/runs/r1/logs/group-0000.log")
    assert outcome.end.error == f"it ended with exit code 7. Log: {log}"
    assert "could not be kept" in caplog.text


def test_logs_in_a_local_output_stay_where_they_are_written() -> None:
    assert kept_log("/data/out", "r1", "group-0000.log") == ""
