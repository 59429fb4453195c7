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
        from flows.server import cache_folder

        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        home = (state or cache_folder() / "serve").expanduser().resolve()
        serving = Serving(home, port, folder.expanduser().resolve(), limit)
        serve_here(serving, lambda line: typer.echo(line, err=True), stop)
