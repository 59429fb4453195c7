"""A Flink session cluster on this machine, for trying and for the tests: `make flink` first.

One job manager, some task managers and a worker pool beside each, all listening on loopback alone, from the
distribution that `python infra/flink/install.py --cluster` brings. A job has one address for its pools: here
a name that each task manager resolves by a file of its own, to 127.0.0.1, 127.0.0.2 and so on (all of which
are loopback's on Linux; elsewhere start one task manager, or give loopback more addresses). By hand::

    python infra/flink/cluster.py --task-managers 2

prints the flags to give `switchgear run --engine flink --` and runs until Ctrl-C. The pools take their
keys from this command's environment.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent.parent
DISTRIBUTION = _ROOT / "build" / "flink" / "dist"
MASTER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
_READY_S = 300.0
_POOL = "switchgear-pool"
_OPENED = (  # what Flink's own start scripts open of Java 17's modules
    "java.lang",
    "java.net",
    "java.io",
    "java.nio",
    "sun.nio.ch",
    "java.lang.reflect",
    "java.text",
    "java.time",
    "java.util",
    "java.util.concurrent",
    "java.util.concurrent.atomic",
    "java.util.concurrent.locks",
)
SHORT_LIVED = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""For a JVM that lives for seconds: optimising takes more than it gives."""
_TASK_MANAGER_SETTINGS = {  # Flink's scripts work these out; started without them, all must be given
    "taskmanager.cpu.cores": "1.0",
    "taskmanager.memory.task.heap.size": "256m",
    "taskmanager.memory.task.off-heap.size": "64m",
    "taskmanager.memory.managed.size": "64m",
    "taskmanager.memory.network.min": "64m",
    "taskmanager.memory.network.max": "64m",
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "128m",
    "taskmanager.memory.jvm-overhead.max": "128m",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster. `task_managers` are its processes, in order, and `pools` those beside them."""

    rest: str
    pool_address: str
    task_managers: list[subprocess.Popen[bytes]]
    pools: list[subprocess.Popen[bytes]]
    start_task_manager: Callable[[int, str], subprocess.Popen[bytes]]
    start_pool: Callable[[int, str], subprocess.Popen[bytes]]
    logs: Path

    def flags(self, parallelism: int) -> list[str]:
        """What to give a run after `--`."""
        return [
            f"--flink_master={self.rest}",
            "--environment_type=EXTERNAL",
            f"--environment_config={self.pool_address}",
            f"--parallelism={parallelism}",
        ]

    def kill_task_manager(self, number: int) -> None:
        """SIGKILL one; another takes its place beside its pool, as a pod restarts a container that died."""
        old = self.task_managers[number]
        old.kill()
        old.wait()
        self.task_managers[number] = self.start_task_manager(number, "-again")

    def kill_host(self, number: int) -> None:
        """SIGKILL a task manager and its pool, as when their host is lost; others take their place."""
        for process in (self.pools[number], self.task_managers[number]):
            process.kill()
        for process in (self.pools[number], self.task_managers[number]):
            process.wait()
        self.pools[number] = self.start_pool(number, "-anew")
        self.task_managers[number] = self.start_task_manager(number, "-anew")

    def overview(self) -> dict[str, int]:
        """Flink's own count of task managers, slots and jobs."""
        with urllib.request.urlopen(f"http://{self.rest}/overview", timeout=5) as answer:
            return dict(json.load(answer))


@contextmanager
def session_cluster(
    task_managers: int, slots: int, environ: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """Start a cluster and stop it again; only processes that were started here are stopped.

    Raises:
        FileNotFoundError: no distribution, or no Java.
        TimeoutError: the task managers have not come up in time; the message names the logs.
    """
    if not (DISTRIBUTION / "lib").is_dir():
        raise FileNotFoundError(
            f"no Flink in {DISTRIBUTION}: run `make flink` or infra/flink/install.py --cluster"
        )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flink-")))
        ports = _free_ports(3)
        settings = {
            "jobmanager.rpc.address": "127.0.0.1",
            "jobmanager.bind-host": "127.0.0.1",
            "jobmanager.rpc.port": str(ports[0]),
            "rest.address": "127.0.0.1",
            "rest.bind-address": "127.0.0.1",
            "rest.port": str(ports[1]),
            "taskmanager.host": "127.0.0.1",
            "taskmanager.bind-host": "127.0.0.1",
            "taskmanager.numberOfTaskSlots": str(slots),
            "blob.server.port": "0",
            "io.tmp.dirs": str(folder / "tmp"),
            "heartbeat.timeout": "10000",
            "heartbeat.interval": "2000",
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": "5",
            "restart-strategy.fixed-delay.delay": "1s",
        }
        (folder / "tmp").mkdir()
        (folder / "config.yaml").write_text("".join(f"{k}: {v}\n" for k, v in settings.items()))
        start = _Starter(folder, stack, dict(os.environ if environ is None else environ))
        start.java("job-manager", MASTER, {}, "512m")

        def start_task_manager(number: int, again: str = "") -> subprocess.Popen[bytes]:
            hosts = folder / f"hosts-{number}"
            hosts.write_text(f"127.0.0.1 localhost {socket.gethostname()}\n{_beside(number)} {_POOL}\n")
            name = f"task-manager-{number}{again}"
            return start.java(name, _TASK_MANAGER, _TASK_MANAGER_SETTINGS, "512m", hosts)

        def start_pool(number: int, again: str = "") -> subprocess.Popen[bytes]:
            where = (f"--host={_beside(number)}", f"--port={ports[2]}")
            return start.python(f"pool-{number}{again}", "pipelines.worker_pool", *where)

        managers = [start_task_manager(number) for number in range(task_managers)]
        pools = [start_pool(number) for number in range(task_managers)]
        rest, pool = f"127.0.0.1:{ports[1]}", f"{_POOL}:{ports[2]}"
        cluster = Cluster(rest, pool, managers, pools, start_task_manager, start_pool, folder)
        _wait_for(cluster, [(_beside(number), ports[2]) for number in range(task_managers)])
        yield cluster


class _Starter:
    def __init__(self, folder: Path, stack: ExitStack, environ: dict[str, str]) -> None:
        self._folder = folder
        self._stack = stack
        self._environ = environ
        self._java = shutil.which("java")

    def java(
        self, name: str, main: str, settings: Mapping[str, str], heap: str, hosts: Path | None = None
    ) -> subprocess.Popen[bytes]:
        if self._java is None:
            raise FileNotFoundError("no java on the PATH: install a Java 17 runtime")
        opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED]
        given = [part for key, value in settings.items() for part in ("-D", f"{key}={value}")]
        names = [] if hosts is None else [f"-Djdk.net.hosts.file={hosts}"]
        command = [
            self._java,
            f"-Xmx{heap}",
            *SHORT_LIVED,
            *names,
            *opened,
            "-cp",
            f"{DISTRIBUTION}/lib/*",
            main,
        ]
        return self._start(name, [*command, "--configDir", str(self._folder), *given])

    def python(self, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        return self._start(name, [sys.executable, "-m", module, *arguments])

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self._folder / f"{name}.log").open("wb"))
        leash = [sys.executable, "-I", "-S", str(_ROOT / "pipelines" / "leash.py"), str(os.getpid())]
        process = subprocess.Popen(
            [*leash, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=_ROOT,
            env=self._environ,
        )
        self._stack.callback(_stop, process)
        return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for(cluster: Cluster, pools: list[tuple[str, int]]) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        try:
            if cluster.overview()["taskmanagers"] >= len(pools):
                for address in pools:
                    socket.create_connection(address, timeout=5).close()
                return
        except OSError:
            pass
        time.sleep(0.3)
    raise TimeoutError(
        f"the Flink cluster has not come up in {_READY_S:.0f} s; its logs are in {cluster.logs}"
    )


def _beside(number: int) -> str:
    """Where the pool of a task manager listens."""
    return f"127.0.0.{number + 1}"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def main() -> int:
    """Run a cluster until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task-managers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=1, help="of each task manager")
    arguments = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with session_cluster(arguments.task_managers, arguments.slots) as cluster:
        flags = " ".join(cluster.flags(arguments.task_managers * arguments.slots))
        print(f"Flink: http://{cluster.rest}\nswitchgear run WORKLOAD --engine flink -- {flags}", flush=True)
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
