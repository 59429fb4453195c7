"""The commands for operators: `switchgear serve` and `switchgear deploy`."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from flows.answering import answering


def register_operating(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog="Example: `switchgear serve --state ~/switchgear-state`")(serve)
    app.command(
        epilog="Examples:\n\n`switchgear deploy` brings the deployments up to date;\n\n"
        "`switchgear deploy docs.toml --cron '0 6 * * *' --timezone Europe/Berlin` runs it every morning;\n\n"
        "`switchgear deploy docs.toml --input 'docs/dt={date}' --cron '0 6 * * *' --days 7` runs the days of "
        "the last week that are not done."
    )(deploy)


def serve(
    context: typer.Context,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", help="Folder that keeps the state.", show_default="~/.cache/switchgear/serve"
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of 127.0.0.1.")] = 4200,
    folder: Annotated[
        Path, typer.Option("--folder", help="What relative paths in forms are relative to.")
    ] = Path(),
    limit: Annotated[int, typer.Option(min=1, max=64, help="Flow runs at a time.")] = 4,
) -> None:
    """Serve Prefect's UI with Switchgear's deployments on this machine, and run what is started there.

    Starts a server and a worker on 127.0.0.1 and applies the deployments. State is kept on disk: it starts
    again where it stood. Ctrl-C stops it in order.
    """
    with answering(context, False):
        from flows.serve import Serving, serve_here
        from transforms.cache import cache_folder

        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        home = (state or cache_folder() / "serve").expanduser().resolve()
        serving = Serving(home, port, folder.expanduser().resolve(), limit)
        serve_here(serving, lambda line: typer.echo(line, err=True), stop)


def deploy(
    context: typer.Context,
    workload: Annotated[
        str | None,
        typer.Argument(
            metavar="[WORKLOAD]", help="Give this workload a deployment of its own.", show_default=False
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name.", show_default="the workload's name")] = None,
    cron: Annotated[str | None, typer.Option(help="When it runs: a cron expression.")] = None,
    every: Annotated[int | None, typer.Option(min=60, help="Or: every so many seconds.")] = None,
    timezone: Annotated[str, typer.Option(help="Of the schedule.")] = "UTC",
    input_uri: Annotated[
        str | None, typer.Option("--input", help="Instead of `input.uri`; with {date}: a run for each day.")
    ] = None,
    output_uri: Annotated[
        str | None, typer.Option("--output", help="Instead of `output.uri`; it may have {date} in it.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="With {date}: how many days back are looked at.")] = 7,
    rehearsal: Annotated[bool, typer.Option("--rehearsal", help="Only rehearse it.")] = False,
    pool: Annotated[
        str, typer.Option(help="Work pool; a process pool is made if it is missing.")
    ] = "switchgear",
) -> None:
    """Apply the deployments and the automation to the Prefect server of PREFECT_API_URL.

    Schedules that people have given a deployment are kept. A server on another machine must ask for a
    credential. The work pool needs a worker: `prefect worker start --pool switchgear`.
    """
    with answering(context, False):
        from flows.deploy import Scheduled
        from flows.deploy import deploy as apply

        scheduled = None
        if workload is not None:
            scheduled = Scheduled(
                workload, name, cron, every, timezone, input_uri, output_uri, rehearsal, days
            )
        elif cron is not None or every is not None or name is not None or input_uri is not None:
            raise typer.BadParameter(
                "a schedule, name or input needs a workload: switchgear deploy WORKLOAD …"
            )
        for line in apply(scheduled, pool):
            typer.echo(line)
