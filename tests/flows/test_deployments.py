"""The deployments on a real Prefect server: applied twice, scheduled, and their forms."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flows.deploy import Scheduled, deploy, preset_of
from flows.deployments import (
    CRASHED_AUTOMATION,
    DEPLOYMENTS,
    apply_all,
    crashed_automation,
    pool_template,
    prefect_yaml,
)
from schemas.errors import ConfigurationError
from tests.support import workloads

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tests' server as one that the user has configured."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    return prefect_server


@pytest.fixture
def client(server: str) -> Iterator[SyncPrefectClient]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as made:
        yield made


def test_applying_twice_changes_nothing_and_keeps_the_schedules_that_people_gave(
    client: SyncPrefectClient,
) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    first = apply_all("pool")
    client.create_deployment_schedules(first["enrich/enrich"], [(CronSchedule(cron="0 6 * * *"), True)])

    assert apply_all("pool") == first
    assert sorted(first) == [
        "backfill/backfill",
        "enrich/enrich",
        "quote/quote",
        "repair/repair",
        "report/report",
        "sweep/sweep",
    ]
    (schedule,) = client.read_deployment_schedules(first["enrich/enrich"])
    assert schedule.schedule.cron == "0 6 * * *"  # type: ignore[union-attr]
    assert len(client.read_automations_by_name(CRASHED_AUTOMATION)) == 1


def test_entrypoints_are_dotted_and_flow_runs_beat_every_30_seconds(client: SyncPrefectClient) -> None:
    for path, deployment_id in apply_all("pool").items():
        found = client.read_deployment(deployment_id)
        assert found.entrypoint in {d.entrypoint for d in DEPLOYMENTS}, path
        assert ":" not in str(found.entrypoint)
        assert found.job_variables == {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}}
        assert found.enforce_parameter_schema is True


@pytest.mark.parametrize("deployed", DEPLOYMENTS, ids=lambda d: d.name)
def test_every_field_of_every_form_has_a_title_and_a_description(deployed: Any) -> None:
    from prefect.utilities.importtools import import_object

    schema = import_object(deployed.entrypoint).parameters.model_dump()
    ((name, form),) = [(n, d) for n, d in schema["definitions"].items() if n.endswith("Parameters")]

    assert form["properties"], name
    for field, shown in form["properties"].items():
        assert shown["title"], field
        assert shown["description"], field


def test_the_automation_waits_three_heartbeats_and_takes_any_sign_of_life() -> None:
    trigger: Any = crashed_automation().trigger

    assert trigger.after == {"prefect.flow-run.heartbeat"}
    assert trigger.expect == {"prefect.flow-run.*"}
    assert trigger.within.total_seconds() == 90
    assert trigger.for_each == {"prefect.resource.id"}


def test_the_yaml_in_the_repository_is_the_one_that_is_written() -> None:
    text = (ROOT / "infra" / "prefect.yaml").read_text("utf-8")

    assert text == prefect_yaml(), "run: python -m flows.deployments infra/prefect.yaml"


@pytest.mark.slow
def test_prefects_own_deploy_takes_the_yaml(server: str, client: SyncPrefectClient) -> None:
    apply_all()
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        [*command, "--prefect-file", "infra/prefect.yaml"],
        cwd=ROOT,
        env={**os.environ, "PREFECT_API_URL": server},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert client.read_deployment_by_name("repair/repair").entrypoint == "flows.repair.repair"


def test_a_worker_here_runs_the_installed_flows_whatever_lies_in_its_folder(tmp_path: Path) -> None:
    fields = pool_template(tmp_path)["variables"]["properties"]

    assert fields["command"]["default"] == shlex.join([sys.executable, "-P", "-m", "prefect.engine"])
    assert fields["working_dir"]["default"] == str(tmp_path)


def test_a_workload_gets_a_deployment_of_its_own_with_its_schedule(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    path = workloads.write_workload(tmp_path)

    lines = deploy(Scheduled(str(path), cron="0 6 * * *", timezone="Europe/Berlin"), "pool")
    deploy(Scheduled(str(path), cron="30 7 * * *"), "pool")

    assert lines[-1] == "deployment enrich/demo, 0 6 * * * (Europe/Berlin)"
    found = client.read_deployment_by_name("enrich/demo")
    assert found.parameters == {"parameters": {"workload": str(path)}}
    (schedule,) = found.schedules
    assert schedule.schedule.cron == "30 7 * * *"  # type: ignore[union-attr]


def test_an_input_with_a_date_gets_a_backfill_over_the_last_days(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    path = workloads.write_workload(tmp_path)

    deploy(Scheduled(str(path), every_s=3600, input="docs/dt={date}", days=3), "pool")

    found = client.read_deployment_by_name("backfill/demo")
    assert found.parameters == {"parameters": {"workload": str(path), "input": "docs/dt={date}", "days": 3}}
    assert found.schedules[0].schedule.interval.total_seconds() == 3600  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("scheduled", "what"),
    [
        (Scheduled("w.toml", name="w", cron="nonsense"), "'nonsense', time zone 'UTC'"),
        (Scheduled("w.toml", name="w", cron="0 6 * * *", timezone="Mars/Olympus"), "Mars/Olympus"),
        (Scheduled("w.toml", name="w", cron="0 6 * * *", every_s=60), "either --cron or --every"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_an_example(scheduled: Scheduled, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        preset_of(scheduled)


def test_a_server_on_another_machine_that_lets_anybody_in_gets_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = "http://prefect.example.com:4200/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(ConfigurationError, match="no credential"):
        deploy()
