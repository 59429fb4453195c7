"""The arguments and options that several commands take, each with its words for `--help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.dataflow import Tpu
from pipelines.engines import Engine

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
