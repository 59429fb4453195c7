"""Where the embedder host of a machine is found: reached if it is there, started by whoever comes first.

Two files in the cache folder, named after the machine and the devices that this process would see: a lock
that the host holds as long as it lives, and its address. The kernel lets go of the lock however the host
ends, so that the next one to ask starts another.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import IO

from schemas.errors import BatchError
from schemas.ids import sha256_hex
from schemas.run import CODE_VERSION
from transforms.embed.ownership import seen_devices
from transforms.locked_file import lock_file

SOCKET_FOLDER = "switchgear-embedder-"
PATIENCE_S = 180.0
"""How long a host is waited for. It is there in seconds; a machine that is busy may take a minute."""
_SETTINGS = re.compile(
    "JAX_|XLA_|LIBTPU_|NVIDIA_|SWITCHGEAR_CPU_KERNELS$|STORAGE_EMULATOR_HOST$|GOOGLE_APPLICATION_CREDENTIALS$"
)
_LOOK_AGAIN_S = 0.1
_ROOT = Path(__file__).resolve().parents[2]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HostPlace:
    """The files by which a host is found: processes that have them in common share one."""

    lock: Path
    address: Path
    starting: Path

    @classmethod
    def under(cls, cache: Path, environment: Mapping[str, str] = os.environ) -> HostPlace:
        """The place for processes like this one: same machine, code, cores, devices and settings.

        A host has the environment of whoever started it: what JAX would do otherwise, and who may read a
        model, must not depend on whose host a worker finds.
        """
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        chosen = [f"{name}={environment[name]}" for name in sorted(environment) if _SETTINGS.match(name)]
        code = [CODE_VERSION, sys.executable, str(_ROOT)]
        like = "\n".join([*code, str(cores), seen_devices(environment), *chosen])
        folder, name = cache / "embedder", sha256_hex(like.encode())[:12]
        return cls(*(folder / f"{name}.{end}" for end in ("lock", "json", "starting")))

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """As the host's command line has them."""
        return self.lock, self.address, self.starting

    def own(self) -> IO[str] | None:
        """The lock, held until the file is closed or the process ends; None if another host has it."""
        return lock_file(self.lock)

    def announce(self, address: str) -> None:
        """Say where this process listens. The socket that a killed one left is removed."""
        self._remove_socket_of(self.read())
        draft = self.address.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps({"pid": os.getpid(), "address": address}), encoding="utf-8")
        draft.replace(self.address)

    def withdraw(self) -> None:
        """Take back what was announced."""
        self._remove_socket_of(self.read())
        self.address.unlink(missing_ok=True)

    def read(self) -> tuple[int, str]:
        """Process and address of the host that announced itself last; 0 and nothing without one."""
        try:
            told = json.loads(self.address.read_text(encoding="utf-8"))
            return int(told["pid"]), str(told["address"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""

    def connect(self) -> Connection | None:
        """A connection to the host, None if nobody listens."""
        address = self.read()[1]
        if not address:
            return None
        try:
            return Client(address, family="AF_UNIX")
        except OSError:
            return None

    @staticmethod
    def _remove_socket_of(told: tuple[int, str]) -> None:
        folder = Path(told[1]).parent
        if folder.name.startswith(SOCKET_FOLDER):
            shutil.rmtree(folder, ignore_errors=True)


def reach_host(
    place: HostPlace,
    start: Callable[[HostPlace], None] | None = None,
    *,
    patience: float = PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Connection:
    """A connection to this machine's host; one of those that ask starts it where there is none.

    Raises:
        BatchError: there was none within `patience` seconds.
        OSError: the place can't be written.
    """
    place.lock.parent.mkdir(parents=True, exist_ok=True)
    end = now() + patience
    while True:
        link = place.connect()
        if link is not None:
            return link
        with _starting(place) as first:
            link = place.connect() if first else None  # it may have come up meanwhile
            if first and link is None:
                (start or start_host)(place)
                link = place.connect()
        if link is not None:
            return link
        if now() >= end:
            raise BatchError(
                f"no embedder host answers on this machine (process {place.read()[0] or 'unknown'} was the "
                f"last, {place.lock} is its lock). The worker's log says why; run again"
            )
        sleep(_LOOK_AGAIN_S)


def start_host(place: HostPlace, patience: float = PATIENCE_S) -> None:
    """Start a host and wait until it listens, or has ended because another one does.

    It has a session of its own, so that what stops one worker leaves it to the others, and ends by itself
    when no worker is left. What it logs goes where this process's log goes.
    """
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "transforms.embed.shared_host", *map(str, place.files)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    with process.stdout as said:
        readable = select.poll()
        readable.register(said, select.POLLIN)
        if not readable.poll(int(patience * 1000)):
            _LOG.warning("embedder host %d: not ready within %.0f s", process.pid, patience)
        elif not os.read(said.fileno(), 64):
            _LOG.warning("embedder host %d ended at once, with exit code %d", process.pid, process.wait())


@contextlib.contextmanager
def _starting(place: HostPlace) -> Iterator[bool]:
    """Whether this thread, and no other of this machine, may start a host now."""
    file = lock_file(place.starting)
    try:
        yield file is not None
    finally:
        if file is not None:
            file.close()
