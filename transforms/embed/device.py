"""The devices that JAX finds here: the mesh over them, what they compute fast, where programs are kept."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from schemas.errors import ConfigurationError
from schemas.ids import sha256_hex
from transforms.embed.attention import kernel_that_works
from transforms.embed.execution import (
    ACCELERATOR_SLOTS,
    DATA_AXIS,
    MODEL_AXIS,
    Execution,
    choose_kernel,
)
from transforms.embed.kept_programs import discard_damaged

BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16")
_AMPERE = 8.0  # first NVIDIA compute capability with bfloat16 tensor cores
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Devices:
    """All devices of this process, as one mesh, and how steps are sized for them.

    The mesh's axes are those of `execution`: copies of the model, and the `parts` of a copy.
    """

    mesh: Mesh
    platform: str
    kind: str
    step_slots: int  # tokens that one device works on at a time
    fractions: tuple[int, ...]  # sizes of last steps, see `shapes.StepSize`
    steps_in_flight: int
    token_tile: int  # see `Execution`
    parts: int = 1  # devices that share one copy of the model

    @property
    def count(self) -> int:
        """Number of devices."""
        return int(self.mesh.devices.size)

    @property
    def copies(self) -> int:
        """Copies of the model, each of which takes its share of a step's rows."""
        return self.count // self.parts

    def execution(self, dtype: str, head_width: int) -> Execution:
        """How these devices compute a step of a model with heads of that width."""
        kernel = choose_kernel(self.platform, dtype, head_width, self.capability)
        return Execution(self.token_tile, kernel_that_works(kernel, head_width), self.parts)

    @property
    def capability(self) -> float | None:
        """The compute capability of NVIDIA's devices, None of others."""
        found = getattr(self.mesh.devices.flat[0], "compute_capability", None)
        return None if found is None else float(found)


def find_devices(parts: int = 1) -> Devices:
    """Every device that JAX sees, `parts` of them for each copy of the model.

    A CPU works best on about 1,024 tokens a step (larger steps lose to memory traffic), half of them
    at a time in the dense part of a layer, with one step in flight per core; accelerators want large
    steps and the next one ready.

    Raises:
        ConfigurationError: the devices can't be divided so.
    """
    found = jax.devices()
    if len(found) % parts:
        raise ConfigurationError(
            f"tensor_parallel = {parts}: this host has {count_of(found)}, which is no multiple of it. "
            "Choose a divisor, or a host with more devices."
        )
    mesh = Mesh(np.array(found).reshape(-1, parts), (DATA_AXIS, MODEL_AXIS))
    kind = str(found[0].device_kind)
    if found[0].platform == "cpu":
        in_flight = min(32, max(1, _usable_cores() // len(found)))
        return Devices(mesh, "cpu", kind, 1024, (4, 16), in_flight, 512, parts)
    return Devices(mesh, found[0].platform, kind, ACCELERATOR_SLOTS, (8, 64), 3, 0, parts)


def count_of(found: Sequence[Any]) -> str:
    """`1 device (cpu)`, `8 devices (TPU v5 lite)`."""
    return f"{len(found)} device{'s' if len(found) > 1 else ''} ({found[0].device_kind})"


def has_fast_bfloat16(devices: Devices, flags: frozenset[str] | None = None) -> bool:
    """Whether bfloat16 is faster than float32 here: AMX, AVX512-BF16, or an accelerator that has it."""
    if devices.platform == "cpu":
        found = cpu_flags() if flags is None else flags
        return any(flag in found for flag in BFLOAT16_FLAGS)
    return devices.capability is None or devices.capability >= _AMPERE


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_flags(told: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The CPU's feature flags as Linux names them (on ARM `Features`); empty elsewhere."""
    try:
        lines = told.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    found = (line.split(":", 1)[1] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(found, "").split())


def keep_programs(cache_dir: Path) -> Path | None:
    """Makes JAX keep every compiled program under `cache_dir`; the folder, or None if it can't be made."""
    folder = programs_folder(cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _LOG.warning("%s: %s; compiled programs are not kept, every start compiles again", folder, error)
        return None
    options: dict[str, Any] = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in options.items():
        jax.config.update(name, value)
    discard_damaged(folder)
    return folder


def programs_folder(
    cache_dir: Path,
    machine: str = platform.machine(),
    versions: Sequence[str] = (jax.__version__, version("jaxlib")),
    flags: frozenset[str] | None = None,
) -> Path:
    """Where the programs of machines of this kind are: the same folder for all of them, and for no others.

    Programs compiled for one CPU may not run on another that shares the home folder, so its name holds a
    digest of architecture, CPU features, and the versions of JAX and of the compiler in jaxlib. Kind and
    number of devices and the compiler's flags are in the names that JAX gives the programs there.
    """
    features = cpu_flags() if flags is None else flags
    kind = "\n".join([machine, *versions, *sorted(features)])
    return cache_dir / "xla" / sha256_hex(kind.encode())[:12]
