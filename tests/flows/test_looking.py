"""The flows that pay for nothing, over outputs of real runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from flows.looking import outputs_in
from flows.parameters import QuoteParameters, RepairParameters, ReportParameters, SweepParameters
from flows.repair import order_for
from schemas.errors import OutputError
from tests.peers.cloud_storage import CloudStorage
from tests.support import documents
from tests.support.runs import Place
from tests.support.workloads import load
from transforms.output import MARKER, open_output
from transforms.store import open_store

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    documents.write(tmp_path / "in" / "a.parquet", documents.rows(range(6)))
    return Place(tmp_path, {"limits": {"batch_rows": 3}})


def run(flow: Any, parameters: Any) -> tuple[Any, dict[str, Any]]:
    """The flow's last state and its artifacts by key."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    state = flow(parameters, return_state=True)
    with get_client(sync_client=True) as client:
        own = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
        found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=own))
    return state, {artifact.key: artifact.data for artifact in found}


def test_a_quote_shows_the_price_by_route_and_writes_nothing(place: Place) -> None:
    from flows.looking import quote

    workload = place.loaded.path
    state, artifacts = run(quote, QuoteParameters(workload=str(workload)))

    assert state.is_completed()
    assert state.message.startswith("6 rows of 6 are due in 2 batches")
    assert "| ask | $" in artifacts["quote-summary"]
    assert "| the run |" in artifacts["quote-summary"]
    (row,) = json.loads(artifacts["quote-routes"])
    assert row["route"] == "ask"
    assert row["expected"].startswith("$")
    assert not (place.folder / "out").exists()


def test_a_report_shows_the_newest_run_and_says_where_there_is_none(place: Place, tmp_path: Path) -> None:
    from flows.looking import report

    made = place.run()

    state, artifacts = run(report, ReportParameters(output=str(tmp_path / "out")))
    assert state.message.startswith("The output is complete. Complete: 6 results")
    assert made.plan.run_id in artifacts["report-summary"]
    stranger = ReportParameters(output=str(tmp_path / "out"), run="20260101T000000Z-abcdef")
    assert "run 20260101T000000Z-abcdef has not come to its end here" in run(report, stranger)[0].message
    missing, _ = run(report, ReportParameters(output=str(tmp_path / "nowhere")))
    assert missing.name == "Misconfigured"
    assert "is no Switchgear output" in missing.message


def test_a_sweep_deletes_what_no_commit_names_and_nothing_else(place: Place, tmp_path: Path) -> None:
    from flows.looking import sweep

    place.run()
    before = sorted(p for p in (tmp_path / "out").rglob("*.parquet"))
    orphan = tmp_path / "out" / "_staging" / f"{'a' * 32}.0001.w" / "part.parquet"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"half a part")

    state, _ = run(sweep, SweepParameters(folder=str(tmp_path)))

    assert state.message == "1 output looked at, 1 file deleted"
    assert not orphan.exists()
    assert sorted(p for p in (tmp_path / "out").rglob("*.parquet")) == before


def test_a_sweep_leaves_an_output_alone_where_a_run_is_at_work(place: Place, tmp_path: Path) -> None:
    from flows.looking import sweep

    place.run()
    with open_output(load(tmp_path, **place.changes), rehearsal=False):
        state, _ = run(sweep, SweepParameters(folder=str(tmp_path / "out")))

    assert state.message == "1 output looked at, 0 files deleted; 1 output at work, left alone"


def test_a_folder_without_outputs_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="neither a Switchgear output nor a folder of such"):
        outputs_in(str(tmp_path))


def launched(place: Place, **changes: Any) -> str:
    """An output as a run left it that somebody had approved."""
    made = place.run()
    noted = {"workload": str(place.loaded.path), "budget": "5", "approved_by": "Mara", **changes}
    (place.folder / "out" / "runs" / made.plan.run_id / "launch.json").write_text(json.dumps(noted))
    return str(made.plan.run_id)


def test_a_repair_takes_over_what_the_run_was_started_with_and_changes_what_the_form_says(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = launched(place)
    monkeypatch.chdir(place.folder)

    order = order_for(
        RepairParameters(
            output="out",
            run=run_id,
            batches=("abcd",),
            failure_classes=("refused",),
            backend="other",
            routes=("ask",),
            budget="7.5",
        )
    )

    given = order.parameters
    assert (given.workload, given.output) == (str(place.loaded.path), os.path.realpath("out"))
    assert [c.value for c in given.retry_classes] == ["refused"]
    assert str(given.budget) == "7.5"
    assert (order.only_batches, order.backend, order.backend_routes) == (("abcd",), "other", ("ask",))


def test_an_approval_holds_for_the_run_it_was_given_for_and_a_cap_goes_on(place: Place) -> None:
    launched(place)

    order = order_for(RepairParameters(output=str(place.folder / "out")))

    assert str(order.parameters.budget) == "5"
    assert order.parameters.approved_by == ""
    assert not order.is_approved


@pytest.mark.parametrize("gone", ["output", "workload"])
def test_a_deleted_output_or_workload_is_a_sentence_and_no_damage(gone: str, place: Place) -> None:
    from flows.repair import repair

    launched(place)
    output = place.folder / "out"
    if gone == "output":
        output.rename(place.folder / "elsewhere")
    else:
        place.loaded.path.unlink()
        # `loaded` writes the file anew, so it is not asked for again
    state, _ = run(repair, RepairParameters(output=str(output)))

    assert state.name == "Misconfigured"
    assert ("is no Switchgear output" if gone == "output" else "is no longer there") in state.message


def test_a_sweep_of_an_output_in_cloud_storage_does_the_same_and_keeps_off_where_a_run_is_at_work(
    one_cloud_storage: CloudStorage, tmp_path: Path
) -> None:
    from flows.looking import sweep

    address = f"{one_cloud_storage.bucket()}/out"
    missing, _ = run(sweep, SweepParameters(folder=address))
    assert missing.name == "Misconfigured"
    store, orphan = open_store(address), f"_staging/{'a' * 32}.0001.{'b' * 16}/part.parquet"
    with open_output(load(tmp_path, output__uri=address), rehearsal=False):
        store.create(orphan, b"half a part")
        store.create("results/kept.txt", b"what somebody put there")
        busy, _ = run(sweep, SweepParameters(folder=address))
        assert busy.message == "1 output looked at, 0 files deleted; 1 output at work, left alone"
        assert store.exists(orphan)

    swept, _ = run(sweep, SweepParameters(folder=address))

    assert swept.message == "1 output looked at, 1 file deleted"
    assert sorted(store.list("")) == ["results/kept.txt", MARKER]
    again, _ = run(sweep, SweepParameters(folder=address))
    assert again.message == "1 output looked at, 0 files deleted"
