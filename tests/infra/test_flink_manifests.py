import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.ports import free_port
from infra.flink import cluster, install
from pipelines.leash import leashed
from tests.peers.google_schema import SCHEMAS
from tests.support import flink
from tests.support.serving import wait_for

MANIFEST = Path(__file__).parents[2] / "infra/flink/kubernetes/flink.yaml"
DOCKERFILE = Path(__file__).parents[2] / "infra/operate/Dockerfile"


@pytest.fixture(scope="module")
def objects() -> dict[tuple[str, str], dict[str, Any]]:
    found = yaml.safe_load_all(MANIFEST.read_text("utf-8"))
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def containers(each: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in each["spec"]["template"]["spec"]["containers"]}


def deployments(objects: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for (kind, _), each in objects.items() if kind == "Deployment"]


def test_there_is_a_cluster_and_every_part_finds_its_pods(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    assert sorted(objects) == [
        ("ConfigMap", "flink-config"),
        ("Deployment", "flink-jobmanager"),
        ("Deployment", "flink-taskmanager"),
        ("Service", "flink-jobmanager"),
    ]
    for each in deployments(objects):
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert each["spec"]["selector"]["matchLabels"] == labels
    manager = objects["Deployment", "flink-jobmanager"]
    assert objects["Service", "flink-jobmanager"]["spec"]["selector"].items() <= (
        manager["spec"]["template"]["metadata"]["labels"].items()
    )


def test_every_task_manager_has_a_pool_of_its_own_at_the_port_that_runs_are_given(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    pool = containers(objects["Deployment", "flink-taskmanager"])["worker-pool"]
    assert pool["command"] == ["python", "-m", "pipelines.worker_pool", "--port=50000"]
    assert "--environment_config=localhost:50000" in MANIFEST.read_text("utf-8")
    assert "ports" not in pool, "whoever reaches the pool can run code in it"


def test_nothing_runs_as_root_or_may_become_it(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    for each in deployments(objects):
        for container in containers(each).values():
            context = container["securityContext"]
            assert context["runAsNonRoot"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_keys_come_from_a_secret_and_stand_nowhere(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    for each in deployments(objects):
        for container in containers(each).values():
            assert "env" not in container
    pool = containers(objects["Deployment", "flink-taskmanager"])["worker-pool"]
    assert pool["envFrom"] == [{"secretRef": {"name": "switchgear-keys"}}]


def test_flink_is_the_version_that_the_job_server_speaks_and_the_tests_run(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    pom = (MANIFEST.parents[1] / "pom.xml").read_text("utf-8")
    for name in ("jobmanager", "taskmanager"):
        image = containers(objects["Deployment", f"flink-{name}"])[name]["image"]
        version = image.removeprefix("flink:").split("-")[0]
        assert version == install.DISTRIBUTION.partition("==")[2]
        assert f"beam-runners-flink-{version.rpartition('.')[0]}<" in pom


def test_every_port_of_the_service_is_one_that_flink_is_told_to_listen_on(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    """Its own choice for files (`blob.server.port`) is a random one, which no service forwards."""
    told = yaml.safe_load(objects["ConfigMap", "flink-config"]["data"]["config.yaml"])
    listens = {
        told["jobmanager.rpc.port"]: "rpc",
        told["blob.server.port"]: "blob-server",
        told["rest.port"]: "rest",
    }
    service = objects["Service", "flink-jobmanager"]
    assert {port["port"]: port["name"] for port in service["spec"]["ports"]} == listens
    assert told["jobmanager.rpc.address"] == told["rest.address"] == service["metadata"]["name"]


@pytest.mark.peer
@pytest.mark.slow
def test_flink_takes_the_configuration_and_says_what_it_does(
    objects: dict[tuple[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    """Flink itself, with the files that pods get; addresses and ports are of this machine."""
    if (why := flink.missing()) is not None:
        pytest.skip(why)
    files = objects["ConfigMap", "flink-config"]["data"]
    told = yaml.safe_load(files["config.yaml"])
    ports = {name: free_port() for name in ("jobmanager.rpc.port", "blob.server.port", "rest.port")}
    here = {name: "127.0.0.1" for name, value in told.items() if value in ("flink-jobmanager", "0.0.0.0")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**told, **here, **ports}))
    logging = tmp_path / "log4j-console.properties"
    logging.write_text(files[logging.name])
    command = [shutil.which("java") or "", "-Xmx400m", "--add-opens=java.base/java.util=ALL-UNNAMED"]
    command += [f"-Dlog4j.configurationFile=file:{logging}", "-cp", f"{cluster.DISTRIBUTION}/lib/*"]
    command += [cluster.MASTER, "--configDir", str(tmp_path)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(leashed(command), stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: process.poll() is not None or _all_answer(ports.values()), "Flink listens")
        assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
    finally:
        process.kill()
        process.wait()
    assert "INFO  org.apache.flink.runtime.entrypoint.ClusterEntrypoint" in (tmp_path / "log").read_text()


def _all_answer(ports: Iterable[int]) -> bool:
    try:
        for port in ports:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_what_is_mounted_over_flinks_folder_still_says_how_to_log(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for each in deployments(objects):
        flink = next(c for c in containers(each).values() if c["image"].startswith("flink:"))
        assert {"name": "flink-config", "mountPath": "/opt/flink/conf"} in flink["volumeMounts"]
    logging = objects["ConfigMap", "flink-config"]["data"]["log4j-console.properties"]
    assert "rootLogger.level = INFO" in logging


def test_a_pool_runs_as_the_user_of_its_image_and_has_a_cache_that_it_may_write(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    image = DOCKERFILE.read_text("utf-8")
    (user,) = set(re.findall(r"--uid (\d+)", image))
    (home,) = re.findall(r"--home-dir (\S+)", image)
    deployment = objects["Deployment", "flink-taskmanager"]
    pool = containers(deployment)["worker-pool"]
    assert pool["securityContext"]["runAsUser"] == int(user)
    assert deployment["spec"]["template"]["spec"]["securityContext"] == {"fsGroup": int(user)}
    assert {"name": "cache", "mountPath": f"{home}/.cache"} in pool["volumeMounts"]
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    assert {"name": "cache", "emptyDir": {}} in volumes


def strictly(manifest: Path) -> subprocess.CompletedProcess[str]:
    """What the validator says of a manifest: unknown fields are errors."""
    if not (SCHEMAS / "kubernetes_validate").exists():
        pytest.skip("Kubernetes' schemas are missing: make infra")
    return subprocess.run(
        [sys.executable, "-m", "kubernetes_validate", "--strict", str(manifest)],
        env={**os.environ, "PYTHONPATH": str(SCHEMAS)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.peer
def test_kubernetes_takes_the_manifest() -> None:
    done = strictly(MANIFEST)
    assert (done.returncode, done.stdout.count(" passed for ")) == (0, 4), done.stdout + done.stderr


@pytest.mark.peer
@pytest.mark.parametrize(
    ("right", "wrong"),
    [("replicas: 2", "replica: 2"), ("port: 8081", "port: web"), ("selector:\n    app", "chooser:\n    app")],
)
def test_kubernetes_finds_what_it_does_not_know(tmp_path: Path, right: str, wrong: str) -> None:
    text = MANIFEST.read_text("utf-8")
    assert right in text
    (tmp_path / "wrong.yaml").write_text(text.replace(right, wrong))
    assert strictly(tmp_path / "wrong.yaml").returncode == 1
