import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import pytest

from pipelines.dataflow import dataflow_flags
from pipelines.engines import given_flags
from tests.peers.google_provider import running
from tests.peers.google_schema import SCHEMAS, read_schema

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "infra/dataflow/terraform"
MISTAKES = """
resource "google_storage_bucket" "wrong" {
  name          = "wrong"
  locatoin      = "here"
  force_destroy = "perhaps"
  verzioning {}
  versioning { enabled = true }
  versioning { enabled = true }
}
resource "google_storage_bukket" "wrong" {}
resource "google_secret_manager_secret" "wrong" {
  secret_id = "wrong"
}
output "wrong" {
  value = google_storage_bucket.data.urll
}
"""
_UNUSED_BY_REFERENCE = {"google_project_service.needed"}


def clean(value: Any) -> Any:
    """A parsed file without the parser's quotation marks and notes."""
    if isinstance(value, dict):
        return {clean(k): clean(v) for k, v in value.items() if not str(k).startswith("__")}
    if isinstance(value, list):
        return [clean(v) for v in value]
    return value.strip('"') if isinstance(value, str) else value


@pytest.fixture(scope="module")
def files() -> dict[str, dict[str, Any]]:
    return {path.name: clean(hcl2.loads(path.read_text("utf-8"))) for path in sorted(FOLDER.glob("*.tf"))}


@pytest.fixture(scope="module")
def resources(files: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        f"{kind}.{name}": body
        for file in files.values()
        for block in file.get("resource", [])
        for kind, named in block.items()
        for name, body in named.items()
    }


def of_kind(resources: dict[str, dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {name: body for name, body in resources.items() if name.startswith(f"{kind}.")}


def test_everything_that_is_referred_to_is_there(
    files: dict[str, dict[str, Any]], resources: dict[str, dict[str, Any]]
) -> None:
    text = "\n".join(path.read_text("utf-8") for path in FOLDER.glob("*.tf"))
    text = re.sub(r"#.*", "", text)
    referred = set(re.findall(r"(?<!data\.)\b(google_\w+\.\w+)\.", text)) | _UNUSED_BY_REFERENCE
    assert referred <= resources.keys()
    variables = {name for file in files.values() for block in file.get("variable", []) for name in block}
    assert set(re.findall(r"\bvar\.(\w+)", text)) == variables
    for file in files.values():
        for block in file.get("variable", []) + file.get("output", []):
            assert all(body["description"] for body in block.values())


def test_nothing_is_made_before_the_services_are_there_that_make_it(
    files: dict[str, dict[str, Any]], resources: dict[str, dict[str, Any]]
) -> None:
    """A new project has neither; what refers to something that waits, waits with it."""
    waits = {"google_project_service.needed"}
    read = {
        f"data.{kind}.{name}": body
        for file in files.values()
        for block in file.get("data", [])
        for kind, named in block.items()
        for name, body in named.items()
    }
    everything = {**resources, **read}
    for _ in everything:
        waits |= {
            name
            for name, body in everything.items()
            if any(re.search(rf"\b{re.escape(other)}\b", json.dumps(body)) for other in waits)
        }
    assert everything.keys() - waits == set()


def test_buckets_are_private_and_what_is_deleted_can_be_brought_back(
    resources: dict[str, dict[str, Any]],
) -> None:
    buckets = of_kind(resources, "google_storage_bucket")
    assert len(buckets) == 2
    for bucket in buckets.values():
        assert bucket["uniform_bucket_level_access"] is True
        assert bucket["public_access_prevention"] == "enforced"
    kept = buckets["google_storage_bucket.data"]["soft_delete_policy"][0]["retention_duration_seconds"]
    assert "var.retention_days" in kept


def test_workers_and_launchers_have_the_least_that_they_need(resources: dict[str, dict[str, Any]]) -> None:
    granted = {
        (name.split(".")[1].split("_")[0], body["role"].strip("${}"))
        for name, body in resources.items()
        if "_iam_member." in name
    }
    assert granted == {
        ("worker", "google_project_iam_custom_role.worker.name"),
        ("worker", "roles/storage.objectUser"),
        ("worker", "roles/storage.legacyBucketReader"),
        ("worker", "roles/secretmanager.secretAccessor"),
        ("worker", "roles/artifactregistry.reader"),
        ("worker", "roles/aiplatform.user"),
        ("launcher", "roles/dataflow.developer"),
        ("launcher", "roles/iam.serviceAccountUser"),
        ("launcher", "roles/storage.objectUser"),
        ("launcher", "roles/storage.legacyBucketReader"),
        ("launcher", "roles/aiplatform.user"),
    }
    projectwide = {
        body["role"].strip("${}") for body in of_kind(resources, "google_project_iam_member").values()
    }
    own = "google_project_iam_custom_role.worker"
    assert projectwide == {f"{own}.name", "roles/dataflow.developer", "roles/aiplatform.user"}
    assert not [right for right in resources[own]["permissions"] if right.strip('"').startswith("storage.")]


def test_who_hands_a_job_over_may_look_at_the_bucket_that_it_is_staged_in(
    resources: dict[str, dict[str, Any]],
) -> None:
    """Beam asks for it: tests/pipelines/test_dataflow.py, test_staging_a_job_looks_at_the_bucket_itself."""
    seen = {
        name.split(".")[1]
        for name, body in of_kind(resources, "google_storage_bucket_iam_member").items()
        if body["role"] == "roles/storage.legacyBucketReader"
        and "google_storage_bucket.dataflow.name" in body["bucket"]
    }
    assert seen == {"worker_staging", "launcher_staging"}


def test_no_secret_has_a_value_here(resources: dict[str, dict[str, Any]]) -> None:
    assert of_kind(resources, "google_secret_manager_secret")
    assert not of_kind(resources, "google_secret_manager_secret_version")


def test_the_network_lets_workers_out_on_tls_and_nobody_in(resources: dict[str, dict[str, Any]]) -> None:
    walls = of_kind(resources, "google_compute_firewall")
    coming_in = [wall for wall in walls.values() if wall["direction"] == "INGRESS"]
    assert [wall["source_tags"] for wall in coming_in] == [["dataflow"]]
    everywhere = [w for w in walls.values() if w.get("destination_ranges") == ["0.0.0.0/0"] and "allow" in w]
    assert [wall["allow"][0]["ports"] for wall in everywhere] == [["443"]]
    assert any(wall.get("deny") for wall in walls.values())
    assert resources["google_compute_subnetwork.workers"]["private_ip_google_access"] is True


def test_the_flags_that_are_printed_are_all_that_a_job_needs(files: dict[str, dict[str, Any]]) -> None:
    text = (FOLDER / "outputs.tf").read_text("utf-8")
    printed = re.findall(r'"(--\w+=[^"]+)"', text)
    assert dataflow_flags(given_flags(printed), None)


@pytest.fixture(scope="module")
def terraform() -> str:
    built = REPOSITORY / "build/peers/bin/terraform"
    found = shutil.which("terraform") or shutil.which("tofu") or (str(built) if built.exists() else None)
    if found is None:
        pytest.skip("terraform is missing: make infra (needs Go), or install Terraform or OpenTofu")
    return found


@pytest.fixture(scope="module")
def provider() -> Iterator[dict[str, str]]:
    """The Google provider's schema, served; what Terraform's environment has to say for it."""
    if not SCHEMAS.exists():
        pytest.skip("the Google provider's schema is missing: make infra")
    text = "\n".join(path.read_text("utf-8") for path in FOLDER.glob("*.tf")) + MISTAKES
    kinds = re.findall(r'^(resource|data) "(\w+)"', text, re.MULTILINE)
    schema = read_schema(
        {name for kind, name in kinds if kind == "resource"}, {name for kind, name in kinds if kind == "data"}
    )
    with running(schema) as environment:
        yield environment


def asked(
    terraform: str, provider: dict[str, str], folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [terraform, f"-chdir={folder}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **provider, "CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": os.devnull},
    )


def validated(terraform: str, provider: dict[str, str], folder: Path) -> tuple[bool, str]:
    """What `terraform validate` says of a folder: whether it is valid, and its complaints."""
    done = asked(terraform, provider, folder, "validate", "-json")
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    return said["valid"], "\n".join(f"{d['summary']}: {d.get('detail')}" for d in said["diagnostics"])


@pytest.mark.peer
def test_the_files_are_formatted_as_terraform_formats_them(terraform: str) -> None:
    done = subprocess.run([terraform, "fmt", "-check", "-diff", str(FOLDER)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.peer
def test_terraform_takes_the_files_by_the_providers_schema(terraform: str, provider: dict[str, str]) -> None:
    assert validated(terraform, provider, FOLDER) == (True, "")


@pytest.mark.peer
def test_terraform_finds_what_the_provider_does_not_know(
    terraform: str, provider: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "mistakes.tf").write_text(MISTAKES)
    valid, said = validated(terraform, provider, tmp_path)
    assert not valid
    for complaint in (
        'The argument "location" is required',
        'An argument named "locatoin" is not expected here',
        'Blocks of type "verzioning" are not expected here',
        'Inappropriate value for attribute "force_destroy": a bool is required',
        'No more than 1 "versioning" blocks are allowed',
        'At least 1 "replication" blocks are required',
        'no argument, nested block, or exported attribute named "urll"',
        'does not support resource type "google_storage_bukket"',
    ):
        assert complaint in re.sub(r"\s+", " ", said), said


def planned(
    terraform: str, provider: dict[str, str], folder: Path, **variables: Any
) -> tuple[dict[str, dict[str, Any]], str]:
    """What `terraform plan` would make, by address, as far as it is known; and what it complains of."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    (folder / "given.auto.tfvars.json").write_text(json.dumps(variables))
    done = asked(terraform, provider, folder, "plan", "-input=false", "-no-color", "-out=made.plan")
    if done.returncode != 0:
        return {}, done.stderr
    shown = json.loads(asked(terraform, provider, folder, "show", "-json", "made.plan").stdout)
    changes = [c for c in shown["resource_changes"] if c["mode"] == "managed"]
    assert {tuple(c["change"]["actions"]) for c in changes} == {("create",)}
    return {c["address"]: c["change"]["after"] for c in changes}, ""


GIVEN = {
    "project": "switchgear-example",
    "launchers": ["user:ann@example.com", "group:data@example.com"],
    "key_names": ["OPENAI_API_KEY"],
    "billing_account": "000000-111111-222222",
    "monthly_budget_usd": 250.9,
    "retention_days": 14,
}


@pytest.mark.peer
def test_terraform_plans_what_was_agreed_and_nothing_else(
    terraform: str, provider: dict[str, str], tmp_path: Path
) -> None:
    made, complaint = planned(terraform, provider, tmp_path, **GIVEN)
    assert complaint == ""
    of_launchers = {
        f'{kind}.{name}["{who}"]'
        for kind, name in (
            ("google_project_iam_member", "launcher_starts"),
            ("google_service_account_iam_member", "launcher_as_worker"),
            ("google_storage_bucket_iam_member", "launcher_data"),
            ("google_storage_bucket_iam_member", "launcher_dataflow"),
            ("google_storage_bucket_iam_member", "launcher_staging"),
        )
        for who in GIVEN["launchers"]  # type: ignore[attr-defined]
    }
    services = (
        "artifactregistry", "billingbudgets", "cloudresourcemanager", "compute", "dataflow", "iam",
        "logging", "secretmanager", "storage", "tpu",
    )  # fmt: skip
    assert set(made) == of_launchers | {
        f'google_project_service.needed["{name}.googleapis.com"]' for name in services
    } | {
        "google_artifact_registry_repository.images",
        "google_artifact_registry_repository_iam_member.worker_image",
        "google_billing_budget.month[0]",
        "google_compute_firewall.between_workers",
        "google_compute_firewall.nowhere_else",
        "google_compute_firewall.out_to_workers",
        "google_compute_firewall.to_providers",
        "google_compute_network.workers",
        "google_compute_router.nat",
        "google_compute_router_nat.nat",
        "google_compute_subnetwork.workers",
        "google_project_iam_custom_role.worker",
        "google_project_iam_member.worker_reports",
        "google_storage_bucket_iam_member.worker_staging",
        'google_secret_manager_secret.key["OPENAI_API_KEY"]',
        'google_secret_manager_secret_iam_member.worker_keys["OPENAI_API_KEY"]',
        "google_service_account.worker",
        "google_storage_bucket.data",
        "google_storage_bucket.dataflow",
        'google_storage_bucket_iam_member.worker_objects["data"]',
        'google_storage_bucket_iam_member.worker_objects["dataflow"]',
    }

    data = made["google_storage_bucket.data"]
    assert (data["name"], data["location"]) == ("switchgear-example-switchgear-data", "us-central1")
    assert data["soft_delete_policy"][0]["retention_duration_seconds"] == 14 * 86400
    swept = made["google_storage_bucket.dataflow"]["lifecycle_rule"]
    assert [(rule["action"][0]["type"], rule["condition"][0]["age"]) for rule in swept] == [("Delete", 7)]
    objects = made['google_storage_bucket_iam_member.worker_objects["data"]']
    assert (objects["bucket"], objects["role"]) == (data["name"], "roles/storage.objectUser")
    budget = made["google_billing_budget.month[0]"]
    assert budget["amount"][0]["specified_amount"][0]["units"] == "250"
    assert [rule["threshold_percent"] for rule in budget["threshold_rules"]] == [0.5, 0.8, 1]
    assert made["google_compute_subnetwork.workers"]["ip_cidr_range"] == "10.64.0.0/20"


@pytest.mark.peer
def test_without_launchers_and_billing_account_there_is_nothing_of_theirs(
    terraform: str, provider: dict[str, str], tmp_path: Path
) -> None:
    made, complaint = planned(terraform, provider, tmp_path, project="switchgear-example")
    assert complaint == ""
    assert len(made) == 32
    assert not [address for address in made if "launcher" in address or "budget." in address]
    secrets = [m["secret_id"] for address, m in made.items() if "manager_secret.key" in address]
    assert sorted(secrets) == ["ANTHROPIC_API_KEY", "OPENAI_API_KEY"]


@pytest.mark.peer
def test_vertex_may_be_asked_where_that_is_said_and_nowhere_else(
    terraform: str, provider: dict[str, str], tmp_path: Path
) -> None:
    plain, _ = planned(terraform, provider, tmp_path / "plain", **GIVEN)
    made, complaint = planned(terraform, provider, tmp_path / "vertex", **GIVEN, vertex=True)
    assert complaint == ""
    assert made.keys() - plain.keys() == {
        'google_project_service.needed["aiplatform.googleapis.com"]',
        "google_project_iam_member.worker_vertex[0]",
        'google_project_iam_member.launcher_vertex["user:ann@example.com"]',
        'google_project_iam_member.launcher_vertex["group:data@example.com"]',
    }


@pytest.mark.peer
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"project": "Not_A_Project"}, "A project id has 6 to 30 lower-case letters"),
        ({"retention_days": 3}, "Cloud Storage keeps soft-deleted objects for 7 to 90 days"),
    ],
)
def test_values_that_can_not_be_are_refused_before_anything_is_planned(
    terraform: str, provider: dict[str, str], tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    made, complaint = planned(terraform, provider, tmp_path, **{**GIVEN, **wrong})
    assert made == {}
    assert said in re.sub(r"\s+", " ", complaint.replace("\u2502", ""))
