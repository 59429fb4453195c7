"""The deployments, the work pool and the automation that operators work with, applied by one function.

`switchgear serve` and `switchgear deploy` apply the same ones, and `infra/prefect.yaml` is written from
them (`python -m flows.deployments infra/prefect.yaml`), so that nothing is said twice.

Entrypoints are dotted (`flows.enrich.enrich`): the flow is imported from the installed package. Flow runs
beat every 30 s, and an automation marks as Crashed what has not been heard of for 90 s: so a run whose
machine, worker and process all died is not shown as Running for ever, and *Retry* can be pressed.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.run import CODE_VERSION

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
    from prefect.events.schemas.automations import AutomationCore

POOL = "switchgear"
HEARTBEAT_S = 30  # the least that Prefect takes
SILENCE_S = 90  # three heartbeats
_YAML_HEAD = """# The deployments, for `prefect deploy --all --prefect-file infra/prefect.yaml`, written by
# `python -m flows.deployments infra/prefect.yaml`. `switchgear deploy` does the same, makes the work pool if
# it is missing, and applies the automation that marks runs as crashed that are no longer heard of.
"""
CRASHED_AUTOMATION = "switchgear: mark runs that are no longer heard of as crashed"


@dataclass(frozen=True, slots=True)
class Deployed:
    """A deployment: its flow's dotted entrypoint, its name in the UI, and what operators read there."""

    entrypoint: str
    name: str
    description: str

    @property
    def path(self) -> str:
        """As Prefect names it: flow/deployment."""
        return f"{self.entrypoint.rsplit('.', 1)[-1]}/{self.name}"


@dataclass(frozen=True, slots=True)
class Preset:
    """What a deployment of somebody's own has filled in, and when it runs by itself."""

    parameters: dict[str, Any]
    schedule: CronSchedule | IntervalSchedule | None = None


ENRICH = Deployed(
    "flows.enrich.enrich",
    "enrich",
    "Runs a workload: sends its documents to their models and writes the answers. Run it again, or press "
    "**Retry** on a run that failed: it does what is missing and nothing else, and pays for nothing twice.",
)
REPAIR = Deployed(
    "flows.repair.repair",
    "repair",
    "Does again what is left of a run, as **Retry** does, with a choice: only some batches, failures that "
    "are final otherwise, another backend, a raised cap. A failed run's summary links here, filled in.",
)
BACKFILL = Deployed(
    "flows.backfill.backfill",
    "backfill",
    "Runs a workload for each day of a date-partitioned input, oldest first. Days that are done cost "
    "nothing: on a schedule, with **Days** as long as any downtime may be, it also catches up.",
)
QUOTE = Deployed("flows.looking.quote", "quote", "Prices what a run would do now. No call is made.")
REPORT = Deployed("flows.looking.report", "report", "Shows where an output stands, from its files.")
SWEEP = Deployed(
    "flows.looking.sweep",
    "sweep",
    "Finishes what killed runs have committed and not published, and deletes what no commit names. Every run "
    "does so for its own output too; what a run is at work in is left alone.",
)
DEPLOYMENTS = (ENRICH, REPAIR, BACKFILL, QUOTE, REPORT, SWEEP)


def pool_template(folder: Path | None = None) -> dict[str, Any]:
    """The job template of the work pool; with a folder, of one whose worker is on this machine.

    Relative paths in a form are then relative to that folder. Flow runs are started with `-P`, so that
    nothing that lies in the folder can take the place of an installed module.
    """
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    if folder is not None:
        fields = template["variables"]["properties"]
        fields["command"]["default"] = shlex.join([sys.executable, "-P", "-m", "prefect.engine"])
        fields["working_dir"]["default"] = str(folder)
    return template


def apply_pool(
    client: SyncPrefectClient, pool: str, template: dict[str, Any] | None, limit: int | None
) -> None:
    """Make the work pool if it is missing; with a template, give it that one and the limit of runs."""
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        wanted = pool_template() if template is None else template
        client.create_work_pool(
            WorkPoolCreate(name=pool, type="process", base_job_template=wanted, concurrency_limit=limit)
        )
        return
    if template is not None:
        client.update_work_pool(pool, WorkPoolUpdate(base_job_template=template, concurrency_limit=limit))


def apply_deployment(
    client: SyncPrefectClient, deployed: Deployed, pool: str, preset: Preset | None = None
) -> UUID:
    """Create a deployment or bring it up to date; its id.

    One that is there already is changed and not created again: that would delete the schedules that people
    have given it. A preset with a schedule replaces them.
    """
    from prefect.client.schemas.actions import (
        DeploymentScheduleCreate,
        DeploymentScheduleUpdate,
        DeploymentUpdate,
    )
    from prefect.exceptions import ObjectNotFound
    from prefect.utilities.importtools import import_object

    flow = import_object(deployed.entrypoint)
    ours: dict[str, Any] = {
        "version": CODE_VERSION,
        "description": deployed.description,
        "work_pool_name": pool,
        "entrypoint": deployed.entrypoint,
        "parameter_openapi_schema": flow.parameters.model_dump_for_openapi(),
        "enforce_parameter_schema": True,
        "tags": ["switchgear"],
        "job_variables": _job_variables(),
        "pull_steps": [],
    }
    if preset is not None:
        ours["parameters"] = {"parameters": preset.parameters}
    try:
        found = client.read_deployment_by_name(deployed.path)
    except ObjectNotFound:
        flow_id = client.create_flow(flow)
        made = client.create_deployment(flow_id=flow_id, name=deployed.name, **ours)
        if preset is not None and preset.schedule is not None:
            own = DeploymentScheduleCreate(schedule=preset.schedule, active=True)
            client.create_deployment_schedules(made, [own])
        return made
    if preset is not None and preset.schedule is not None:
        ours["schedules"] = [DeploymentScheduleUpdate(schedule=preset.schedule, active=True)]
    client.update_deployment(found.id, DeploymentUpdate(**ours))
    return found.id


def crashed_automation() -> AutomationCore:
    """Marks a flow run as Crashed when its heartbeats stop before it has ended or was suspended.

    Every event of the run counts as a sign of life: also those that end it, and those of a pause.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name=CRASHED_AUTOMATION,
        description="Press Retry on a run that this has marked: it does what is missing.",
        enabled=True,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENCE_S),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"Nothing was heard of this run for {SILENCE_S} s: its process or machine has died. "
                "A retry does what is missing",
            )
        ],
    )


def apply_automation(client: SyncPrefectClient, wanted: AutomationCore) -> None:
    """Create an automation, or bring those of its name up to date."""
    found = client.read_automations_by_name(wanted.name)
    for automation in found:
        client.update_automation(automation.id, wanted)
    if not found:
        client.create_automation(wanted)


def apply_all(
    pool: str = POOL, template: dict[str, Any] | None = None, limit: int | None = None
) -> dict[str, UUID]:
    """Apply pool, deployments and automation to the configured server; the deployments' ids by path."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        apply_pool(client, pool, template, limit)
        ids = {deployed.path: apply_deployment(client, deployed, pool) for deployed in DEPLOYMENTS}
        apply_automation(client, crashed_automation())
    return ids


def prefect_yaml() -> str:
    """The deployments as Prefect's own `prefect deploy --all` reads them."""
    import yaml  # type: ignore[import-untyped]

    deployments = [
        {
            "name": deployed.name,
            "entrypoint": deployed.entrypoint,
            "description": deployed.description,
            "tags": ["switchgear"],
            "enforce_parameter_schema": True,
            "work_pool": {"name": POOL, "job_variables": _job_variables()},
        }
        for deployed in DEPLOYMENTS
    ]
    text: str = yaml.safe_dump(
        {"name": "switchgear", "pull": None, "deployments": deployments}, sort_keys=False, width=100
    )
    return f"{_YAML_HEAD}{text}"


def _job_variables() -> dict[str, Any]:
    return {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(prefect_yaml(), encoding="utf-8")
