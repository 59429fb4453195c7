"""The commands from a workload to its output: `switchgear check`, `quote`, `run` and `retry`."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from flows.answering import answering, exit_with
from flows.options import (
    BudgetOption,
    EngineOption,
    FlagsArgument,
    GroupsOption,
    InputOption,
    JsonOption,
    OutputOption,
    ParallelOption,
    RehearsalOption,
    TpuOption,
    WorkloadArgument,
)
from pipelines.engines import Engine
from schemas.failures import FailureClass


def register_running(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog="Example: `switchgear check docs.toml --input new-documents/`")(check)
    app.command(
        epilog=(
            "Examples:\n\n"
            "`switchgear quote docs.toml` prices what a run would do now;\n\n"
            "`switchgear quote docs.toml --json | jq .total`"
        ),
    )(quote)
    app.command(
        epilog=(
            "Examples:\n\n"
            "`switchgear run docs.toml --rehearsal --output rehearsed/` tries everything for free;\n\n"
            "`switchgear run docs.toml --groups 12 --parallel-groups 4` uses four processes;\n\n"
            "`switchgear run docs.toml -- --direct_runner_bundle_repeat=2` hands a flag to the Beam pipeline."
        ),
    )(run)
    app.command(
        epilog=(
            "Examples:\n\n"
            "`switchgear retry output/` does what any new run would do;\n\n"
            "`switchgear retry output/ --include invalid_json --include truncated` pays for those again."
        ),
    )(retry)


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
        exit_with(backstage.run(parameters, as_json))


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
        exit_with(backstage.retry(target, changes, rehearsal, as_json))


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
