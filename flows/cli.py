"""The `switchgear` command: what it can be told, and how it answers.

Exit codes: 0 complete, 2 bad configuration or usage, 3 incomplete (failures to retry, failed batches,
budget), 1 anything else. With `--json` standard output holds one JSON value (of `failures`: one per
line) and nothing else; everything for people goes to standard error.

Heavy modules are imported inside the commands, so that `switchgear --help` answers at once.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.answering import EXIT_INCOMPLETE, EXIT_OTHER, answering
from flows.embedding import embed_app
from flows.operating import register_operating
from pipelines.dataflow import Tpu
from pipelines.engines import Engine
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

WorkloadArgument = Annotated[
    Path, typer.Argument(metavar="WORKLOAD", help="The workload file (TOML).", show_default=False)
]
OutputArgument = Annotated[
    str, typer.Argument(metavar="OUTPUT", help="The output folder of a run.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer with JSON on standard output.")]
InputOption = Annotated[
    str | None, typer.Option("--input", help="Read these documents instead of the workload's `input.uri`.")
]
OutputOption = Annotated[
    str | None,
    typer.Option("--output", help="Write into this folder instead of the workload's `output.uri`."),
]
RehearsalOption = Annotated[
    bool,
    typer.Option(
        "--rehearsal",
        help="Answer hosted models with a stand-in on this machine: free, labelled in every row.",
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="USD",
        help="A cap for this run instead of the workload's `budget.amount`; it goes on from where it stood.",
        show_default="budget.amount",
    ),
]
GroupsOption = Annotated[
    int | None,
    typer.Option(min=1, max=500, help="Task runs to divide the batches into.", show_default="by size"),
]
ParallelOption = Annotated[
    int | None,
    typer.Option(
        "--parallel-groups",
        "--workers",
        min=1,
        max=64,
        help="Worker processes at a time; they share budget, limits and claims.",
        show_default="limits.parallel_groups",
    ),
]
EngineOption = Annotated[
    Engine,
    typer.Option(help="What runs the Beam pipelines: this machine's processes, Flink or Dataflow."),
]
TpuOption = Annotated[
    Tpu | None,
    typer.Option(help="The chips of Dataflow's workers for embed routes.", show_default="none"),
]
FlagsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-- BEAM FLAGS]", help="Flags for the Beam pipeline, after `--`.", show_default=False
    ),
]


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        typer.echo(f"switchgear {CODE_VERSION}")
        raise typer.Exit


@app.command(
    epilog="Example: `switchgear check docs.toml --input new-documents/`",
)
def check(
    context: typer.Context,
    workload: WorkloadArgument,
    input_uri: InputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a workload without paying anything.

    Reads the file, the input's real schema, the expressions and templates against it, the prices and
    the model files, and names everything that is wrong, with what is allowed there.
    """
    with answering(context, as_json) as backstage:
        backstage.check(workload, input_uri, as_json)


@app.command(
    epilog=(
        "Examples:\n\n"
        "`switchgear quote docs.toml` prices what a run would do now;\n\n"
        "`switchgear quote docs.toml --json | jq .total`"
    ),
)
def quote(
    context: typer.Context,
    workload: WorkloadArgument,
    input_uri: InputOption = None,
    output_uri: OutputOption = None,
    sample: Annotated[
        int, typer.Option("--sample", min=2, max=1_000_000, help="Documents to measure for each route.")
    ] = 1000,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Time the embedders on this machine, with sampled texts.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Price a workload before it runs: no call is made, no key is needed, nothing is written.

    Counts rows exactly, routes and renders a sample, and gives the price of each route as an interval,
    beside other models, provider batches and prompt caching. What an output already holds is left out.
    """
    with answering(context, as_json) as backstage:
        from flows.quote_command import run_quote

        run_quote(
            backstage,
            workload,
            input_uri=input_uri,
            output_uri=output_uri,
            sample=sample,
            measure_embedders=calibrate,
            as_json=as_json,
        )


@app.command(
    epilog=(
        "Examples:\n\n"
        "`switchgear run docs.toml --rehearsal --output rehearsed/` tries everything for free;\n\n"
        "`switchgear run docs.toml --groups 12 --parallel-groups 4` uses four processes;\n\n"
        "`switchgear run docs.toml -- --direct_runner_bundle_repeat=2` hands a flag to the Beam pipeline."
    ),
)
def run(
    context: typer.Context,
    workload: WorkloadArgument,
    flags: FlagsArgument = None,
    input_uri: InputOption = None,
    output_uri: OutputOption = None,
    rehearsal: RehearsalOption = False,
    budget: BudgetOption = None,
    groups: GroupsOption = None,
    parallel_groups: ParallelOption = None,
    engine: EngineOption = "local",
    tpu: TpuOption = None,
    approved_by: Annotated[
        str,
        typer.Option("--approved-by", metavar="NAME", help="Who has approved it, where the workload asks."),
    ] = "",
    because: Annotated[
        str, typer.Option("--because", metavar="REASON", help="Why; both stand in the manifest.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Run a workload: what is missing in its output, and nothing else.

    Documents without a result whose failure is temporary are tried again; answers that are on record
    are never asked for (or paid) twice. Interrupt it whenever you like and run it again.
    """
    with answering(context, as_json) as backstage:
        parameters = {
            "workload": str(workload),
            "input": input_uri,
            "output": output_uri,
            "rehearsal": rehearsal,
            "budget": _amount(budget),
            "groups": groups,
            "parallel_groups": parallel_groups,
            "engine": engine,
            "tpu": tpu,
            "approved_by": approved_by,
            "reason": because,
            "runner_flags": _beam_flags(flags),
        }
        _exit_with(backstage.run(parameters, as_json))


@app.command(
    epilog=(
        "Examples:\n\n"
        "`switchgear retry output/` does what any new run would do;\n\n"
        "`switchgear retry output/ --include invalid_json --include truncated` pays for those again."
    ),
)
def retry(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="OUTPUT|WORKLOAD", help="The output folder, or the workload.", show_default=False
        ),
    ],
    flags: FlagsArgument = None,
    include: Annotated[
        list[FailureClass] | None,
        typer.Option(help="A failure class to try again besides the temporary ones.", show_default=False),
    ] = None,
    groups: GroupsOption = None,
    parallel_groups: ParallelOption = None,
    rehearsal: RehearsalOption = False,
    engine: Annotated[
        Engine | None,
        typer.Option(help="What runs the Beam pipelines.", show_default="as the run before"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run again, and also try documents whose failure was final.

    The same safe thing as `run`. An output folder remembers its workload, input, and whether it is a
    rehearsal. What was paid for such a document before is kept, and what the retry costs is added.
    """
    with answering(context, as_json) as backstage:
        changes = {
            "retry_classes": tuple(include or ()),
            "groups": groups,
            "parallel_groups": parallel_groups,
            "engine": engine,
            "runner_flags": _beam_flags(flags),
        }
        _exit_with(backstage.retry(target, changes, rehearsal, as_json))


@app.command(epilog="Example: `switchgear status output/ --json | jq .state`")
def status(context: typer.Context, output: OutputArgument, as_json: JsonOption = False) -> None:
    """Show where an output stands: running, waiting (for a person), interrupted, complete or incomplete.

    Lists rows by route, failures by reason, cost by backend, and the calls whose end is not known.
    """
    with answering(context, as_json) as backstage:
        _exit_with(backstage.status(output, as_json))


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
        _exit_with(backstage.demo(folder, as_json))


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


def _exit_with(complete: bool) -> None:
    if not complete:
        raise typer.Exit(EXIT_INCOMPLETE)


def _amount(text: str | None) -> Decimal | None:
    """An amount of money; never by way of a float."""
    if text is None:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or amount < 0:
        raise typer.BadParameter(f"--budget {text!r} is no amount in USD; give for example --budget 30")
    return amount


def _beam_flags(flags: list[str] | None) -> tuple[str, ...]:
    """The flags after `--`; a stray word among them is more likely a slip than a flag."""
    if flags and not flags[0].startswith("-"):
        raise typer.BadParameter(f"unexpected argument {flags[0]!r}; flags for Beam come after `--`")
    return tuple(flags or ())


def main(arguments: list[str] | None = None) -> Any:
    """The console script."""
    return app(arguments)


if __name__ == "__main__":
    main()
