"""`switchgear serve`: Prefect's server, a worker, the deployments and the automation, on this machine.

One folder holds its state (the server's database, logs, Prefect's settings), so that it starts again
where it stood. Server and worker are children that die with this process; one of them that ends by itself
is started again. On Ctrl-C or SIGTERM the runs that are at work stop sending, settle what is in flight and
are put back as due, the worker ends, and the server last. What a run has committed or paid for stands in its
output folder either way.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flows.deployments import POOL, apply_all, pool_template
from flows.ports import HOST
from flows.server import has_health, server_command
from flows.standing import put_back, runs_at_work
from pipelines.leash import leashed
from schemas.errors import ConfigurationError, SwitchgearError

PORT = 4200
START_TIMEOUT_S = 120.0
STOP_RUNS_S = 45.0
_STOP_SERVER_S = 10.0
_LOOK_EVERY_S = 0.2
_AGAIN_AFTER_S = 1.0
_LOCK = "serve.lock"
_UNSET = ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE")  # of another server than this one

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Serving:
    """Where it serves: state folder, port, the folder of relative paths in forms, and runs at a time."""

    state: Path
    port: int
    folder: Path
    limit: int

    @property
    def api(self) -> str:
        """The address of the API."""
        return f"http://{HOST}:{self.port}/api"

    @property
    def ui(self) -> str:
        """The address for a browser."""
        return f"http://{HOST}:{self.port}"

    def environment(self) -> dict[str, str]:
        """What server, worker and flow runs find in their environment besides what this process has."""
        inherited = {name: value for name, value in os.environ.items() if name not in _UNSET}
        return {
            **inherited,
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(self.state),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_API_HOST": HOST,
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "0",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "0",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        }


@dataclass(slots=True)
class Child:
    """A process of ours that is started again when it ends by itself. It has a process group of its own."""

    name: str
    command: list[str]
    serving: Serving
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Start it. The thread that calls this must outlive it (see `pipelines.leash`)."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                leashed(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.serving.folder,
                env=self.serving.environment(),
            )

    @property
    def has_ended(self) -> bool:
        """Whether it was started and is no longer there."""
        return self.process is not None and self.process.poll() is not None

    def stop(self, grace_s: float) -> None:
        """End it and all of its process group: SIGTERM, and SIGKILL after `grace_s` seconds."""
        if self.process is None:
            return
        deadline = time.monotonic() + grace_s
        _signal(self.process, signal.SIGTERM)
        while _signal(self.process, 0) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)
        _signal(self.process, signal.SIGKILL)
        self.process.wait()


def _signal(leader: subprocess.Popen[bytes], number: int) -> bool:
    """Signal a process group (0: only look); whether any process of it is there."""
    leader.poll()
    try:
        os.killpg(leader.pid, number)
    except ProcessLookupError:
        return False
    return True


def worker_command(pool: str) -> list[str]:
    """The command line of a process worker of the pool.

    How many runs go at a time is the pool's limit: a worker with a limit of its own ends when a run is
    due again whose former process is not quite gone.
    """
    start = [sys.executable, "-P", "-m", "prefect", "worker", "start", "--type", "process"]
    return [*start, "--pool", pool, "--name", "switchgear", "--install-policy", "never"]


def serve_here(serving: Serving, say: Say, stop: threading.Event) -> None:
    """Serve until `stop` is set; say what there is to see.

    Raises:
        ConfigurationError: the folder is served already, or the port is taken.
        SwitchgearError: the server does not start.
    """
    with _state_folder(serving):
        refuse_taken_port(serving.port)
        _configure_this_process(serving)
        logs = serving.state / "logs"
        logs.mkdir(exist_ok=True)
        server = Child("server", server_command(serving.port), serving, logs / "server.log")
        worker = Child("worker", worker_command(POOL), serving, logs / "worker.log")
        try:
            server.start()
            _wait_for_server(serving, server, stop)
            if stop.is_set():
                return
            _apply(serving)
            worker.start()
            for line in greeting(serving):
                say(line)
            _watch((server, worker), say, stop)
        finally:
            _stop(server, worker, say)


def greeting(serving: Serving) -> list[str]:
    """What to open, what to click, and how to stop."""
    return [
        f"Prefect's UI: {serving.ui}",
        "To run a workload: Deployments, enrich, Run, Custom run; give the workload file, Submit.",
        "To do again what failed: open the run, press the three dots, Retry.",
        f"Paths in a form are relative to {serving.folder}. State and logs are kept in {serving.state}.",
        f"From another terminal: PREFECT_API_URL={serving.api} switchgear deploy",
        "Ctrl-C stops it; runs that are at work go on when it is started again.",
    ]


def refuse_taken_port(port: int) -> None:
    """Raise a ConfigurationError if something listens on the port of this machine already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigurationError(
                f"port {port} of {HOST} can't be used ({error.strerror}). Give another one with --port, "
                "or stop what listens there"
            ) from None


@contextmanager
def _state_folder(serving: Serving) -> Iterator[None]:
    """Hold the state folder, which only one process may serve."""
    try:
        serving.state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(serving.state / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"state folder {serving.state} can't be used: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigurationError(
            f"{serving.state} is served already. Stop that `switchgear serve`, or give another folder "
            "with --state"
        ) from None
    finally:
        os.close(descriptor)


def _configure_this_process(serving: Serving) -> None:
    """Point the Prefect client of this process to the server; before Prefect is imported."""
    for name in _UNSET:
        os.environ.pop(name, None)
    os.environ.update(serving.environment())


def _apply(serving: Serving) -> None:
    apply_all(template=pool_template(serving.folder), limit=serving.limit)


def _wait_for_server(serving: Serving, server: Child, stop: threading.Event) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not has_health(serving.api) and not stop.is_set():
        if server.has_ended or time.monotonic() > deadline:
            raise SwitchgearError(f"Prefect's server does not start: see {server.log}")
        stop.wait(_LOOK_EVERY_S)


def _watch(children: tuple[Child, ...], say: Say, stop: threading.Event) -> None:
    """Start children again that end by themselves, until `stop` is set."""
    while not stop.wait(_LOOK_EVERY_S):
        for child in children:
            if child.has_ended and not stop.wait(_AGAIN_AFTER_S):
                assert child.process is not None
                say(f"The {child.name} ended with exit code {child.process.returncode}; it is started again.")
                child.start()


def _stop(server: Child, worker: Child, say: Say) -> None:
    if worker.process is not None:
        at_work = runs_at_work()
        if at_work:
            say(f"Stopping {len(at_work)} at work: what is in flight is settled.")
        worker.stop(STOP_RUNS_S)
        put_back(at_work)
    server.stop(_STOP_SERVER_S)
