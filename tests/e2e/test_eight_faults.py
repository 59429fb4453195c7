"""The faults that leading systems were seen with, each through the real pipeline and with a foreign bill.

The vendor was written by others; its journal says what it answered, and so what it bills. The eighth
fault, a lost response to a submission that makes a second provider batch, has its test with batch mode.
"""

from __future__ import annotations

import base64
import bz2
import json
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from schemas.run import Manifest
from tests.peers.mock_vendor import REPOSITORY, MockVendor
from tests.support import documents, workloads
from tests.support.drive import drive
from tests.support.layers import job_graph, layers
from transforms.verify import verify_output

pytestmark = [pytest.mark.peer, pytest.mark.timeout(180)]

PATTERN = r"doc-\d+\b"
CANARY = "sk-canary-8d31f07be2"
ANTHROPIC = {"provider": "anthropic", "model": "claude-haiku-4-5"}


class Run:
    """A workload over the mock vendor: documents `doc-0` … in one batch unless told otherwise."""

    def __init__(self, folder: Path, vendor: MockVendor, count: int, **changes: Any) -> None:
        self.folder, self.vendor = folder, vendor
        self.ids = [f"doc-{n}" for n in range(count)]
        table = documents.rows(self.ids, text=[f"This is {name} ." for name in self.ids])
        documents.write(folder / "in" / "a.parquet", table, row_group=count)
        self.configure(**changes)

    def configure(self, **changes: Any) -> None:
        backend = changes.pop("backend", workloads.HOSTED)
        url = self.vendor.base_url(str(backend["provider"]))
        self.workload = workloads.write_workload(
            self.folder,
            **{
                "backends__mini": {**backend, "base_url": url},
                "prompts__topic": {"template": "{{ text }}"},
                "limits__max_calls": 3,
                **changes,
            },
        )

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def go(self) -> Manifest:
        return drive(self.workload)

    def rows(self, kind: str) -> dict[str, dict[str, Any]]:
        if not (self.output / kind).exists():
            return {}
        table = ds.dataset(self.output / kind, format="parquet").to_table()
        rows = {row["document_id"]: row for row in table.to_pylist()}
        assert len(rows) == table.num_rows, "a document stands twice"
        return rows

    def billed(self) -> Counter[str]:
        return self.vendor.answered(PATTERN)

    def prove(self) -> None:
        found = verify_output(str(self.output))
        assert found.state == "proven", found.findings


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, CANARY)


def fails(status: int, name: str, **more: Any) -> dict[str, Any]:
    return MockVendor.failure(status, contains=f"{name} ", **more)


def test_a_batch_of_eight_with_a_flaky_row_bills_eight_answers(
    tmp_path: Path, mock_vendor: MockVendor
) -> None:
    mock_vendor.rules([fails(500, "doc-3", times=2), MockVendor.rule("fine")])
    run = Run(tmp_path, mock_vendor, 8)
    assert run.go().state == "complete"
    assert run.billed() == Counter(run.ids)
    assert len(mock_vendor.journal(status=500)) == 2
    assert [row["cost"]["calls"] for name, row in run.rows("results").items() if name == "doc-3"] == [3]
    run.prove()


def test_a_lost_answer_bills_its_own_row_again_and_no_other(tmp_path: Path, mock_vendor: MockVendor) -> None:
    late = MockVendor.rule("late", contains="doc-3 ", times=1, latency_ms=[4000, 4000])
    mock_vendor.rules([late, MockVendor.rule("fine")])
    run = Run(tmp_path, mock_vendor, 8, limits__request_timeout_s=2.5)
    manifest = run.go()
    assert manifest.state == "complete"
    deadline = time.monotonic() + 60
    while sum(run.billed().values()) < 9 and time.monotonic() < deadline:
        time.sleep(0.05)  # the vendor notes the late answer when it has made it
    assert run.billed() == Counter([*run.ids, "doc-3"])
    assert [(call.cause, call.row) for call in manifest.ambiguous] == [("timeout", 3)]
    assert run.rows("results")["doc-3"]["cost"]["ambiguous_amount"] > 0
    run.prove()


def test_one_bad_row_throws_away_nothing(tmp_path: Path, mock_vendor: MockVendor) -> None:
    mock_vendor.rules(
        [fails(400, "doc-3", kind="invalid_request_error"), MockVendor.rule("about $ID", id=PATTERN)]
    )
    run = Run(tmp_path, mock_vendor, 8)
    run.go()
    good = [name for name in run.ids if name != "doc-3"]
    assert run.billed() == Counter(good)
    assert {name: row["answer"] for name, row in run.rows("results").items()} == {
        n: f"about {n}" for n in good
    }
    assert {name: row["error_class"] for name, row in run.rows("failures").items()} == {
        "doc-3": "bad_request"
    }
    bill = run.billed()
    run.go()
    assert run.billed() == bill, "a second run pays nothing again"
    run.prove()


@pytest.mark.parametrize("backend", [workloads.HOSTED, ANTHROPIC])
def test_an_error_body_with_status_200_is_no_answer(
    tmp_path: Path, mock_vendor: MockVendor, backend: dict[str, Any]
) -> None:
    mock_vendor.rules(
        [fails(200, "doc-3", kind="overloaded_error", message="no room"), MockVendor.rule("fine")]
    )
    run = Run(tmp_path, mock_vendor, 8, backend=backend)
    manifest = run.go()
    assert "doc-3" not in run.rows("results")
    failure = run.rows("failures")["doc-3"]
    assert failure["retryable"]
    assert "no room" in failure["message"]
    assert manifest.results == 7
    run.prove()


def test_no_error_leaves_an_empty_cell_without_a_reason(tmp_path: Path, mock_vendor: MockVendor) -> None:
    kinds = {"doc-1": 400, "doc-3": 500, "doc-5": 413, "doc-7": 529, "doc-9": 503, "doc-11": 422}
    mock_vendor.rules([*(fails(status, name) for name, status in kinds.items()), MockVendor.rule("fine")])
    run = Run(tmp_path, mock_vendor, 16, limits__max_calls=1)
    run.go()
    results, failures = run.rows("results"), run.rows("failures")
    assert results.keys() | failures.keys() == set(run.ids)
    assert not results.keys() & failures.keys()
    assert failures.keys() == kinds.keys()
    assert all(row["answer"] for row in results.values())
    assert all(row["error_class"] and row["message"] for row in failures.values())
    run.prove()


def test_a_cap_is_never_passed_and_all_that_was_paid_is_delivered(
    tmp_path: Path, mock_vendor: MockVendor
) -> None:
    mock_vendor.rules([MockVendor.rule("about $ID", id=PATTERN, usage=[600, 900])])
    each = (600 * Decimal(1) + 900 * Decimal(10)) / 1_000_000
    run = Run(tmp_path, mock_vendor, 60, budget__amount="0.20", limits__batch_rows=20)
    manifest = run.go()
    assert (manifest.state, manifest.reason_class) == ("incomplete", "budget")
    bill = run.billed()
    assert 0 < each * sum(bill.values()) <= Decimal("0.20")
    assert run.rows("results").keys() == bill.keys(), "what was paid is delivered"
    run.prove()

    files = contents(run.output)
    again = run.go()
    assert "Nothing was tried" in again.reason
    assert (again.state, again.calls_by_this_run, again.batches_committed_by_this_run) == ("incomplete", 0, 0)
    assert contents(run.output) == files, "a rerun at the same cap rewrites nothing"

    run.configure(budget__amount="5", limits__batch_rows=20)
    assert run.go().state == "complete"
    assert run.billed() == Counter(run.ids), "it went on from where it stood"
    run.prove()


def contents(output: Path) -> dict[str, int]:
    kinds = ("results", "failures", "commits", "ledger")
    return {str(p): p.stat().st_mtime_ns for kind in kinds for p in (output / kind).rglob("*") if p.is_file()}


def test_a_parameter_that_is_given_once_is_in_every_request(tmp_path: Path, mock_vendor: MockVendor) -> None:
    mock_vendor.rules([fails(500, "doc-3", times=1), MockVendor.rule("fine")])
    backend = {**workloads.HOSTED, "parameters": {"temperature": 0.25, "seed": 7}}
    run = Run(tmp_path, mock_vendor, 20, backend=backend, limits__batch_rows=5)
    run.go()
    bodies = [entry["body"] for entry in mock_vendor.journal()]
    assert len(bodies) == 21
    assert {(body["temperature"], body["seed"]) for body in bodies} == {(0.25, 7)}


def test_identical_documents_are_billed_once_by_whoever_counts(
    tmp_path: Path, mock_vendor: MockVendor
) -> None:
    mock_vendor.rules([MockVendor.rule("fine", latency_ms=[5, 30])])
    run = Run(tmp_path, mock_vendor, 40, limits__batch_rows=10)
    table = documents.rows(run.ids, text=[f"This is doc-{n % 4} ." for n in range(40)])
    documents.write(tmp_path / "in" / "a.parquet", table, row_group=40)
    assert run.go().results == 40
    assert run.billed() == Counter({f"doc-{n}": 1 for n in range(4)})
    rows = run.rows("results")
    assert sum(row["lineage"]["shared_from"] is not None for row in rows.values()) == 36
    run.prove()


@pytest.mark.slow
def test_a_planted_key_is_found_nowhere_after_a_run_that_fails_in_every_way(
    tmp_path: Path, mock_vendor: MockVendor
) -> None:
    """The vendor repeats the key in its errors, as real ones do."""
    told = f"Incorrect API key provided: {CANARY}"
    statuses = {1: 400, 2: 500, 3: 413, 4: 429, 5: 503, 6: 200}
    mock_vendor.rules(
        [
            MockVendor.rule("late", contains="doc-8 ", latency_ms=[1500, 1500]),
            MockVendor.rule(f"your key is {CANARY}", contains="doc-9 "),
            *(fails(status, f"doc-{n}", message=told) for n, status in statuses.items()),
            MockVendor.rule("fine"),
        ]
    )
    run = Run(
        tmp_path,
        mock_vendor,
        12,
        limits__max_calls=2,
        limits__request_timeout_s=0.5,
        limits__document_deadline_s=10,
        budget__amount="1",
    )
    processes = [drive_apart(run)]
    classes = Counter(row["error_class"] for row in run.rows("failures").values())
    assert len(classes) >= 5, classes
    mock_vendor.rules([MockVendor.failure(401, message=told)])
    processes.append(drive_apart(run))
    assert "authentication" in {row["error_class"] for row in run.rows("failures").values()}
    found = [str(p) for p in run.output.rglob("*") if p.is_file() and holds_key(p.read_bytes())]
    assert found == []
    assert not any(holds_key(process.stdout) or holds_key(process.stderr) for process in processes)
    rows = json.dumps([*run.rows("results").values(), *run.rows("failures").values()], default=str)
    assert CANARY not in rows
    assert not any(holds_key(piece) for piece in job_graph(run.workload, run.output))


def drive_apart(run: Run) -> subprocess.CompletedProcess[bytes]:
    """A run in a process of its own, which says everything that it can."""
    code = (
        "import logging, runpy, sys; logging.basicConfig(level=logging.DEBUG); "
        "sys.argv = ['drive', sys.argv[1]]; runpy.run_module('tests.support.drive', run_name='__main__')"
    )
    process = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code, str(run.workload)],
        cwd=REPOSITORY,
        env={**os.environ, "OPENAI_API_KEY": CANARY},
        capture_output=True,
        timeout=150,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert b"DEBUG" in process.stderr
    return process


def holds_key(data: bytes) -> bool:
    """Whether the key is in bytes: as they are, or packed in them as engines pack their pickles."""
    return any(CANARY.encode() in layer for layer in layers(data))


def test_the_search_for_the_key_finds_it_where_engines_hide_things() -> None:
    hidden = base64.b64encode(bz2.compress(pickle.dumps({"key": CANARY, "more": os.urandom(64)})))
    assert holds_key(b"\x00\x01" + hidden + b"\x02")
    assert holds_key(json.dumps({"a": CANARY}).encode())
    assert not holds_key(hidden[:40])
