"""One process of a host owns its accelerators; its threads share them, other processes don't."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import ConfigurationError
from transforms.embed.ownership import may_use_accelerators, own_accelerators

ROOT = Path(__file__).parents[3]
OWNER = """
import sys
from pathlib import Path
from transforms.embed.ownership import own_accelerators
own_accelerators(Path(sys.argv[1]), dict(CUDA_VISIBLE_DEVICES=sys.argv[2]))
print("owned", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path: Path):
    """A process that owns the devices named 0."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    yield process
    process.kill()
    process.wait()


class Clock:
    """Time that passes only while somebody sleeps; `at` something may happen."""

    def __init__(self, at: float = 1e9, happens=lambda: None) -> None:
        self.seconds, self.at, self.happens = 0.0, at, happens

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if self.seconds >= self.at:
            self.at = 1e9
            self.happens()


def test_a_second_process_is_refused_and_told_whom_they_belong_to(owner, tmp_path: Path):
    clock = Clock()
    with pytest.raises(
        ConfigurationError, match=rf"belong to process {owner.pid}: .*parallel_groups above 1"
    ):
        own_accelerators(tmp_path, {"CUDA_VISIBLE_DEVICES": "0"}, sleep=clock.sleep, now=clock.now)
    assert 60 <= clock.seconds < 61


def test_a_process_that_sees_other_devices_is_not_in_the_way(owner, tmp_path: Path):
    clock = Clock()
    mine = own_accelerators(tmp_path, {"CUDA_VISIBLE_DEVICES": "1"}, sleep=clock.sleep, now=clock.now)
    assert mine.read_text(encoding="utf-8").strip().isdigit()
    assert clock.seconds == 0


def test_an_owner_that_is_killed_owns_nothing_any_more(owner, tmp_path: Path):
    def kill() -> None:
        owner.send_signal(signal.SIGKILL)
        owner.wait()

    clock = Clock(at=5, happens=kill)
    path = own_accelerators(tmp_path, {"CUDA_VISIBLE_DEVICES": "0"}, sleep=clock.sleep, now=clock.now)
    assert 5 <= clock.seconds < 6
    assert path.read_text(encoding="utf-8").strip() != str(owner.pid)


def test_the_owner_itself_may_ask_as_often_as_it_likes(tmp_path: Path):
    first = own_accelerators(tmp_path, {})
    assert own_accelerators(tmp_path, {}, patience=0) == first


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    own_accelerators(tmp_path / "file" / "folder", {})
    assert "nothing keeps a second process from the accelerators" in caplog.text


@pytest.mark.parametrize(
    ("files", "installed", "platforms", "found"),
    [
        ((), ("jax_cuda12_plugin", "libtpu"), None, False),
        (("nvidia0",), (), None, False),  # a GPU, and a JAX that can't use it
        (("nvidia0",), ("jax_cuda12_plugin",), None, True),
        (("nvidia0",), ("libtpu",), None, False),
        (("accel0",), ("libtpu",), None, True),
        (("vfio/0",), ("libtpu",), None, True),
        (("nvidia0",), ("jax_cuda13_plugin",), "cpu", False),
        ((), (), "cuda,cpu", True),
    ],
)
def test_accelerators_are_looked_for_without_touching_them(
    tmp_path: Path, files: tuple[str, ...], installed: tuple[str, ...], platforms: str | None, found: bool
):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    environment = {} if platforms is None else {"JAX_PLATFORMS": platforms}
    assert may_use_accelerators(environment, tmp_path, lambda name: name in installed or None) == found
