import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import OutputError
from schemas.load import LoadedWorkload
from tests.support.workloads import load
from transforms.output import open_output, read_manifest, read_marker

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedWorkload:
    return load(tmp_path)


def use(loaded: LoadedWorkload, *, rehearsal: bool = False) -> None:
    with open_output(loaded, rehearsal=rehearsal):
        pass


def refusal(loaded: LoadedWorkload, *, rehearsal: bool = False) -> str:
    with pytest.raises(OutputError) as caught:
        use(loaded, rehearsal=rehearsal)
    return str(caught.value)


def test_a_new_output_is_marked_with_its_workload(loaded: LoadedWorkload) -> None:
    with open_output(loaded, rehearsal=True) as output:
        assert output.store.root == loaded.output_uri
        assert output.rehearsal
    assert read_marker(loaded.output_uri) == {
        "version": "output/1",
        "workload": "demo",
        "workload_sha256": loaded.workload.digest(),
        "rehearsal": True,
    }


def test_the_same_workload_goes_on_where_it_was(loaded: LoadedWorkload) -> None:
    use(loaded)
    Path(loaded.output_uri, "results").mkdir()
    use(loaded)


def test_a_changed_budget_is_the_same_workload(tmp_path: Path) -> None:
    use(load(tmp_path))
    use(load(tmp_path, budget__amount="5", limits__max_in_flight=3))


def test_another_workload_is_refused_with_both_versions(tmp_path: Path) -> None:
    first = load(tmp_path)
    use(first)
    second = load(tmp_path, prompts__topic__template="Other: {{ text }}")
    said = refusal(second)
    assert first.workload.digest()[:12] in said
    assert second.workload.digest()[:12] in said
    assert "give a new output folder, or go back to that version" in said


@pytest.mark.parametrize(
    ("first", "words"),
    [(True, "holds rehearsed results; real ones"), (False, "holds real results; rehearsed ones")],
)
def test_rehearsed_and_real_results_do_not_mix(loaded: LoadedWorkload, first: bool, words: str) -> None:
    use(loaded, rehearsal=first)
    assert words in refusal(loaded, rehearsal=not first)


def test_a_folder_with_something_else_in_it_is_left_alone(loaded: LoadedWorkload) -> None:
    root = Path(loaded.output_uri)
    root.mkdir()
    (root / "thesis.tex").write_text("precious")
    assert "is not empty and is no Switchgear output (found 'thesis.tex')" in refusal(loaded)
    assert os.listdir(root) == ["thesis.tex"]


def test_an_empty_folder_is_used(loaded: LoadedWorkload) -> None:
    Path(loaded.output_uri).mkdir()
    use(loaded)


def test_a_folder_in_which_a_first_run_died_at_once_is_used(loaded: LoadedWorkload) -> None:
    root = Path(loaded.output_uri)
    root.mkdir()
    (root / ".run.lock").touch()
    (root / ".switchgear.json.00ff").write_text('{"half')
    use(loaded)


def test_a_file_in_place_of_the_folder_is_refused(loaded: LoadedWorkload) -> None:
    Path(loaded.output_uri).write_text("")
    assert "is a file; give a folder" in refusal(loaded)


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "can't be used (Not a directory)" in refusal(load(tmp_path, output__uri="file/out"))


@pytest.mark.parametrize("content", ["", "{", "[]", "5"])
def test_a_marker_that_is_none_of_ours_is_refused(loaded: LoadedWorkload, content: str) -> None:
    root = Path(loaded.output_uri)
    root.mkdir()
    (root / "switchgear.json").write_text(content)
    said = refusal(loaded)
    assert "switchgear.json is not what Switchgear wrote" in said or "another version" in said


def test_an_output_of_another_version_is_refused(loaded: LoadedWorkload) -> None:
    use(loaded)
    marker = Path(loaded.output_uri, "switchgear.json")
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "version": "output/9"}))
    assert "was written by another version of Switchgear ('output/9', this one writes 'output/1')" in refusal(
        loaded
    )


@pytest.mark.parametrize("name", ["none", "file", "file/deeper"])
def test_what_is_no_output_has_no_marker(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is no Switchgear output"):
        read_marker(str(tmp_path / name))


def test_an_output_without_runs_has_no_manifest(loaded: LoadedWorkload) -> None:
    use(loaded)
    assert read_manifest(loaded.output_uri) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"version": "manifest/9"}', b"\xff"])
def test_a_manifest_that_was_damaged_or_is_another_versions_is_named(
    loaded: LoadedWorkload, data: bytes
) -> None:
    use(loaded)
    path = Path(loaded.output_uri, "runs", "r1", "manifest.json")
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(OutputError, match=r"runs/r1/manifest\.json can't be read .* run again"):
        read_manifest(loaded.output_uri)


# ---- the lock

_HOLD = """
import sys
from pathlib import Path
from schemas.load import load_workload
from transforms.output import open_output
with open_output(load_workload(Path(sys.argv[1])), rehearsal=False):
    print("locked", flush=True)
    sys.stdin.readline()
"""
_OUTLIVE = """
import os, subprocess, sys
from pathlib import Path
from schemas.load import load_workload
from transforms.output import open_output
with open_output(load_workload(Path(sys.argv[1])), rehearsal=False) as output:
    child = subprocess.Popen(
        [sys.executable, "-c", "print('alive', flush=True); input()"], pass_fds=[output.fileno()],
        stdin=sys.stdin, stdout=sys.stdout,
    )
    os._exit(0)
"""


def start(script: str, loaded: LoadedWorkload) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    arguments = [sys.executable, "-c", script, str(loaded.path)]
    process = subprocess.Popen(arguments, cwd=REPOSITORY, text=True, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() in ("locked\n", "alive\n")
    return process


def test_an_output_that_another_process_works_on_is_refused_until_it_ends(loaded: LoadedWorkload) -> None:
    process = start(_HOLD, loaded)
    assert "another run is at work on" in refusal(loaded)
    process.kill()
    process.wait()
    use(loaded)


def test_the_lock_lasts_as_long_as_a_worker_that_inherited_it(loaded: LoadedWorkload) -> None:
    process = start(_OUTLIVE, loaded)
    assert process.wait(timeout=120) == 0
    assert "another run is at work on" in refusal(loaded)
    process.communicate("end\n", timeout=120)
    with Path(loaded.output_uri, ".run.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the worker is really gone
    use(loaded)


def test_an_output_is_locked_while_it_is_open_and_free_after_an_error(loaded: LoadedWorkload) -> None:
    def fail() -> None:
        with open_output(loaded, rehearsal=False):
            assert "another run is at work on" in refusal(loaded)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    use(loaded)


def test_an_output_that_is_refused_is_left_unlocked(loaded: LoadedWorkload) -> None:
    use(loaded)
    refusal(loaded, rehearsal=True)
    use(loaded)
