"""One process of a host owns its accelerators, however many threads feed it; a second one is refused.

JAX takes a GPU's memory, and libtpu a TPU, when it is first used: a second process would get neither, and
say so in words of its own. CPUs are shared by any number of processes.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from schemas.errors import ConfigurationError
from schemas.ids import sha256_hex

PATIENCE_SECONDS = 60.0
"""How long a process waits for one that is just ending."""
_CHOICES = ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES")
_PLUGINS = {
    "nvidia[0-9]*": ("jax_cuda12_plugin", "jax_cuda13_plugin"),
    "accel[0-9]*": ("libtpu",),
    "vfio/[0-9]*": ("libtpu",),
    "kfd": ("jax_rocm60_plugin", "jax_rocm7_plugin"),
}
_LOG = logging.getLogger(__name__)
_HELD: dict[Path, IO[str]] = {}
_LOCK = threading.Lock()


def seen_devices(environment: Mapping[str, str] = os.environ) -> str:
    """Names this machine and the devices that a process here would see.

    A cache folder may be shared between machines, and between containers of one.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        boot = ""
    choices = (f"{name}={environment.get(name, '')}" for name in _CHOICES)
    return "\n".join([platform.node(), boot, *choices])


def may_use_accelerators(
    environment: Mapping[str, str] = os.environ,
    devices: Path = Path("/dev"),
    is_installed: Callable[[str], object] = importlib.util.find_spec,
) -> bool:
    """Whether JAX would find an accelerator here: a device file, its plugin, and no word against it."""
    chosen = environment.get("JAX_PLATFORMS")
    if chosen:
        return chosen.split(",")[0] != "cpu"
    return any(
        is_installed(plugin)
        for pattern, plugins in _PLUGINS.items()
        if next(devices.glob(pattern), None)
        for plugin in plugins
    )


def own_accelerators(
    folder: Path,
    environment: Mapping[str, str] = os.environ,
    *,
    patience: float = PATIENCE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Path:
    """Makes this process the owner, until it ends, however it ends; at once if it is already.

    Processes that are told to see different devices don't get in each other's way.

    Args:
        folder: where the lock file is; processes that shall know of each other name the same.
        environment: says which devices are seen.
        patience: seconds to wait for another owner to end.
        sleep: waits.
        now: a clock.

    Raises:
        ConfigurationError: another process is the owner; names it and says what to do.
    """
    path = folder / f"accelerators-{sha256_hex(seen_devices(environment).encode())[:12]}.lock"
    with _LOCK:
        if path in _HELD:
            return path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            _LOG.warning("%s: %s; nothing keeps a second process from the accelerators", path, error)
            return path
        end = now() + patience
        while not _taken(file):
            if now() >= end:
                file.seek(0)
                owner = file.read().strip() or "unknown"
                file.close()
                raise ConfigurationError(
                    f"the accelerators of this host belong to process {owner}: one process feeds them with "
                    "as many threads as it likes, and the workers of runs with limits.parallel_groups "
                    "above 1 share one. Wait for it, or give each its own devices (CUDA_VISIBLE_DEVICES, "
                    "TPU_VISIBLE_CHIPS)"
                )
            sleep(0.2)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        _HELD[path] = file
        return path


def _taken(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows, where there are no accelerators for JAX
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
