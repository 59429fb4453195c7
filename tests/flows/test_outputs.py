"""What an output folder says about itself."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flows.asked import note_question, open_question
from flows.outputs import launched_with, read_failures, read_status
from flows.parameters import EnrichParameters
from schemas.arrow import FAILURES_SCHEMA
from schemas.batches import BatchRef, CommitRecord, PartRef
from schemas.errors import OutputError
from schemas.ids import sha256_hex
from schemas.run import Manifest
from transforms.batch_refs import BatchRefs
from transforms.commit_file import commit_bytes, packed
from transforms.layout import commit_path
from transforms.output_lock import LOCK, is_locked
from transforms.plan_file import plan_bytes
from transforms.store import open_store

Make = Callable[..., Manifest]
Ref = Callable[..., BatchRef]
Record = Callable[..., CommitRecord]


class Folder:
    """An output folder that is put together by hand."""

    def __init__(self, root: Path, record: Record) -> None:
        self.root = root
        self._record = record
        self.write(
            "switchgear.json", b'{"version":"output/1","workload":"w","workload_sha256":"a","rehearsal":true}'
        )

    def __str__(self) -> str:
        return str(self.root)

    def write(self, path: str, data: bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def plan(self, run_id: str, refs: list[BatchRef]) -> None:
        self.write(
            f"runs/{run_id}/plan.parquet", plan_bytes(BatchRefs.of(refs), pa.schema([("id", pa.string())]))
        )

    def settle(self, manifest: Manifest) -> None:
        self.write(f"runs/{manifest.run_id}/manifest.json", manifest.to_json())

    def commit(self, ref: BatchRef, failures: list[dict[str, Any]] | None = None) -> None:
        rows = [failure_row(ref, **values) for values in failures or ()]
        classes = Counter(row["error_class"] for row in rows)
        data = packed(pa.Table.from_pylist(rows, schema=FAILURES_SCHEMA))
        part = PartRef("failures", "", "", "", len(rows), len(data), sha256_hex(data))
        counts = {"failures": len(rows), "failures_by_class": dict(classes)}
        record = replace(self._record(ref), parts=(part,) if rows else (), **counts)
        self.write(commit_path(ref.batch_id, ref.attempt), commit_bytes(record, data))


def failure_row(ref: BatchRef, **values: Any) -> dict[str, Any]:
    amount = values.pop("amount", Decimal("0.001"))
    return {
        "document_id": "d1",
        "error_class": "refused",
        "message": "the model refused",
        "retryable": False,
        "answer": None,
        "cost": {"amount": amount, "basis": "tokens", "calls": 1},
        "lineage": {
            "batch_id": ref.batch_id,
            "attempt": ref.attempt,
            "route": "summary",
            "source": {"uri": ref.uri, "row_group": 0, "row": 7},
        },
        **values,
    }


@pytest.fixture
def folder(tmp_path: Path, record: Record) -> Folder:
    return Folder(tmp_path / "output", record)


def test_a_folder_that_is_not_ours_is_refused_by_every_reader(tmp_path: Path) -> None:
    for read in (read_status, launched_with, lambda output: list(read_failures(output))):
        with pytest.raises(OutputError, match="is no Switchgear output"):
            read(str(tmp_path))


def test_an_output_without_any_run_is_empty(folder: Folder) -> None:
    status = read_status(str(folder))

    assert (status.state, status.live, status.manifest) == ("empty", None, None)


@pytest.mark.parametrize("state", ["complete", "incomplete"])
def test_a_settled_output_stands_where_its_newest_manifest_says(
    state: str, folder: Folder, manifest: Make
) -> None:
    folder.settle(manifest(run_id="20261121T000000Z-000000", state="incomplete"))
    folder.settle(manifest(run_id="20261122T000000Z-000000", state=state))
    folder.plan("20261122T000000Z-000000", [])

    status = read_status(str(folder))

    assert status.state == state
    assert status.manifest is not None
    assert status.manifest.run_id == "20261122T000000Z-000000"
    assert status.live is None


def test_a_run_without_manifest_whose_lock_is_free_was_interrupted(
    folder: Folder, manifest: Make, ref: Ref
) -> None:
    folder.settle(manifest(run_id="20261121T000000Z-000000"))
    again = replace(ref(1), attempt=2)
    folder.plan("20261122T000000Z-000000", [ref(0), again, ref(2, rows=5)])
    folder.commit(ref(0))
    folder.commit(ref(1))  # of an earlier run: attempt 2 is the one that is due

    status = read_status(str(folder))

    assert status.state == "interrupted"
    assert status.live is not None
    assert (status.live.batches, status.live.batches_committed) == (3, 1)
    assert (status.live.rows, status.live.rows_committed) == (25, 10)
    assert status.manifest is not None


def test_while_the_lock_is_held_a_run_is_at_work(folder: Folder, ref: Ref) -> None:
    folder.plan("20261122T000000Z-000000", [ref(0)])
    with open(folder.root / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_status(str(folder)).state == "running"
    assert read_status(str(folder)).state == "interrupted"


def test_looking_at_the_lock_does_not_take_it(folder: Folder) -> None:
    (folder.root / LOCK).touch()

    assert not is_locked(open_store(str(folder)))
    with open(folder.root / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_status_is_plain_values_for_machines(folder: Folder, manifest: Make, ref: Ref) -> None:
    folder.settle(manifest(run_id="20261121T000000Z-000000"))
    folder.plan("20261122T000000Z-000000", [ref(0)])

    found = json.loads(json.dumps(read_status(str(folder)).to_dict()))

    assert found["state"] == "interrupted"
    assert found["rehearsal"] is True
    assert found["live"] == {
        "run_id": "20261122T000000Z-000000",
        "batches": 1,
        "batches_committed": 0,
        "rows": 10,
        "rows_committed": 0,
    }
    assert found["manifest"]["results"] == 1190


def test_failures_are_those_of_the_newest_attempt_alone(folder: Folder, ref: Ref) -> None:
    folder.commit(ref(0), [{"document_id": "old"}, {"document_id": "kept"}])
    folder.commit(replace(ref(0), attempt=2), [{"document_id": "kept"}])
    folder.commit(ref(1), [{"document_id": "other"}])
    folder.commit(ref(2))

    assert [row["document_id"] for row in read_failures(str(folder))] == ["kept", "other"]


def test_failures_whose_commit_record_is_gone_are_not_told(folder: Folder, ref: Ref) -> None:
    folder.commit(ref(0), [{"document_id": "a"}])
    folder.commit(ref(1), [{"document_id": "b"}])
    (folder.root / commit_path(ref(1).batch_id, 1)).unlink()

    assert [row["document_id"] for row in read_failures(str(folder))] == ["a"]


def test_failures_can_be_narrowed_to_classes_and_a_number(folder: Folder, ref: Ref) -> None:
    rows = [{"document_id": str(n), "error_class": "timeout" if n % 2 else "refused"} for n in range(3000)]
    folder.commit(ref(0), rows)

    timeouts = [r["document_id"] for r in read_failures(str(folder), classes=["timeout"])]

    assert timeouts == [str(n) for n in range(1, 3000, 2)]
    assert [r["document_id"] for r in read_failures(str(folder), classes=["timeout"], limit=2)] == ["1", "3"]
    assert len(list(read_failures(str(folder), limit=2999))) == 2999


def test_a_failure_is_plain_values_and_money_stays_exact(folder: Folder, ref: Ref) -> None:
    folder.commit(ref(0), [{"amount": Decimal("0.000000000001")}, {"amount": None}, {"document_id": None}])

    rows = json.loads(json.dumps(list(read_failures(str(folder)))))

    assert [row["amount"] for row in rows] == ["0.000000000001", None, "0.001000000000"]
    assert rows[2]["document_id"] is None
    assert rows[0] | {"amount": ""} == {
        "document_id": "d1",
        "error_class": "refused",
        "message": "the model refused",
        "retryable": False,
        "answer": None,
        "route": "summary",
        "amount": "",
        "basis": "tokens",
        "calls": 1,
        "attempt": 1,
        "batch_id": ref(0).batch_id,
        "uri": ref(0).uri,
        "row_group": 0,
        "row": 7,
    }


def test_an_output_remembers_what_its_newest_run_was_started_with(folder: Folder, tmp_path: Path) -> None:
    workload = tmp_path / "docs.toml"
    workload.touch()
    for run, rehearsal in (("20261121T000000Z-0", True), ("20261122T000000Z-0", False)):
        noted = EnrichParameters(workload=str(workload), rehearsal=rehearsal)
        folder.write(f"runs/{run}/launch.json", noted.model_dump_json().encode())

    assert launched_with(str(folder)) == EnrichParameters(workload=str(workload), rehearsal=False)


def test_an_output_whose_workload_file_is_gone_says_so(folder: Folder) -> None:
    folder.write("runs/r/launch.json", b'{"workload": "/gone.toml"}')

    with pytest.raises(
        OutputError, match=r"workload file /gone\.toml is no longer there\. Give the workload"
    ):
        launched_with(str(folder))


def test_an_output_that_never_ran_cannot_be_retried(folder: Folder) -> None:
    with pytest.raises(OutputError, match="no run has noted what it was started with"):
        launched_with(str(folder))


def test_a_run_that_has_asked_a_person_waits_as_long_as_it_would(folder: Folder, ref: Ref) -> None:
    store = open_store(str(folder))
    folder.plan("20261122T000000Z-000000", [ref(0)])
    note_question(store, "20261122T000000Z-000000", "its price is not known", wait_h=2)

    status = read_status(str(folder))

    assert (status.state, status.to_dict()["asked"]["what"]) == ("waiting", "its price is not known")
    asked = datetime.fromisoformat(status.to_dict()["asked"]["at"])
    assert open_question(store, status.live.run_id, asked + timedelta(hours=3)) is None  # type: ignore[union-attr]


def test_a_run_that_came_after_the_question_is_what_counts(folder: Folder, manifest: Make, ref: Ref) -> None:
    store = open_store(str(folder))
    folder.settle(manifest(run_id="20261122T000000Z-000000", state="incomplete"))
    note_question(store, "20261122T000000Z-000000", "the soft budget is used up", wait_h=2)
    assert read_status(str(folder)).state == "waiting"

    folder.settle(manifest(run_id="20261123T000000Z-000000", state="complete"))
    assert read_status(str(folder)).state == "complete"
