"""Whole runs against a mock vendor that others wrote, whose files and batches know nothing of ours."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.peers.mock_vendor import MockVendor
from tests.support import documents, workloads
from tests.support.drive import drive

MOST_RUNS = 6


@pytest.mark.peer
def test_a_batch_of_a_foreign_vendor_is_submitted_once_and_collected(
    tmp_path: Path, mock_vendor: MockVendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    ids = [f"d{n}" for n in range(5)]
    documents.write(tmp_path / "in/a.parquet", documents.rows(ids), row_group=2)
    workload = workloads.write_workload(
        tmp_path,
        backends__mini={**workloads.HOSTED, "mode": "batch", "base_url": mock_vendor.base_url("openai")},
    )
    waited = 0
    while (done := drive(workload)).state != "complete":
        assert done.reason_class == "provider_batches"
        waited += 1
        assert waited < MOST_RUNS
    assert (done.state, done.results, done.failures) == ("complete", 5, 0)
    assert waited >= 1, "no run waits for its own batch"
    asked = Counter((entry["method"], entry["path"]) for entry in mock_vendor.journal())
    assert asked["POST", "/v1/batches"] == asked["POST", "/v1/files"] == 1
    assert ("POST", "/v1/chat/completions") not in asked
