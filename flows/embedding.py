"""The commands for embedders: `switchgear embed plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.answering import EXIT_CONFIGURATION, answering
from flows.options import JsonOption, WorkloadArgument

embed_app = typer.Typer(no_args_is_help=True, help="What embedders would do on devices that are not here.")


@embed_app.callback()
def _embed() -> None:
    """Keeps `plan` a command of its own while it is the only one."""


@embed_app.command(
    epilog=(
        "Examples:\n\n"
        "`switchgear embed plan docs.toml --topology v5e:2x2 --topology v6e:2x4`\n\n"
        "`switchgear embed plan docs.toml --document-tokens 200 --json | jq '.[0].steps'`"
    ),
)
def plan(
    context: typer.Context,
    workload: WorkloadArgument,
    topology: Annotated[
        list[str] | None,
        typer.Option(
            "--topology", help="Chips and their arrangement.", show_default="v5e:2x2, v6e:2x2, tpu7x:2x2x1"
        ),
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option("--length", min=1, help="Tokens of a row.", show_default="as a run would choose them"),
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="Only this embedder.", show_default="all")
    ] = None,
    document_tokens: Annotated[
        float | None,
        typer.Option(
            "--document-tokens", min=1, help="Tokens of a document on average.", show_default="sampled"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate what a workload's embedders would do on TPUs, by compiling for them on this machine.

    Needs libtpu (`make tpu`), no TPU. Prints memory, operations, bytes, the least time by the chip's data
    sheet, and from it documents a second, price and energy. Exit code 2 if a plan doesn't fit.
    """
    with answering(context, as_json) as backstage:
        from flows.embed_command import PlanOptions, run_plan

        options = PlanOptions(tuple(topology or ()), tuple(length or ()), backend, document_tokens, as_json)
        plans = run_plan(backstage, workload, options)
        if any(each.refusals for each in plans):
            raise typer.Exit(EXIT_CONFIGURATION)
