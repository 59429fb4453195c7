"""What a run is started with: the form that Prefect's UI shows, and the command line's options."""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field

from pipelines.dataflow import Tpu
from pipelines.engines import Engine
from schemas.failures import FailureClass

LAUNCH_FILE = "launch.json"  # in the run's folder: what the run was started with


class EnrichParameters(BaseModel):
    """Which workload to run, over which documents, into which folder."""

    model_config = ConfigDict(extra="forbid")

    workload: str = Field(
        min_length=1, title="Workload", description="path of the workload file (TOML)", examples=["docs.toml"]
    )
    input: str | None = Field(
        None, title="Input", description="a folder, file or glob instead of the workload's input.uri"
    )
    output: str | None = Field(
        None, title="Output", description="a folder instead of the workload's output.uri"
    )
    rehearsal: bool = Field(
        False,
        title="Rehearsal",
        description="answer hosted backends with a stand-in on this machine: free, labelled in every row",
    )
    budget: Decimal | None = Field(
        None,
        ge=0,
        max_digits=24,
        decimal_places=12,
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
    runner_flags: tuple[str, ...] = Field(
        (), title="Beam flags", description="flags for the Beam pipeline, for example --parallelism=8"
    )
