"""The same pipeline over gs:// as over folders: equal rows, killed and taken up again, counted writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from schemas.run import Manifest
from tests.peers.cloud_storage import CloudStorage, environment
from tests.peers.mock_vendor import REPOSITORY, MockVendor
from tests.support import workloads
from tests.support.cloud_runs import comparable, place, rows, workload
from tests.support.flaky_cloud import STORM, Weather, flaky
from tests.support.light import run_light
from transforms.call.segments import WINDOW
from transforms.gcs.client import PATIENCE_VARIABLE
from transforms.store import open_store
from transforms.verify import verify_output

pytestmark = pytest.mark.slow
PATTERN = r"document (\d+) of"
PATIENCE_S = 180


def switchgear(cloud: CloudStorage, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=REPOSITORY,
        env=environment(cloud.url),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.timeout(600)
def test_the_command_gives_the_same_rows_from_a_bucket_as_from_folders(
    one_cloud_storage: CloudStorage, prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    changes = {"limits": {"batch_rows": 20}, "rehearsal": {"latency_ms": [1, 2]}}
    addresses = [one_cloud_storage.bucket(), str(tmp_path / "here")]
    for number, address in enumerate(addresses):
        place(address, tmp_path, 60)
        path = workload(address, tmp_path / f"w{number}", **changes)
        done = switchgear(one_cloud_storage, "run", str(path), "--rehearsal", "--json")
        assert done.returncode == 0, done.stderr
    there, here = (comparable(rows(address)) for address in addresses)
    assert [row["document_id"] for row in here] == sorted(f"doc-{n}" for n in range(60))
    assert there == here

    output = f"{addresses[0]}/out"
    status = json.loads(switchgear(one_cloud_storage, "status", output, "--json").stdout)
    assert (status["state"], status["manifest"]["results"]) == ("complete", 60)
    verified = switchgear(one_cloud_storage, "ledger", "verify", output, "--json")
    assert json.loads(verified.stdout)["state"] == "proven", verified.stdout
    again = switchgear(one_cloud_storage, "retry", output, "--json")
    assert json.loads(again.stdout)["nothing_due"] is True


@pytest.mark.peer
def test_every_call_that_the_vendor_has_billed_is_in_one_row_there_as_here(
    one_cloud_storage: CloudStorage, mock_vendor: MockVendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-not-a-key")
    mock_vendor.answer("an answer about $ID", id=PATTERN, usage=(11, 5))
    found = []
    for address in (one_cloud_storage.bucket(), str(tmp_path / "here")):
        place(address, tmp_path, 90, repeated=10)
        path = workload(address, tmp_path / "w", limits={"batch_rows": 20}, **served_by(mock_vendor))
        mock_vendor.clear()
        manifest = run_light(path)
        assert (manifest.state, manifest.results, manifest.failures) == ("complete", 90, 0)
        assert mock_vendor.answered(PATTERN) == Counter(str(n) for n in range(80))  # ten share an answer
        assert verify_output(f"{address}/out").state == "proven"
        found.append(comparable(rows(address)))
    shared = {f"doc-{n}" for n in (0, *range(80, 90))}  # which of them asks is chance
    there, here = ([row for row in each if row["document_id"] not in shared] for each in found)
    assert len(there) == 79
    assert there == here


def served_by(vendor: MockVendor) -> dict[str, object]:
    return {
        "backends__mini": {**workloads.HOSTED, "base_url": vendor.base_url("openai")},
        "prompts__topic": {"template": "{{ text }}"},
    }


@pytest.mark.peer
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("shares", "workers"), [({}, 1), (STORM, 120)], ids=["calm", "storm"])
def test_a_run_that_is_killed_again_and_again_pays_no_more_than_its_windows_twice(
    one_cloud_storage: CloudStorage,
    mock_vendor: MockVendor,
    tmp_path: Path,
    shares: dict[str, float],
    workers: int,
) -> None:
    count, in_flight, kills = 700, 8, 3
    mock_vendor.answer("an answer about $ID", id=PATTERN, latency_ms=[2, 12])
    address = one_cloud_storage.bucket()
    place(address, tmp_path, count, row_group=500)
    limits = {"batch_rows": 350, "max_in_flight": in_flight}
    path = workload(address, tmp_path / "w", limits=limits, **served_by(mock_vendor))
    with flaky(one_cloud_storage.url, Weather(1, shares)) as url:
        for number in range(kills):
            process = start(url, path, workers)
            wait_for_calls(mock_vendor, process, 100 * (number + 1))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    process = start(one_cloud_storage.url, path)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, (path.parent / "stderr.log").read_text()[-3000:]

    manifest = Manifest.from_dict(json.loads(printed))
    assert (manifest.state, manifest.results, manifest.failures) == ("complete", count, 0), manifest.reason
    assert [row["document_id"] for row in rows(address)] == sorted(f"doc-{n}" for n in range(count))
    proof = verify_output(f"{address}/out")
    assert proof.state == "proven", proof.findings[:5]
    paid = mock_vendor.answered(PATTERN)
    twice = sum(paid.values()) - count
    assert 0 <= twice <= kills * (WINDOW + in_flight)
    assert set(paid) == {str(n) for n in range(count)}
    # What the ledgers lost stays counted: the record has at least what the vendor has billed.
    record = json.loads(open_store(f"{address}/out").read("budget/record.json"))
    assert float(record["spent"]) >= float(manifest.list_amount)
    assert not list(open_store(f"{address}/out").list("_staging"))
    assert not list(open_store(f"{address}/out").list("claims")), "leases of the killed are left"


def start(url: str, path: Path, workers: int = 1) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.light", str(path), str(workers)],
        cwd=REPOSITORY,
        env={**environment(url), "OPENAI_API_KEY": "sk-test-not-a-key", PATIENCE_VARIABLE: "10"},
        stdout=subprocess.PIPE,
        stderr=open(path.parent / "stderr.log", "ab"),
        start_new_session=True,
    )


def wait_for_calls(vendor: MockVendor, process: subprocess.Popen[bytes], calls: int) -> None:
    """Until the vendor has billed so many calls; the run must not be done before."""
    until = time.monotonic() + PATIENCE_S
    while sum(vendor.answered(PATTERN).values()) < calls:
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < until
        time.sleep(0.02)


def test_nothing_is_listed_for_a_batch(
    one_cloud_storage: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = []
    for batch_rows in (40, 10):
        address, weather = one_cloud_storage.bucket(), Weather(0, {})
        place(address, tmp_path, 80)
        path = workload(address, tmp_path / "w", limits={"batch_rows": batch_rows})
        asked: list[str] = []
        weather.choose = lambda method, path, asked=asked: asked.append(f"{method} {path}") or "fine"  # type: ignore[misc]
        with flaky(one_cloud_storage.url, weather) as url:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
            assert run_light(path, rehearsal=True).batches == 80 // batch_rows
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", one_cloud_storage.url)
        listings.append([path for path in asked if path.startswith("GET") and "/o?" in path])
    assert len(listings[0]) == len(listings[1])


@pytest.mark.parametrize(("routes", "failing"), [(1, False), (2, False), (1, True)])
def test_a_batch_costs_three_writes_a_route_at_most_whatever_fails_and_its_ledger_segments(
    one_cloud_storage: CloudStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    routes: int,
    failing: bool,
) -> None:
    address, weather = one_cloud_storage.bucket(), Weather(0, {})
    place(address, tmp_path, 80)
    named = [{"name": f"r{n}", "backends": ["mini"], "prompt": "topic"} for n in range(routes)]
    one_a_batch = {"reject": [{"name": "some", "when": "size IN (0, 20)", "reason": "a reason"}]}
    path = workload(
        address,
        tmp_path / "w",
        limits={"batch_rows": 20},
        routes=named,
        match="all",
        policy=one_a_batch if failing else {},
    )
    with flaky(one_cloud_storage.url, weather) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        manifest = run_light(path, rehearsal=True)
    assert (manifest.batches, manifest.failures) == (4, 4 * failing)
    assert manifest.results == (80 - 4 * failing) * routes
    by_folder = Counter(
        (kind, name.split("/")[1]) for kind, name in weather.writes if name.startswith("out/")
    )
    writes = {place: n for place, n in by_folder.items() if place[0] != "delete"}
    of_batches = {("insert", "_staging"), ("copy", "results"), ("insert", "commits")}
    assert {place: writes.get(place, 0) for place in of_batches} == {
        ("insert", "_staging"): 4 * routes,
        ("copy", "results"): 4 * routes,
        ("insert", "commits"): 4,
    }
    assert sum(writes[place] for place in of_batches) <= 3 * routes * manifest.batches
    assert writes.get(("insert", "failures"), 0) == failing  # of all batches together
    segments = writes[("insert", "ledger")]
    assert 2 * manifest.batches <= segments <= 3 * manifest.batches  # a claim, what was answered, the end
    assert set(writes) - of_batches - {("insert", "ledger")} == {
        ("insert", folder)
        for folder in (
            *("budget", "claims", "compacted", "run.lock.json", "runs", "switchgear.json"),
            *(("failures",) if failing else ()),
        )
    }
