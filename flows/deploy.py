"""`switchgear deploy`: the deployments on a Prefect server that is there, and schedules of one's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.deployments import BACKFILL, ENRICH, POOL, Preset, apply_all, apply_deployment
from flows.parameters import DATE, BackfillParameters, EnrichParameters
from flows.server import configured_server
from schemas.errors import ConfigurationError
from schemas.load import load_workload

if TYPE_CHECKING:
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A workload with a deployment of its own, filled in; with `cron` or `every_s` it runs by itself."""

    workload: str
    name: str | None = None
    cron: str | None = None
    every_s: int | None = None
    timezone: str = "UTC"
    input: str | None = None
    output: str | None = None
    rehearsal: bool = False
    days: int = 7


def deploy(scheduled: Scheduled | None = None, pool: str = POOL) -> list[str]:
    """Apply everything to the configured server; what there is now, as lines for people.

    Raises:
        ConfigurationError: no server, one that lets anybody in (see `flows.server`), or a schedule or
            workload that can't be.
    """
    url = configured_server()
    preset = None if scheduled is None else (own_deployment(scheduled), preset_of(scheduled))
    lines = [f"deployment {path}" for path in apply_all(pool)]
    if preset is not None:
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            apply_deployment(client, preset[0], pool, preset[1])
        lines.append(f"deployment {preset[0].path}{_when(scheduled)}")
    return [f"On {url}, in the work pool {pool!r}:", *lines]


def own_deployment(scheduled: Scheduled) -> Any:
    """The deployment of a workload: of `backfill` when its input has {date} in it, else of `enrich`."""
    base = BACKFILL if DATE in (scheduled.input or "") else ENRICH
    return replace(base, name=scheduled.name or _name_of(scheduled.workload))


def preset_of(scheduled: Scheduled) -> Preset:
    """What the deployment has filled in, and its schedule.

    Raises:
        ConfigurationError: cron and interval, or a cron expression or time zone that can't be read.
    """
    workload = Path(scheduled.workload)
    common = {
        "workload": str(workload.resolve()) if workload.exists() else scheduled.workload,
        "output": scheduled.output,
        "rehearsal": scheduled.rehearsal,
    }
    if DATE in (scheduled.input or ""):
        given: Any = BackfillParameters(input=str(scheduled.input), days=scheduled.days, **common)
    else:
        given = EnrichParameters(input=scheduled.input, **common)
    return Preset(given.model_dump(mode="json", exclude_defaults=True), _schedule(scheduled))


def _schedule(scheduled: Scheduled) -> CronSchedule | IntervalSchedule | None:
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
    from pydantic import ValidationError

    if scheduled.cron is not None and scheduled.every_s is not None:
        raise ConfigurationError("give either --cron or --every")
    try:
        if scheduled.cron is not None:
            return CronSchedule(cron=scheduled.cron, timezone=scheduled.timezone)
        if scheduled.every_s is not None:
            every = timedelta(seconds=scheduled.every_s)
            return IntervalSchedule(interval=every, timezone=scheduled.timezone)
    except ValidationError as error:
        what = "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors())
        raise ConfigurationError(
            f"schedule {scheduled.cron or scheduled.every_s!r}, time zone {scheduled.timezone!r}: {what}. "
            "For example --cron '0 6 * * *' --timezone Europe/Berlin"
        ) from None
    return None


def _name_of(workload: str) -> str:
    if not Path(workload).exists():
        raise ConfigurationError(
            f"{workload} is not on this machine, so its name is not known: give one with --name"
        )
    return load_workload(Path(workload)).workload.name


def _when(scheduled: Scheduled | None) -> str:
    if scheduled is None or (scheduled.cron is None and scheduled.every_s is None):
        return ", to be started by hand"
    when = scheduled.cron if scheduled.cron is not None else f"every {scheduled.every_s} s"
    return f", {when} ({scheduled.timezone})"
