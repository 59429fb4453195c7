"""What the flows are started with: the forms that Prefect's UI shows, and the command line's options."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from pipelines.dataflow import Tpu
from pipelines.engines import Engine
from schemas.failures import FailureClass

Usd = Annotated[
    Decimal,
    Field(ge=0, max_digits=24, decimal_places=12),
    WithJsonSchema({"type": "number", "minimum": 0, "title": "US dollars"}),
]
"""An amount that a form shows as one field for a number, and that never becomes a float here."""
WorkloadFile = Annotated[
    str,
    Field(
        min_length=1, title="Workload", description="path of the workload file (TOML)", examples=["docs.toml"]
    ),
]
OtherInput = Annotated[
    str | None,
    Field(title="Input", description="a folder, file or glob instead of the workload's input.uri"),
]
Rehearsal = Annotated[
    bool,
    Field(
        title="Rehearsal",
        description="answer hosted backends with a stand-in on this machine: free, labelled in every row",
    ),
]
RUN_ID = r"^[0-9]{8}T[0-9]+Z-[0-9a-f]+$"
DATE = "{date}"
"""Stands for a day in the input and output of a backfill."""
LAUNCH_FILE = "launch.json"  # in the run's folder: what the run was started with


class EnrichParameters(BaseModel):
    """Which workload to run, over which documents, into which folder."""

    model_config = ConfigDict(extra="forbid")

    workload: WorkloadFile
    input: OtherInput = None
    output: str | None = Field(
        None, title="Output", description="a folder instead of the workload's output.uri"
    )
    rehearsal: Rehearsal = False
    budget: Usd | None = Field(
        None,
        title="Budget",
        description="a cap in USD for this run instead of the workload's budget.amount: what was approved",
    )
    groups: int | None = Field(
        None,
        ge=1,
        le=500,
        title="Groups",
        description="task runs that the batches are divided into; by default according to their number",
    )
    parallel_groups: int | None = Field(
        None, ge=1, le=64, title="Groups at a time", description="worker processes that run at the same time"
    )
    retry_classes: tuple[FailureClass, ...] = Field(
        (),
        title="Also retry",
        description="failure classes to try again besides those that every run tries again by itself",
    )
    engine: Engine = Field(
        "local",
        title="Engine",
        description="what runs the Beam pipelines: this machine's processes, Flink or Google Cloud Dataflow",
    )
    tpu: Tpu | None = Field(
        None, title="TPU", description="the chips of Dataflow's workers for embed routes, for example v5e-1"
    )
    approved_by: str = Field(
        "",
        max_length=200,
        title="Approved by",
        description="who has approved this run up to its budget: it then asks nobody; for the manifest",
    )
    reason: str = Field(
        "", max_length=2000, title="Reason", description="why they approved it; for the manifest"
    )
    runner_flags: tuple[str, ...] = Field(
        (), title="Beam flags", description="flags for the Beam pipeline, for example --parallelism=8"
    )


class RepairParameters(BaseModel):
    """Which output to repair, what of it, and what to do otherwise this time."""

    model_config = ConfigDict(extra="forbid")

    output: str = Field(
        min_length=1, title="Output", description="the output folder of the run", examples=["answers"]
    )
    run: str | None = Field(
        None,
        pattern=RUN_ID,
        title="Run",
        description="take over what this run was started with; by default the newest",
    )
    batches: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{4,32}$")], ...] = Field(
        (),
        title="Only these batches",
        description="batch ids, or how they begin, as the batch table shows them; by default all due",
    )
    failure_classes: tuple[FailureClass, ...] = Field(
        (),
        title="Also retry",
        description="failure classes to try again besides those that every run tries again by itself; "
        "their answers are paid again",
    )
    backend: str | None = Field(
        None,
        title="Other backend",
        description="a backend of the workload that takes the documents instead of their routes' own",
    )
    routes: tuple[str, ...] = Field(
        (),
        title="Routes of the other backend",
        description="by default every route that may use it",
    )
    budget: Usd | None = Field(
        None,
        title="Raised cap (USD)",
        description="for the whole output, what it has cost already included; by default as before",
    )
    approved_by: str = Field(
        "", max_length=200, title="Approved by", description="who has approved the cap; for the manifest"
    )
    reason: str = Field("", max_length=2000, title="Reason", description="why; for the manifest")


class BackfillParameters(BaseModel):
    """Which workload to run, for which days of a date-partitioned input."""

    model_config = ConfigDict(extra="forbid")

    workload: WorkloadFile
    input: str = Field(
        pattern=r"\{date\}",
        title="Input of a day",
        description="folder, file or glob with {date} in it; days without a folder are left out",
        examples=["docs/dt={date}"],
    )
    output: str | None = Field(
        None,
        title="Output of a day",
        description="folder, with or without {date} in it; by default the workload's output.uri",
        examples=["answers/dt={date}"],
    )
    first: date | None = Field(None, title="First day", description="by default as many days as below")
    last: date | None = Field(None, title="Last day", description="by default yesterday (UTC)")
    days: int = Field(
        7, ge=1, le=3660, title="Days", description="how many days up to the last one, without a first day"
    )
    date_format: str = Field(
        "%Y-%m-%d", min_length=2, title="Date format", description="how {date} is written (strftime)"
    )
    rehearsal: Rehearsal = False
    budget: Usd | None = Field(
        None, title="Cap (USD)", description="for each output, instead of the workload's budget.amount"
    )

    @model_validator(mode="after")
    def _days_in_order(self) -> BackfillParameters:
        if self.first is not None and self.last is not None and self.first > self.last:
            raise ValueError(f"first day {self.first} is after the last day {self.last}: swap them")
        return self


class QuoteParameters(BaseModel):
    """Which workload to price."""

    model_config = ConfigDict(extra="forbid")

    workload: WorkloadFile
    input: OtherInput = None
    output: str | None = Field(
        None, title="Output", description="what this folder holds already is left out of the price"
    )
    sample: int = Field(
        1000, ge=2, le=1_000_000, title="Sample", description="documents to measure for each route"
    )


class ReportParameters(BaseModel):
    """Which output to report on."""

    model_config = ConfigDict(extra="forbid")

    output: str = Field(
        min_length=1, title="Output", description="the output folder of a run", examples=["answers"]
    )
    run: str | None = Field(
        None, pattern=RUN_ID, title="Run", description="a run of this output; by default the newest"
    )


class SweepParameters(BaseModel):
    """What to sweep."""

    model_config = ConfigDict(extra="forbid")

    folder: str = Field(
        min_length=1,
        title="Folder",
        description="an output folder, or a folder of outputs",
        examples=["answers"],
    )
