"""Golden job specifications: what Dataflow would be asked for, made offline by Beam's own dry run.

After a change that is meant: `SWITCHGEAR_GOLDEN=write python -m pytest tests/pipelines/test_dataflow.py`.
"""

import io
import json
import os
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.internal.gcp import auth
from apache_beam.runners.dataflow.internal import apiclient
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.protobuf.json_format import MessageToDict

from pipelines.dataflow import TPU_WORKERS, TPUS, Tpu, dataflow_flags
from pipelines.engines import given_flags, secret_project
from pipelines.enrich import Job, build, run_job
from pipelines.options import pipeline_options, works_here
from pipelines.stages import stages_of
from schemas.errors import ConfigurationError
from tests.peers.cloud_storage import CloudStorage
from tests.support.batches import table_for
from tests.support.flaky_cloud import Weather, flaky
from tests.support.records import REF, run_context
from tests.support.workloads import EMBEDDER, HOSTED, workload
from transforms.coders import register_arrow_coders
from transforms.worker import WorkerConfig

GOLDEN = Path(__file__).parent / "golden"
KEY = "sk-planted-key-that-must-not-travel"
GIVEN = [
    "--project=switchgear-example",
    "--region=us-central1",
    "--temp_location=gs://switchgear-example/temp",
    "--staging_location=gs://switchgear-example/staging",
    "--sdk_container_image=us-central1-docker.pkg.dev/switchgear-example/switchgear/worker@sha256:"
    + "0" * 64,
    "--service_account_email=worker@switchgear-example.iam.gserviceaccount.com",
    "--subnetwork=regions/us-central1/subnetworks/switchgear",
    "--job_name=switchgear",
    "--dry_run=True",
]
BOTH: dict[str, Any] = {
    "backends": {"mini": HOSTED, "emb": {**EMBEDDER, "model_path": "gs://switchgear-example/model"}},
    "routes": [
        {"name": "ask", "when": "kind = 'a'", "backends": ["mini"], "prompt": "topic"},
        {"name": "vec", "backends": ["emb"]},
    ],
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look for credentials, which stalls for many seconds where there are none."""
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def job_of(number: int, tpu: Tpu | None) -> tuple[dict[str, Any], bytes]:
    """The environment and the steps that a stage would be submitted with, and its whole graph."""
    register_arrow_coders()
    stage = stages_of(workload(**BOTH), tpu)[number]
    options = pipeline_options(GIVEN, "dataflow", stage.tpu)
    assert not works_here(options)
    run = run_context("gs://switchgear-example/out", secret_project=secret_project("dataflow", GIVEN))
    config = WorkerConfig(workload(**BOTH), "/nowhere", run, table_for(REF).schema.serialize().to_pybytes())
    pipeline = beam.Pipeline(options=options)
    build(pipeline, [REF], config, calls_only=stage.calls_only)
    graph = pipeline.run().job.proto_pipeline
    environment = apiclient.Environment([], options, "11", "gs://switchgear-example/graph", graph)
    told = MessageToDict(type(environment.proto).pb(environment.proto))
    pool = told["workerPools"][0]
    leaves = [
        transform.unique_name
        for transform in graph.components.transforms.values()
        if not transform.subtransforms and "ProcessBatches" in transform.unique_name
    ]
    golden = {
        "experiments": sorted(told["experiments"]),
        "service_options": told.get("serviceOptions", []),
        "service_account": told["serviceAccountEmail"],
        "machine_type": pool.get("machineType"),
        "subnetwork": pool["subnetwork"],
        "ip_configuration": pool["ipConfiguration"],
        "container_image": pool["workerHarnessContainerImage"],
        "packages": pool.get("packages", []),
        "steps": sorted(leaves),
    }
    return golden, graph.SerializeToString()


@pytest.mark.parametrize(
    ("name", "number", "tpu"),
    [
        ("all", 0, None),
        ("calls-before-tpu", 0, "v5e-1"),
        ("tpu-v5e-1", 1, "v5e-1"),
        ("tpu-v6e-4", 1, "v6e-4"),
    ],
)
def test_a_job_is_what_was_agreed(name: str, number: int, tpu: Tpu | None) -> None:
    found, graph = job_of(number, tpu)
    assert KEY.encode() not in graph
    path = GOLDEN / f"dataflow-{name}.json"
    if os.environ.get("SWITCHGEAR_GOLDEN") == "write":
        path.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    assert found == json.loads(path.read_text("utf-8"))


def test_a_dry_run_hands_nothing_over_and_says_so(tmp_path: Path) -> None:
    run = run_context(str(tmp_path / "out"), secret_project="switchgear-example")
    config = WorkerConfig(workload(**BOTH), "/nowhere", run, table_for(REF).schema.serialize().to_pybytes())
    said: list[dict[str, Any]] = []
    with pytest.raises(ConfigurationError, match=r"none was handed over\. Leave the flag out to run"):
        run_job(Job(config, (REF,), 0, tuple(GIVEN), engine="dataflow", tpu="v5e-1"), said.append)
    assert [event for event in said if event["event"] == "batch"] == []


def test_staging_a_job_looks_at_the_bucket_itself(one_cloud_storage: CloudStorage) -> None:
    """Which is why launchers have storage.buckets.get on it (infra/dataflow/terraform/access.tf)."""
    address, weather, asked = one_cloud_storage.bucket(), Weather(0, {}), []
    weather.choose = lambda method, path: asked.append(f"{method} {path.partition('?')[0]}") or "fine"
    with flaky(one_cloud_storage.url, weather) as url:
        client = object.__new__(apiclient.DataflowApplicationClient)
        client._storage_client = storage.Client(
            project="emulator", credentials=AnonymousCredentials(), client_options={"api_endpoint": url}
        )
        client.stage_file(f"{address}/staging", "pipeline.pb", io.BytesIO(b"a graph"))
    assert f"GET /storage/v1/b/{address.removeprefix('gs://')}" in asked


def test_everything_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        dataflow_flags({"region": "us-central1"}, None)
    said = str(caught.value)
    assert "--project=…" in said
    assert "--temp_location=…" in said
    assert "--sdk_container_image=…" in said
    assert "--region" not in said


def test_a_job_on_tpu_workers_asks_for_what_dataflow_documents() -> None:
    """https://cloud.google.com/dataflow/docs/tpu/tpu-support, "Supported TPU accelerators", November 2026."""
    documented = {
        ("tpu-v5-lite-podslice", "1x1", "ct5lp-hightpu-1t"),
        ("tpu-v5-lite-podslice", "2x2", "ct5lp-hightpu-4t"),
        ("tpu-v5-lite-podslice", "2x4", "ct5lp-hightpu-8t"),
        ("tpu-v6e-slice", "1x1", "ct6e-standard-1t"),
        ("tpu-v6e-slice", "2x2", "ct6e-standard-4t"),
        ("tpu-v6e-slice", "2x4", "ct6e-standard-8t"),
    }
    asked = set()
    for tpu in TPUS:
        flags = given_flags(dataflow_flags(given_flags(GIVEN), tpu))
        accelerator = flags["dataflow_service_options"].removeprefix("worker_accelerator=type:")
        kind, _, topology = accelerator.partition(";topology:")
        asked.add((kind, topology, flags["machine_type"]))
        assert flags["experiments"] == "no_use_multiple_sdk_containers"
    assert asked == documented


@pytest.mark.parametrize("tpu", TPUS)
def test_a_kind_of_tpu_worker_has_as_many_chips_as_its_name_and_machine_say(tpu: Tpu) -> None:
    worker = TPU_WORKERS[tpu]
    chips = int(tpu.split("-")[1])
    across, along = (int(side) for side in worker.topology.split("x"))
    assert across * along == chips
    assert worker.machine_type.endswith(f"-{chips}t")


def test_keys_are_looked_up_in_the_jobs_own_project() -> None:
    assert secret_project("dataflow", GIVEN) == "switchgear-example"
    assert secret_project("local", GIVEN) is None
