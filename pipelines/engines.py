"""The engines that a run can be given to, each as the Beam flags that stand for it.

`local` is Beam's runner in this process. `flink` hands the pipeline to Beam's job server for Flink: an
embedded Flink (`--flink_master=[local]`, the default) or a cluster that runs already. `dataflow` is Google's
service. Who says more after `--` decides: the flags here come first.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from pipelines.dataflow import Tpu, dataflow_flags
from schemas.errors import ConfigurationError

Engine = Literal["local", "flink", "dataflow"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
JOB_SERVER = "SWITCHGEAR_FLINK_JOB_SERVER"
_LOCAL = ("--runner=FnApiRunner", "--direct_running_mode=in_memory")
_EMBEDDED = ("[local]", "[auto]")
_WIDTHS: Mapping[Engine, tuple[str, ...]] = {
    "dataflow": ("max_num_workers", "num_workers"),
    "flink": ("parallelism",),
}
_ROOT = Path(__file__).resolve().parent.parent


def engine_flags(
    engine: Engine,
    flags: Sequence[str],
    environ: Mapping[str, str] | None = None,
    tpu: Tpu | None = None,
) -> tuple[str, ...]:
    """All flags of a run: the engine's, then the user's. `tpu` is the kind of Dataflow's workers.

    Raises:
        ConfigurationError: Flink's job server is not at hand, nothing says where a cluster's workers are, or
            what Dataflow needs is missing.
    """
    if engine == "local":
        return (*_LOCAL, *flags)
    if engine == "dataflow":
        return (*dataflow_flags(given_flags(flags), tpu), *flags)
    return (*_flink(flags, os.environ if environ is None else environ), *flags)


def given_flags(flags: Sequence[str]) -> dict[str, str]:
    """Flags of the form --name=value by name."""
    return dict(flag.lstrip("-").split("=", 1) for flag in flags if "=" in flag)


def most_workers(engine: Engine, flags: Sequence[str]) -> int:
    """How many workers a pipeline has at most, as far as its flags say: one where they don't."""
    given = given_flags(flags)
    said = [given.get(name, "") for name in _WIDTHS.get(engine, ())]
    return max([1, *(int(number) for number in said if number.isdecimal())])


def secret_project(engine: Engine, flags: Sequence[str]) -> str | None:
    """The project whose Secret Manager has the keys, for workers that have no environment of ours."""
    return given_flags(flags).get("project") if engine == "dataflow" else None


def _flink(flags: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    given = given_flags(flags)
    own = ["--runner=FlinkRunner"]
    if given.get("flink_master", "[local]") in _EMBEDDED:
        own += ["--flink_master=[local]", "--environment_type=LOOPBACK"]
    elif "environment_type" not in given:
        raise ConfigurationError(
            f"--flink_master={given['flink_master']}: nothing says where that cluster's workers are. Start "
            "`python -m pipelines.worker_pool` beside every task manager and give, after --, "
            "--environment_type=EXTERNAL --environment_config=HOST:PORT"
        )
    if "job_endpoint" in given:
        return own
    if "flink_job_server_jar" not in given:
        own.append(f"--flink_job_server_jar={_job_server(environ)}")
    return own + _leashed_java()


def _job_server(environ: Mapping[str, str]) -> str:
    jar = environ.get(JOB_SERVER) or str(_ROOT / "build" / "flink" / "job-server.jar")
    if not Path(jar).is_file():
        raise ConfigurationError(
            f"engine flink needs Beam's job server for Flink, and there is no file {jar}. `make flink` "
            "brings it (Java 17 and Maven are needed for that); or name a jar in "
            f"{JOB_SERVER}, or after -- with --flink_job_server_jar=PATH"
        )
    return jar


def _leashed_java() -> list[str]:
    """Start Java so that it dies with this process, whatever kills that."""
    java = shutil.which("java")
    if java is None:
        raise ConfigurationError(
            "engine flink needs Java: there is no `java` on the PATH. Install a Java 17 runtime "
            "(Debian: apt-get install openjdk-17-jre-headless)"
        )
    leash = Path(__file__).resolve().with_name("leash.py")
    before = ("-I", "-S", str(leash), str(os.getpid()), java, "-Xmx1g")
    return [
        f"--job_server_java_launcher={sys.executable}",
        *(f"--job_server_jvm_properties={part}" for part in before),
    ]
