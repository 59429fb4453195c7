"""The production set-up as `infra/operate/compose.yaml` says it, with real processes in place of containers.

Building the image takes minutes (`make image`), so here the file is read, its model is checked by the Compose
project's own loader where that is at hand, and server and worker run with its commands and environment: on a
PostgreSQL, behind the shared secret.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.ports import free_port
from pipelines.leash import leashed
from tests.support import postgres
from tests.support.serving import make_workload, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
OPERATE = REPOSITORY / "infra/operate"
LOADER = REPOSITORY / "build/peers/bin/compose-spec"
SECRETS = {"PREFECT_SERVER_API_AUTH_STRING": "operator:long-secret", "POSTGRES_PASSWORD": "another"}
BIN = Path(sys.executable).parent


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((OPERATE / "compose.yaml").read_text()))


def filled_in(text: str, values: dict[str, str]) -> str:
    """`${NAME:-default}` and `${NAME:?why}` filled in, as Compose does."""

    def value(found: re.Match[str]) -> str:
        name, rest = found[1], found[2] or ""
        if name in values:
            return values[name]
        assert rest.startswith(":-"), f"{name} has no value: {rest}"
        return rest[2:]

    return re.sub(r"\$\{(\w+)(:[-?][^}]*)?\}", value, text)


def environment_of(service: str) -> dict[str, str]:
    """The environment that Compose gives to a service; variables that are handed on are left out."""
    found = compose()["services"][service]["environment"]
    return {name: filled_in(str(value), SECRETS) for name, value in found.items() if value is not None}


def test_every_setting_of_prefect_is_one_that_prefect_knows() -> None:
    from prefect.settings import Settings

    def names(model: Any, found: set[str]) -> set[str]:
        for name, field in model.model_fields.items():
            inner = field.annotation
            if hasattr(inner, "model_fields"):
                names(inner, found)
            else:
                found.add(f"{model.model_config['env_prefix']}{name}".upper())
                choices = getattr(field.validation_alias, "choices", ())
                found.update(c.upper() for c in choices if isinstance(c, str))
        return found

    known = names(Settings, set())
    own = {"PREFECT_HOME"}
    for service in compose()["services"]:
        used = {n for n in compose()["services"][service].get("environment", {}) if n.startswith("PREFECT_")}
        assert used <= known | own, used - known


def test_nothing_is_published_but_the_ui_and_that_on_this_machine() -> None:
    services = compose()["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}

    assert published == {"server": ["127.0.0.1:${SWITCHGEAR_PORT:-4200}:4200"]}
    assert compose()["networks"]["inside"] == {"internal": True}
    assert [name for name, s in services.items() if "outside" in s["networks"]] == ["server", "worker"]


def test_secrets_have_no_default_and_must_be_given() -> None:
    text = (OPERATE / "compose.yaml").read_text()
    example = (OPERATE / "env.example").read_text()

    for name in SECRETS:
        uses = re.findall(rf"\$\{{{name}([^}}]*)\}}", text)
        assert uses
        assert all(use.startswith(":?") for use in uses), name
        assert re.search(rf"^{name}=$", example, re.MULTILINE), f"{name} has a value in env.example"
    known = set(re.findall(r"\$\{(\w+)", text)) | set(compose()["services"]["worker"]["environment"])
    known |= set(compose()["services"]["deploy"]["environment"])
    assert set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE)) <= known


def test_our_containers_have_no_root_no_capability_and_a_file_system_that_cannot_be_written() -> None:
    ours = [s for s in compose()["services"].values() if "build" in s]
    assert len(ours) == 3
    for service in ours:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    final = (OPERATE / "Dockerfile").read_text().rsplit("FROM ", 1)[1]
    assert re.search(r"^USER (\d+)", final, re.MULTILINE)[1] != "0"  # type: ignore[index]
    images = [s["image"] for s in compose()["services"].values() if "build" not in s]
    assert all(re.search(r":[0-9][\w.-]*$", image) for image in images), images


def test_the_image_is_made_of_what_is_here_and_of_the_versions_that_are_tested() -> None:
    text = (OPERATE / "Dockerfile").read_text()
    sources = [
        s for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for s in line.split()
    ]
    assert "flows" in sources
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []

    def pins(name: str) -> set[str]:
        lock = (REPOSITORY / "infra/locks" / name).read_text()
        return set(re.findall(r"^([\w.\[\]-]+==\S+)", lock, re.MULTILINE))

    tested, shipped = pins("requirements.txt"), pins("runtime.txt")
    assert shipped < tested
    assert pins("build.txt") < tested
    names = {pin.partition("==")[0] for pin in shipped}
    assert {"asyncpg", "apache-beam[gcp]", "prefect", "opentelemetry-sdk"} & names >= {"asyncpg", "prefect"}
    assert not names & {"pytest", "playwright", "ruff", "mypy"}


def test_images_begin_with_others_by_digest_or_by_the_version_that_is_locked() -> None:
    text = (OPERATE / "Dockerfile").read_text()
    own = set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE))
    named = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", text, re.MULTILINE))
    begun = {name for name in re.findall(r"^FROM (\S+)", text, re.MULTILINE) if name not in own}
    assert begun == {f"${name}" for name in named} == {"$PYTHON_IMAGE", "$BEAM_IMAGE"}
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", named["PYTHON_IMAGE"])
    lock = (REPOSITORY / "infra/locks/runtime.txt").read_text()
    (beam,) = re.findall(r"^apache-beam(?:\[\w+\])?==(\S+)", lock, re.MULTILINE)
    assert named["BEAM_IMAGE"] == f"apache/beam_python3.11_sdk:{beam}"


def test_no_image_ends_as_root() -> None:
    text = (OPERATE / "Dockerfile").read_text()
    given = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    for stage in ("worker", None):
        start = text.index(f"AS {stage}\n") if stage else text.rindex("FROM base\n")
        users = re.findall(r"^USER (\S+)$", text[start:].split("\nFROM ")[0], re.MULTILINE)
        assert [given.get(user.removeprefix("$"), user) for user in users] == ["10001:10001"]


def test_the_image_s_context_is_what_its_file_copies_and_nothing_else() -> None:
    text = (OPERATE / "Dockerfile").read_text()
    copied = {
        s for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for s in line.split()
    }
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}

    assert "*" in lines
    assert {re.sub(r"^infra/locks/.*", "infra/locks", source) for source in copied} == kept


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (
            {"docker": 0, "podman": 0, "buildah": 0},
            "docker build -f infra/operate/Dockerfile -t switchgear .",
        ),
        ({"docker": 1, "podman": 0}, "podman build -f infra/operate/Dockerfile -t switchgear ."),
        ({"docker": 1, "buildah": 0}, "buildah bud --layers -f infra/operate/Dockerfile -t switchgear ."),
        ({"docker": 1}, "apt-get install buildah"),
    ],
)
def test_the_image_is_built_with_the_builder_that_answers(
    here: dict[str, int], said: str, tmp_path: Path
) -> None:
    for name, status in here.items():
        script = f'#!/bin/sh\n[ "$1" = version ] && exit {status}\necho "{name} $*"\n'
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    for name in ("dirname", "sh"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)

    done = subprocess.run(
        [str(tmp_path / "sh"), str(OPERATE / "image.sh"), "-t", "switchgear"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert said in done.stdout + done.stderr
    assert done.returncode == (2 if "apt-get" in said else 0)


def test_the_operators_page_shows_pictures_that_are_there_and_names_that_exist() -> None:
    page = (OPERATE / "README.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    kept = {path.name for path in (REPOSITORY / ".github/pictures").iterdir()}

    assert {Path(name).name for name in pictures} == kept
    for name in pictures:
        assert (OPERATE / name).resolve().read_bytes()[:8] == b"\x89PNG\r\n\x1a\n", name
    text = (OPERATE / "compose.yaml").read_text() + (OPERATE / "env.example").read_text()
    named = set(re.findall(r"`([A-Z]+_[A-Z_]+)[=`]", page)) - {"PREFECT_API_URL"}
    assert [name for name in sorted(named) if name not in text] == []
    assert "infra/operate/README.md" in (REPOSITORY / "README.md").read_text()


@pytest.mark.peer
def test_the_compose_project_takes_the_file() -> None:
    has_plugin = (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=30).returncode
    )
    if has_plugin:
        command = ["docker", "compose", "-f", str(OPERATE / "compose.yaml"), "config", "--format", "json"]
    elif LOADER.exists():
        command = [str(LOADER), "-no-interpolation", "-format", "json", str(OPERATE / "compose.yaml")]
    else:
        pytest.skip(
            "neither `docker compose` nor the Compose project's loader is here: make peers (needs Go)"
        )
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **SECRETS}, cwd=OPERATE
    )
    assert done.returncode == 0, done.stderr
    model = json.loads(done.stdout)
    assert set(model["services"]) >= {"postgres", "server", "deploy", "worker"}
    assert (
        model["services"]["worker"]["depends_on"]["deploy"]["condition"] == "service_completed_successfully"
    )


@dataclass
class Production:
    """Server and worker as the compose file starts them, on this machine."""

    folder: Path
    cluster: postgres.Cluster
    port: int
    children: list[subprocess.Popen[bytes]]

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def start(self, service: str) -> None:
        """Start a service with its command and environment; only addresses and folders are this test's."""
        command = [filled_in(str(part), SECRETS) for part in compose()["services"][service]["command"]]
        here = {"--host": "127.0.0.1", "--port": str(self.port)}
        for at, part in enumerate(command[:-1]):
            command[at + 1] = here.get(part, command[at + 1])
        with open(self.folder / f"{service}.log", "wb") as log:
            child = subprocess.Popen(
                leashed([str(BIN / command[0]), *command[1:]]),
                env=self.environment(service),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.children.append(child)

    def environment(self, service: str) -> dict[str, str]:
        inherited = {n: v for n, v in os.environ.items() if not n.startswith("PREFECT_")}
        values = environment_of(service)
        own = {
            "PREFECT_HOME": str(self.folder / f"home-{service}"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(self.folder / "ui"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.cluster.url,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "DO_NOT_TRACK": "1",
        }
        return {**inherited, **values, **own}

    def api(
        self, method: str, path: str, body: Any = None, secret: str | None = "operator:long-secret"
    ) -> Any:
        headers = {"Content-Type": "application/json"}
        if secret is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.api_url + path, method=method, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read() or b"null")

    def stop(self) -> None:
        for child in reversed(self.children):
            child.terminate()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@pytest.fixture(scope="module")
def production() -> Iterator[Production]:
    why = postgres.missing()
    if why is not None:
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="switchgear-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the database's account passes through it
        with postgres.cluster(folder / "postgres") as cluster:
            made = Production(folder, cluster, free_port(), [])
            try:
                made.start("server")
                wait_for(lambda: _answers(made), f"the server does not start: {folder}/server.log")
                yield made
            finally:
                made.stop()


def _answers(made: Production) -> bool:
    assert made.children[0].poll() is None, (made.folder / "server.log").read_text()[-2000:]
    try:
        return bool(made.api("GET", "/health"))
    except (OSError, urllib.error.URLError):
        return False


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_on_postgresql_behind_the_secret_a_run_is_deployed_worked_on_and_kept(production: Production) -> None:
    for secret in (None, "operator:guessed"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            production.api("POST", "/flow_runs/filter", {}, secret=secret)
        assert refused.value.code == 401
    make_workload(production.folder / "one")

    command = compose()["services"]["deploy"]["command"]
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        env=production.environment("deploy"),
        cwd=production.folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    production.start("worker")
    deployment = production.api("GET", "/deployments/name/enrich/enrich")["id"]
    workload = str(production.folder / "one" / "w.toml")
    parameters = {"parameters": {"parameters": {"workload": workload, "rehearsal": True}}}
    run_id = production.api("POST", f"/deployments/{deployment}/create_flow_run", parameters)["id"]

    def ended() -> dict[str, Any] | None:
        state = production.api("GET", f"/flow_runs/{run_id}")["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

    state = wait_for(ended, "the run never ended")
    assert state["type"] == "COMPLETED", state["message"]
    assert len(list((production.folder / "one/out/results").rglob("*.parquet"))) == 2
    assert production.cluster.query("select count(*) from flow_run where state_type = 'COMPLETED'") == "1"
    keys = production.cluster.query("select string_agg(distinct key, ' ' order by key) from artifact")
    assert set(keys.split()) >= {"enrich-batches", "enrich-cost", "enrich-groups", "enrich-summary"}
    log = (production.folder / "one/out/runs").glob("*/logs/group-0000.log")
    lines = [json.loads(line) for path in log for line in path.read_text().splitlines()]
    assert {"worker.started", "route.done", "batch.committed"} <= {line["event"] for line in lines}
