"""The `switchgear` command: the demo and the commands on an output here, the others registered from theirs.

Exit codes: 0 complete, 2 bad configuration or usage, 3 incomplete (failures to retry, failed batches,
budget), 1 anything else. With `--json` standard output holds one JSON value (of `failures`: one per
line) and nothing else; everything for people goes to standard error.

Heavy modules are imported inside the commands, so that `switchgear --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.answering import EXIT_INCOMPLETE, EXIT_OTHER, answering, exit_with
from flows.embedding import embed_app
from flows.operating import register_operating
from flows.options import JsonOption, OutputArgument
from flows.running import register_running
from schemas.failures import FailureClass
from schemas.run import CODE_VERSION

app = typer.Typer(
    name="switchgear",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(
        "Turns a folder of Parquet documents into a folder of Parquet answers: each document sent to the "
        "right model, paid for once, within budget, traceable to its source.\n\n"
        "Running a workload again over the same output does what is missing and nothing else, so the same "
        "command also resumes after a crash."
    ),
    epilog=(
        "Begin with `switchgear demo`. Then: `switchgear check docs.toml`, "
        "`switchgear run docs.toml --rehearsal`, `switchgear run docs.toml`.\n\n"
        "Exit codes: 0 complete, 2 bad configuration or usage, 3 incomplete, 1 anything else."
    ),
)


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        typer.echo(f"switchgear {CODE_VERSION}")
        raise typer.Exit


register_running(app)  # first, because `--help` lists commands in the order they are added in


@app.command(epilog="Example: `switchgear status output/ --json | jq .state`")
def status(context: typer.Context, output: OutputArgument, as_json: JsonOption = False) -> None:
    """Show where an output stands: running, waiting (for a person), interrupted, complete or incomplete.

    Lists rows by route, failures by reason, cost by backend, and the calls whose end is not known.
    """
    with answering(context, as_json) as backstage:
        exit_with(backstage.status(output, as_json))


@app.command(epilog="Example: `switchgear failures output/ --class refused --json | jq -r .document_id`")
def failures(
    context: typer.Context,
    output: OutputArgument,
    classes: Annotated[
        list[FailureClass] | None,
        typer.Option("--class", help="Only this failure class; may be repeated.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.", show_default="all")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the documents without a result, each with its reason and what it has cost.

    With `--json`, one JSON object a line.
    """
    with answering(context, as_json) as backstage:
        backstage.failures(output, [c.value for c in classes or ()], limit, as_json)


@app.command(epilog="Example: `switchgear search output/ 'retry a request with backoff' --k 3`")
def search(
    context: typer.Context,
    output: OutputArgument,
    query: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for.", show_default=False)],
    route: Annotated[
        str | None, typer.Option(help="The embed route to search.", show_default="the only one")
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, max=1000, help="How many documents.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Search the embeddings of an output for the documents nearest to a text.

    The text is embedded by the same model, on this machine. Meant for looking, not for serving.
    """
    with answering(context, as_json) as backstage:
        backstage.search(output, query, route, k, as_json)


@app.command(epilog="Example: `switchgear demo --dir /tmp/demo`")
def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--dir", help="Where input and output go.")] = Path("build/demo"),
    as_json: JsonOption = False,
) -> None:
    """Run the main job on real documents, with no account, key or server.

    The documents are the docstrings of the packages installed beside Switchgear. Hosted models are
    rehearsed unless the keys of all of them are in the environment; embeddings are real either way.
    """
    with answering(context, as_json) as backstage:
        exit_with(backstage.demo(folder, as_json))


ledger_app = typer.Typer(no_args_is_help=True, help="What an output has paid for, proven from its files.")
app.add_typer(ledger_app, name="ledger")
app.add_typer(embed_app, name="embed")
register_operating(app)


@ledger_app.command(epilog="Example: `switchgear ledger verify output/ --json | jq .state`")
def verify(context: typer.Context, output: OutputArgument, as_json: JsonOption = False) -> None:
    """Prove an output's ledger against its commits, results and failures.

    Every answered call must be in exactly one row's cost, and the sums must be equal to the last digit.
    Names every call of unknown end, every torn tail, and what is paid and not yet delivered. Reads only.

    Exit codes: 0 proven, 1 something contradicts, 3 incomplete.
    """
    with answering(context, as_json) as backstage:
        from flows.ledger_command import run_verify

        state = run_verify(backstage, output, as_json)
    if state != "proven":
        raise typer.Exit(EXIT_OTHER if state == "contradicted" else EXIT_INCOMPLETE)


def main(arguments: list[str] | None = None) -> Any:
    """The console script."""
    return app(arguments)


if __name__ == "__main__":
    main()
