import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import StoreError
from transforms.store import LocalStore, open_store

REPOSITORY = Path(__file__).parents[2]
PROCESSES = 8


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "out"))


def stage(store: LocalStore, path: str, data: bytes) -> None:
    stream = store.stage(path)
    stream.write(data)
    store.finish(stream)


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=REPOSITORY,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


_RACE = """
import sys
from transforms.store import LocalStore
store = LocalStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print([n for n in range(20) if store.create(f"commits/{n}.json", sys.argv[2].encode() * 500)])
"""


def test_of_many_processes_one_creates_each_object(store: LocalStore) -> None:
    racers = [python(_RACE, store.root, str(n)) for n in range(PROCESSES)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    wins = [eval(racer.communicate(timeout=120)[0]) for racer in racers]
    assert sorted(n for won in wins for n in won) == list(range(20))
    for racer, won in enumerate(wins):
        assert all(store.read(f"commits/{n}.json") == str(racer).encode() * 500 for n in won)


_FULL_DISK = """
import resource, sys
from transforms.store import LocalStore
store = LocalStore(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    getattr(store, sys.argv[2])(*eval(sys.argv[3]))
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("operation", ["create", "swap"])
def test_a_full_disk_leaves_nothing_under_the_final_name(store: LocalStore, operation: str) -> None:
    """A limit on file sizes stands for the disk: both fail in the middle of writing."""
    store.create("old", b"value")
    big = b"x" * 2000
    arguments = {"create": ("new", big), "swap": ("old", big, store.read_versioned("old")[1])}[operation]
    done = python(_FULL_DISK, store.root, operation, repr(arguments)).communicate(timeout=120)[0]
    assert int(done) == errno.EFBIG
    assert set(os.listdir(store.root)) <= {"old", ".old.lock"}
    assert store.read("old") == b"value"


def test_a_name_can_be_staged_once(store: LocalStore) -> None:
    stage(store, "_staging/x/part", b"rows")
    with pytest.raises(FileExistsError):
        store.stage("_staging/x/part")


def test_published_parts_leave_no_empty_folder_behind(store: LocalStore) -> None:
    stage(store, "_staging/x/a", b"1")
    stage(store, "_staging/x/b", b"2")
    store.publish("_staging/x/a", "results/a")
    assert store.local_path("_staging/x").is_dir()
    store.publish("_staging/x/b", "results/b")
    assert not store.local_path("_staging/x").exists()


def test_pruning_takes_empty_folders_only(store: LocalStore) -> None:
    stage(store, "_staging/x/a", b"1")
    stage(store, "_staging/y/b", b"1")
    store.delete("_staging/x/a")
    store.prune("_staging")
    assert list(store.local_path("_staging").iterdir()) == [store.local_path("_staging/y")]
    store.prune("none")


def test_temporary_files_of_a_writer_that_died_are_never_listed(store: LocalStore) -> None:
    store.create("commits/x.json", b"1")
    store.local_path("commits/.y.json.00ff").write_bytes(b"half")
    assert list(store.list("commits")) == ["commits/x.json"]


def test_an_address_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    assert open_store(str(tmp_path)).root == str(tmp_path)
    with pytest.raises(StoreError, match=r"s3://bucket/x: no such kind of output.*gs://BUCKET/FOLDER"):
        open_store("s3://bucket/x")
