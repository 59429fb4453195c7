import os
import sys
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    JobServerOptions,
    PortableOptions,
    StandardOptions,
)

from pipelines.engines import JOB_SERVER, engine_flags, most_workers
from pipelines.options import pipeline_options, works_here
from schemas.errors import ConfigurationError


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A job server and a java that are files, and nothing else."""
    for name in ("job-server.jar", "java"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(JOB_SERVER, str(tmp_path / "job-server.jar"))
    return {JOB_SERVER: str(tmp_path / "job-server.jar")}


def test_flink_is_an_embedded_one_unless_a_cluster_is_named(environ: dict[str, str], tmp_path: Path) -> None:
    options = pipeline_options([], "flink")
    assert options.view_as(StandardOptions).runner == "FlinkRunner"
    assert options.view_as(FlinkRunnerOptions).flink_master == "[local]"
    assert options.view_as(FlinkRunnerOptions).flink_job_server_jar == str(tmp_path / "job-server.jar")
    assert options.view_as(PortableOptions).environment_type == "LOOPBACK"
    assert works_here(options)


def test_the_job_server_dies_with_the_process_that_started_it(
    environ: dict[str, str], tmp_path: Path
) -> None:
    options = pipeline_options([], "flink").view_as(JobServerOptions)
    assert options.job_server_java_launcher == sys.executable
    leash = Path(__file__).parents[2] / "pipelines" / "leash.py"
    assert options.job_server_jvm_properties == [
        "-I",
        "-S",
        str(leash),
        str(os.getpid()),
        str(tmp_path / "java"),
        "-Xmx1g",
    ]


def test_the_workers_of_a_cluster_are_elsewhere(environ: dict[str, str]) -> None:
    cluster = [
        "--flink_master=flink:8081",
        "--environment_type=EXTERNAL",
        "--environment_config=localhost:50000",
    ]
    options = pipeline_options(cluster, "flink")
    assert options.view_as(PortableOptions).environment_config == "localhost:50000"
    assert not works_here(options)


def test_a_cluster_without_workers_is_refused_and_the_error_says_how_to_start_some(
    environ: dict[str, str],
) -> None:
    with pytest.raises(ConfigurationError, match=r"pipelines\.worker_pool.*EXTERNAL"):
        engine_flags("flink", ["--flink_master=flink:8081"], environ)


def test_a_job_server_that_is_not_there_is_named_with_what_brings_it(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no file /none\.jar\. `make flink` brings it"):
        engine_flags("flink", [], {JOB_SERVER: "/none.jar"})


def test_a_machine_without_java_is_told_so(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ConfigurationError, match="no `java` on the PATH"):
        engine_flags("flink", [], environ)


def test_a_job_server_that_runs_already_needs_neither(environ: dict[str, str]) -> None:
    flags = engine_flags("flink", ["--job_endpoint=127.0.0.1:8099"], {})
    assert flags == (
        "--runner=FlinkRunner",
        "--flink_master=[local]",
        "--environment_type=LOOPBACK",
        "--job_endpoint=127.0.0.1:8099",
    )


def test_what_stands_behind_the_dashes_comes_last_and_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/no/space/python")
    assert engine_flags("local", ["--x=1"])[-1] == "--x=1"
    assert works_here(pipeline_options([]))
    assert not works_here(pipeline_options(["--direct_running_mode=multi_processing"]))


def test_how_many_workers_there_may_be_is_what_the_engines_flags_say() -> None:
    flags = ["--max_num_workers=1000", "--parallelism=8", "--save_main_session"]
    assert (most_workers("dataflow", flags), most_workers("flink", flags)) == (1000, 8)
    assert (most_workers("local", flags), most_workers("dataflow", [])) == (1, 1)
    assert most_workers("flink", ["--parallelism=-1"]) == 1
    assert most_workers("dataflow", ["--num_workers=200", "--autoscaling_algorithm=NONE"]) == 200
