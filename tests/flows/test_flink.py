"""What an operator sees in Prefect of a run on a real Flink, beside the same run on this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from infra.flink.cluster import SHORT_LIVED
from tests.support import documents, flink, workloads

pytestmark = [pytest.mark.slow, pytest.mark.peer, pytest.mark.timeout(600)]


@pytest.fixture
def server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tests' server as one that the user has configured."""
    why = flink.missing()
    if why is not None:
        pytest.skip(why)
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", " ".join(SHORT_LIVED))
    return prefect_server


def make(folder: Path) -> Path:
    """Forty documents, five of them rejected, in four batches, one of which no worker can read."""
    table = documents.rows(range(40), kind=["secret" if n < 5 else "note" for n in range(40)])
    documents.write(folder / "in" / "a.parquet", table.slice(0, 30), row_group=10)
    broken = documents.write(folder / "in" / "b.parquet", table.slice(30), compression="none")
    data = bytearray(broken.read_bytes())
    data[4:60] = b"\xff" * 56  # its first page; the footer is whole, so that it is planned
    broken.write_bytes(data)
    return workloads.write_workload(
        folder,
        limits={"batch_rows": 10},
        policy={"reject": [{"name": "no_secrets", "when": "kind = 'secret'", "reason": "secret"}]},
        rehearsal={"latency_ms": [1, 2]},
        budget={"amount": "1"},
    )


def shown(workload: Path) -> dict[str, Any]:
    """State, tasks, progress and failures of the workload's last flow run, as Prefect has them."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        ArtifactFilter,
        ArtifactFilterFlowRunId,
        FlowRunFilter,
        FlowRunFilterId,
    )
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        newest = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC)  # other tests' among them
        (run,) = [r for r in newest if r.parameters.get("parameters", {}).get("workload") == str(workload)]
        own = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        artifacts = {a.key: a.data for a in client.read_artifacts(artifact_filter=own)}
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    return {
        "state": (run.state.type.value, run.state.name, without_run(run.state.message)),
        "tasks": sorted((t.name, t.state.type.value, without_run(t.state.message)) for t in tasks),
        "artifacts": sorted(artifacts),
        "progress": artifacts["enrich-progress"],
        "failures": json.loads(artifacts["enrich-failures"]),
        "batches": sorted(
            (row["state"], row["error"], row["results"], row["failures"])
            for row in json.loads(artifacts["enrich-batches"])
        ),
    }


def without_run(said: str) -> str:
    """A sentence without what differs from run to run: amounts of time and ids of batches."""
    return re.sub(r"[0-9a-f]{12,}|[\d.]+ (s|min)\b", "…", said)


@pytest.mark.usefixtures("server")
def test_state_progress_and_failures_show_in_prefect_as_of_a_run_on_this_machine(tmp_path: Path) -> None:
    found = {}
    for engine in ("local", "flink"):
        (tmp_path / engine).mkdir()
        workload = make(tmp_path / engine)
        result = CliRunner().invoke(app, ["run", str(workload), "--rehearsal", "--engine", engine])
        assert result.exit_code == 3, result.output
        found[engine] = shown(workload)

    there = found["flink"]
    assert there["state"][:2] == ("FAILED", "Failed")
    assert there["state"][2].startswith(
        "1 of 1 group failed: Rehearsal: Incomplete: 1 batch was not finished"
    )
    assert [row["reason"] for row in there["failures"]] == ["policy_rejected"]
    assert [state for state, *_ in there["batches"]] == ["committed"] * 3 + ["failed"]
    assert there["progress"] == 75.0, "thirty of forty documents"
    assert json.dumps(there, indent=1) == json.dumps(found["local"], indent=1).replace(
        str(tmp_path / "local"), str(tmp_path / "flink")
    )
