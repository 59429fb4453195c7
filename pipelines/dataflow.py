"""What a Dataflow job is told: workers, accelerators and container, as Beam flags.

Everything that a worker needs is in its container image (`--sdk_location=container`): nothing of the
launcher's folder is staged. One SDK process for each worker, so that one call engine and one embedder
serve all of its threads, and the one owns the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from schemas.errors import ConfigurationError

Tpu = Literal["v5e-1", "v5e-4", "v5e-8", "v6e-1", "v6e-4", "v6e-8"]
TPUS: tuple[Tpu, ...] = get_args(Tpu)


@dataclass(frozen=True, slots=True)
class TpuWorker:
    """A kind of worker with TPU chips, in Dataflow's own words."""

    accelerator: str
    topology: str
    machine_type: str


# Dataflow's list of accelerators, topologies and the machine type that each requires, read in November
# 2026: https://cloud.google.com/dataflow/docs/tpu/tpu-support
TPU_WORKERS: Mapping[Tpu, TpuWorker] = {
    "v5e-1": TpuWorker("tpu-v5-lite-podslice", "1x1", "ct5lp-hightpu-1t"),
    "v5e-4": TpuWorker("tpu-v5-lite-podslice", "2x2", "ct5lp-hightpu-4t"),
    "v5e-8": TpuWorker("tpu-v5-lite-podslice", "2x4", "ct5lp-hightpu-8t"),
    "v6e-1": TpuWorker("tpu-v6e-slice", "1x1", "ct6e-standard-1t"),
    "v6e-4": TpuWorker("tpu-v6e-slice", "2x2", "ct6e-standard-4t"),
    "v6e-8": TpuWorker("tpu-v6e-slice", "2x4", "ct6e-standard-8t"),
}
_REQUIRED = {
    "project": "the Google Cloud project's id",
    "region": "where the workers run, for example us-central1",
    "temp_location": "a gs:// folder for Dataflow's own files",
    "sdk_container_image": "the worker image, by digest (see infra/dataflow)",
}


def dataflow_flags(given: Mapping[str, str], tpu: Tpu | None) -> list[str]:
    """The flags of a job besides those that the user gave.

    With `tpu` the workers have TPU chips: the job for embed routes.

    Raises:
        ConfigurationError: flags that a job can't go without are missing; names all of them.
    """
    missing = [f"--{name}=… ({meaning})" for name, meaning in _REQUIRED.items() if not given.get(name)]
    if missing:
        raise ConfigurationError(
            f"engine dataflow needs, after --: {', '.join(missing)}. infra/dataflow has Terraform that makes "
            "what they name and prints them"
        )
    flags = [
        "--runner=DataflowRunner",
        "--sdk_location=container",
        "--experiments=no_use_multiple_sdk_containers",
        "--no_use_public_ips",
    ]
    return flags + (_on_tpu(TPU_WORKERS[tpu]) if tpu else [])


def _on_tpu(worker: TpuWorker) -> list[str]:
    accelerator = f"worker_accelerator=type:{worker.accelerator};topology:{worker.topology}"
    return [f"--machine_type={worker.machine_type}", f"--dataflow_service_options={accelerator}"]


def refuse_local(uris: Sequence[str]) -> None:
    """Workers on Dataflow have no disk of the launcher's.

    Raises:
        ConfigurationError: an address is not on Cloud Storage.
    """
    local = [uri for uri in uris if not uri.startswith("gs://")]
    if local:
        raise ConfigurationError(
            f"engine dataflow: its workers can't read {', '.join(local)}. Input, output and models must be "
            "on Cloud Storage: give gs:// addresses"
        )
