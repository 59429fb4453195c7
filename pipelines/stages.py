"""The pipelines of a group, one after the other, and what an engine asks of a workload.

An accelerator is a whole worker pool's. So with TPU workers for embed routes, hosted models are asked by a
pipeline on plain workers first: it commits the batches that need no embedding, and leaves the answers of
the others in the ledger, from where the pipeline on TPU workers replays them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.dataflow import Tpu, refuse_local
from pipelines.engines import Engine
from schemas.errors import ConfigurationError
from schemas.load import LoadedWorkload
from schemas.workload import Workload


@dataclass(frozen=True, slots=True)
class Stage:
    """One pipeline over a group's batches."""

    tpu: Tpu | None = None
    calls_only: bool = False


def stages_of(workload: Workload, tpu: Tpu | None) -> tuple[Stage, ...]:
    """The pipelines that a group's batches go through."""
    if tpu is None:
        return (Stage(),)
    embed = Stage(tpu)
    return (Stage(calls_only=True), embed) if workload.hosted_backends() else (embed,)


def require_engine(loaded: LoadedWorkload, engine: Engine, tpu: Tpu | None) -> None:
    """Make sure that a workload can run on an engine.

    Raises:
        ConfigurationError: TPU workers without use for them, or addresses that workers can't reach.
    """
    embedders = loaded.workload.embedder_backends()
    if tpu and engine != "dataflow":
        raise ConfigurationError(f"--tpu={tpu}: workers with TPUs are Dataflow's; add --engine dataflow")
    if tpu and not embedders:
        raise ConfigurationError(
            f"--tpu={tpu}: no route of workload {loaded.workload.name} has an embedder; leave --tpu out"
        )
    if engine == "dataflow":
        models = [backend.model_path for backend in embedders.values()]
        refuse_local([loaded.input_uri, loaded.output_uri, *models])
