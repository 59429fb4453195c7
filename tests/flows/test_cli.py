"""The command line: what it understands, what it answers, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.backstage import Backstage
from flows.cli import app
from flows.parameters import EnrichParameters
from flows.report import console
from flows.steps import Ending, Watcher
from schemas.errors import InputError, OutputError, Problem, StoreError, WorkloadError
from schemas.failures import FailureClass
from schemas.run import CODE_VERSION, Manifest
from tests.flows.fake_run import FakeRun
from transforms.plan import Plan

Make = Callable[..., Manifest]
COMMANDS = ("check", "run", "retry", "status", "failures", "search", "demo")


class Cli:
    """The command line over a run that is made up: `ending` is what a run gives, or raises."""

    def __init__(self, fake: FakeRun, ending: Ending) -> None:
        self.fake = fake
        self.ending: Ending | BaseException = ending
        self.asked: list[EnrichParameters] = []

    def __call__(self, *arguments: object) -> Result:
        backstage = Backstage(self.fake.steps, self._run, console(), console(stderr=True), lambda _: 0)
        return CliRunner().invoke(app, [str(a) for a in arguments], obj=backstage)

    def _run(self, parameters: EnrichParameters, watcher: Watcher) -> Ending:
        self.asked.append(parameters)
        watcher.say("working")
        if isinstance(self.ending, BaseException):
            raise self.ending
        return self.ending


@pytest.fixture
def cli(tmp_path: Path, manifest: Make, plan: Callable[..., Plan]) -> Cli:
    return Cli(FakeRun(tmp_path, 3, manifest()), Ending("/out", plan(3), manifest()))


def test_a_complete_run_exits_0_and_prints_its_report(cli: Cli) -> None:
    result = cli("run", "docs.toml")

    assert result.exit_code == 0
    assert "Complete: 1,190 results" in result.stdout
    assert "policy_rejected" in result.stdout
    assert "working" in result.stderr
    assert "working" not in result.stdout


@pytest.mark.parametrize("reason_class", ["failures", "batches", "budget"])
def test_an_incomplete_run_exits_3_whatever_is_left(reason_class: str, cli: Cli, manifest: Make) -> None:
    assert isinstance(cli.ending, Ending)
    cli.ending.manifest = manifest(state="incomplete", reason="something is left", reason_class=reason_class)

    result = cli("run", "docs.toml")

    assert result.exit_code == 3
    assert "Incomplete: something is left" in result.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkloadError("docs.toml", [Problem("name", "5", "a string")]), 2),
        (InputError("no files"), 2),
        (OutputError("another run is at work"), 2),
        (StoreError("disk full"), 1),
    ],
)
def test_errors_are_sentences_on_standard_error_with_their_exit_code(
    error: Exception, code: int, cli: Cli
) -> None:
    cli.ending = error

    result = cli("run", "docs.toml")

    assert result.exit_code == code
    assert "\nError: " in result.stderr
    assert str(error).splitlines()[0] in result.stderr
    assert "Traceback" not in result.output


def test_a_defect_exits_1_and_is_not_hidden(cli: Cli) -> None:
    cli.ending = ZeroDivisionError("a defect")

    result = cli("run", "docs.toml")

    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_ctrl_c_exits_1_and_says_how_to_go_on(cli: Cli) -> None:
    cli.ending = KeyboardInterrupt()

    result = cli("run", "docs.toml")

    assert result.exit_code == 1
    assert "the same command goes on from here" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["nonsense"],
        ["run", "docs.toml", "--nonsense"],
        ["run", "docs.toml", "--groups", "0"],
        ["run", "docs.toml", "--groups", "501"],
        ["run", "docs.toml", "--parallel-groups", "many"],
        ["run", "docs.toml", "--runner=FlinkRunner"],
        ["run", "docs.toml", "stray"],
        ["run", "docs.toml", "--budget", "much"],
        ["run", "docs.toml", "--budget", "0.0000000000001"],
        ["run", "docs.toml", "--approved-by", "n" * 201],
        ["retry", "out", "--include", "no_such_class"],
        ["failures", "out", "--class", "no_such_class"],
        ["failures", "out", "--limit", "0"],
        ["search", "out"],
    ],
)
def test_wrong_usage_exits_2_and_nothing_runs(arguments: list[str], cli: Cli) -> None:
    assert cli(*arguments).exit_code == 2
    assert cli.asked == []


def test_options_become_the_flows_parameters_and_flags_after_the_dashes_go_to_beam(cli: Cli) -> None:
    cli(
        *("run", "docs.toml", "--input", "in/", "--output", "out/", "--rehearsal", "--groups", 12),
        *("--parallel-groups", 4, "--", "--runner=FnApiRunner", "--direct_runner_bundle_repeat=2"),
    )

    assert cli.asked == [
        EnrichParameters(
            workload="docs.toml",
            input="in/",
            output="out/",
            rehearsal=True,
            groups=12,
            parallel_groups=4,
            runner_flags=("--runner=FnApiRunner", "--direct_runner_bundle_repeat=2"),
        )
    ]


def test_what_is_not_given_is_left_to_the_workload(cli: Cli) -> None:
    cli("run", "docs.toml")

    assert cli.asked == [EnrichParameters(workload="docs.toml")]


def test_json_is_the_only_thing_on_standard_output(cli: Cli) -> None:
    result = cli("run", "docs.toml", "--json")

    answer = json.loads(result.stdout)
    assert answer["nothing_due"] is False
    assert answer["output"] == "/out"
    assert Manifest.from_dict(answer["manifest"]).results == 1190


def test_an_error_is_json_too_when_json_was_asked_for(cli: Cli) -> None:
    cli.ending = InputError("no files")

    result = cli("run", "docs.toml", "--json")

    assert result.exit_code == 2
    assert json.loads(result.stdout) == {"error": {"class": "InputError", "message": "no files"}}


def test_a_finished_output_is_said_to_be_finished(cli: Cli, plan: Callable[..., Plan]) -> None:
    assert isinstance(cli.ending, Ending)
    cli.ending.plan = plan(0, committed=3)

    assert "Nothing was due: no call was made and no result was rewritten." in cli("run", "docs.toml").stdout
    assert json.loads(cli("run", "docs.toml", "--json").stdout)["nothing_due"] is True


def test_check_prints_what_it_found_and_runs_nothing(cli: Cli) -> None:
    result = cli("check", cli.fake.workload)

    assert result.exit_code == 0
    assert "checked" in result.stdout
    assert json.loads(cli("check", cli.fake.workload, "--json").stdout) == {"workload": "fake"}
    assert cli.asked == []


def test_check_names_every_problem_of_a_workload(cli: Cli, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(cli.fake.workload.read_text().replace('text = "text"', 'txt = "text"\nfilter = 5'))

    result = cli("check", bad)

    assert result.exit_code == 2
    assert "3 problems" in result.stderr
    assert "input.txt" in result.stderr
    assert "input.filter" in result.stderr


def output_of(cli: Cli, tmp_path: Path, **parameters: Any) -> Path:
    """An output folder that remembers what it was run with."""
    output = tmp_path / "output"
    (output / "runs" / "r1").mkdir(parents=True)
    marker = {"version": "output/1", "workload": "fake", "workload_sha256": "a", "rehearsal": False}
    (output / "switchgear.json").write_text(json.dumps(marker))
    noted = EnrichParameters(workload=str(cli.fake.workload), output=str(output), **parameters)
    (output / "runs" / "r1" / "launch.json").write_text(noted.model_dump_json())
    return output


def test_retry_of_an_output_runs_what_it_was_run_with_and_the_given_classes_besides(
    cli: Cli, tmp_path: Path
) -> None:
    output = output_of(cli, tmp_path, input="/in", rehearsal=True, groups=7)

    result = cli(
        "retry", output, "--include", "invalid_json", "--include", "truncated", "--parallel-groups", 2
    )

    assert result.exit_code == 0
    assert cli.asked == [
        EnrichParameters(
            workload=str(cli.fake.workload),
            input="/in",
            output=str(output),
            rehearsal=True,
            groups=7,
            parallel_groups=2,
            retry_classes=(FailureClass.INVALID_JSON, FailureClass.TRUNCATED),
        )
    ]


def test_retry_of_an_output_that_was_moved_works_where_it_is_now(cli: Cli, tmp_path: Path) -> None:
    moved = output_of(cli, tmp_path).rename(tmp_path / "moved")

    cli("retry", moved)

    assert cli.asked[0].output == str(moved)


def test_retry_of_what_is_not_there_says_what_to_give(cli: Cli) -> None:
    result = cli("retry", "nowhere")

    assert result.exit_code == 2
    assert "nowhere: there is no such folder or file. Give the output folder of a run" in result.stderr
    assert cli.asked == []


def test_retry_of_a_workload_is_a_run(cli: Cli) -> None:
    cli("retry", cli.fake.workload, "--rehearsal", "--include", "refused")

    assert cli.asked == [
        EnrichParameters(
            workload=str(cli.fake.workload), rehearsal=True, retry_classes=(FailureClass.REFUSED,)
        )
    ]


def test_status_exits_0_when_all_is_done_and_3_when_something_is_left(
    cli: Cli, tmp_path: Path, manifest: Make
) -> None:
    output = output_of(cli, tmp_path)
    path = output / "runs" / "r1" / "manifest.json"
    path.write_bytes(manifest().to_json())
    assert cli("status", output).exit_code == 0
    assert "Complete" in cli("status", output).stdout

    path.write_bytes(manifest(state="incomplete", reason="1 document is left").to_json())
    assert cli("status", output).exit_code == 3
    assert json.loads(cli("status", output, "--json").stdout)["state"] == "incomplete"


def test_status_lists_calls_of_unknown_end(cli: Cli, tmp_path: Path, manifest: Make, ambiguous: Any) -> None:
    output = output_of(cli, tmp_path)
    (output / "runs" / "r1" / "manifest.json").write_bytes(manifest(ambiguous=(ambiguous,)).to_json())

    assert "Calls of unknown end" in cli("status", output).stdout


def test_status_of_an_output_without_runs_says_so(cli: Cli, tmp_path: Path) -> None:
    output = output_of(cli, tmp_path)

    result = cli("status", output)

    assert result.exit_code == 3
    assert "no run has been planned yet" in result.stdout


@pytest.mark.parametrize("command", ["status", "failures", "search"])
def test_a_folder_that_is_not_ours_exits_2(command: str, cli: Cli, tmp_path: Path) -> None:
    more = ["words"] if command == "search" else []

    result = cli(command, tmp_path, *more)

    assert result.exit_code == 2
    assert "is no Switchgear output" in result.stderr


def test_without_failures_the_command_says_so_and_its_json_is_empty(cli: Cli, tmp_path: Path) -> None:
    output = output_of(cli, tmp_path)

    assert cli("failures", output).stdout == "No failures.\n"
    assert cli("failures", output, "--class", "refused").stdout == "No failures of class refused.\n"
    assert cli("failures", output, "--json").stdout == ""


def test_the_version_is_printed(cli: Cli) -> None:
    assert cli("--version").stdout == f"switchgear {CODE_VERSION}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, cli: Cli) -> None:
    result = cli(command, "--help")

    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"switchgear {command}" in " ".join(result.stdout.split())


def test_the_help_lists_all_commands_and_the_exit_codes(cli: Cli) -> None:
    text = cli("--help").stdout

    assert all(command in text for command in COMMANDS)
    assert "Exit codes: 0 complete" in text


def test_help_imports_nothing_heavy() -> None:
    heavy = {"prefect", "apache_beam", "pyarrow", "polars", "jax", "pydantic"}
    code = (
        "import sys\nfrom flows.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        f"print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    root = Path(__file__).resolve().parents[2]

    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)

    assert done.stderr.strip() == "[]"
