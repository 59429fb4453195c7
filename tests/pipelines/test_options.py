import logging

import pytest
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

from pipelines.options import pipeline_options
from schemas.errors import ConfigurationError, RunnerRefusedError


def test_the_default_is_the_runner_that_loses_nothing() -> None:
    options = pipeline_options([])
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    assert options.view_as(DirectOptions).direct_running_mode == "in_memory"


def test_the_log_of_who_asks_for_options_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    pipeline_options([])
    assert root.handlers == []


@pytest.mark.parametrize(
    "runner",
    [
        "DirectRunner",
        "directrunner",
        "SwitchingDirectRunner",
        "PrismRunner",
        "BundleBasedDirectRunner",
        "DaskRunner",
        "InteractiveRunner",
        "apache_beam.runners.dask.dask_runner.DaskRunner",
        "apache_beam.runners.direct.direct_runner.DirectRunner",
    ],
)
def test_an_unsafe_runner_is_refused_by_name_with_the_reason(runner: str) -> None:
    with pytest.raises(RunnerRefusedError) as caught:
        pipeline_options([f"--runner={runner}"])
    name = runner.rsplit(".", 1)[-1].lower()
    said = str(caught.value)
    assert said.startswith(f"--runner={name} is refused: it ")
    assert "Allowed: FnApiRunner" in said
    assert isinstance(caught.value, ConfigurationError)


def test_the_last_of_two_runners_counts() -> None:
    with pytest.raises(RunnerRefusedError):
        pipeline_options(["--runner=FnApiRunner", "--runner=DirectRunner"])


def test_no_runner_would_be_the_unsafe_default() -> None:
    with pytest.raises(RunnerRefusedError):
        pipeline_options(["--runner="])


def test_the_mode_that_loses_elements_is_refused() -> None:
    with pytest.raises(RunnerRefusedError, match="multi_threading is refused: it silently loses elements"):
        pipeline_options(["--direct_running_mode=multi_threading"])


def test_a_shortened_flag_is_refused_and_chooses_nothing_unsafe() -> None:
    with pytest.raises(ConfigurationError, match="--direct_running_m, --runne"):
        pipeline_options(["--runne=DirectRunner", "--direct_running_m=multi_threading"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--direct_running_mode=multi_processing"],
        ["--runner=FlinkRunner", "--flink_master=localhost:8081"],
        ["--runner=DataflowRunner"],
        ["--runner=PortableRunner"],
        ["--direct_runner_bundle_repeat=2"],
    ],
)
def test_other_runners_and_options_are_the_users_choice(
    flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/no/space/python")
    options = pipeline_options(flags).get_all_options()
    for flag in flags:
        name, value = flag.removeprefix("--").split("=")
        assert str(options[name]) == value


@pytest.mark.parametrize("flags", [["--no_such_flag=3"], ["--direct_runer_bundle_repeat", "2"]])
def test_a_flag_that_beam_does_not_know_is_refused_by_name(flags: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=flags[0].split("=")[0]):
        pipeline_options(flags)


def test_flags_of_beam_are_taken() -> None:
    options = pipeline_options(["--direct_runner_bundle_repeat=2", "--experiments=a", "--labels=k=v"])
    assert options.get_all_options()["direct_runner_bundle_repeat"] == 2


def test_worker_processes_that_beam_could_not_start_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/with space/python")
    with pytest.raises(ConfigurationError, match="because of the space in that path"):
        pipeline_options(["--direct_running_mode=multi_processing"])
    pipeline_options([])
