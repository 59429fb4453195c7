import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas.errors import PreconditionFailedError, StoreError
from transforms.store import LocalStore, open_store

REPOSITORY = Path(__file__).parents[2]
PROCESSES, THREADS = 8, 16


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


def test_what_was_created_is_read_listed_and_there(store: LocalStore) -> None:
    assert store.create("a/b/c.json", b"data")
    assert store.read("a/b/c.json") == b"data"
    assert store.exists("a/b/c.json")
    assert list(store.list("a")) == ["a/b/c.json"]
    with store.open("a/b/c.json") as stream:
        assert stream.read(2) == b"da"


def test_a_second_creation_changes_nothing(store: LocalStore) -> None:
    assert store.create("a", b"first")
    assert not store.create("a", b"second")
    assert store.read("a") == b"first"


def test_of_many_threads_one_creates(store: LocalStore) -> None:
    barrier = threading.Barrier(THREADS)

    def create(number: int) -> bool:
        barrier.wait()
        return store.create("commits/x.json", b"%d" % number * 1000)

    with ThreadPoolExecutor(THREADS) as pool:
        won = [number for number, w in enumerate(pool.map(create, range(THREADS))) if w]
    assert len(won) == 1
    assert store.read("commits/x.json") == b"%d" % won[0] * 1000
    assert os.listdir(store.local_path("commits")) == ["x.json"]


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
    wins = [eval(racer.communicate(timeout=30)[0]) for racer in racers]
    assert sorted(n for won in wins for n in won) == list(range(20))
    for racer, won in enumerate(wins):
        assert all(store.read(f"commits/{n}.json") == str(racer).encode() * 500 for n in won)


def test_a_swap_takes_the_generation_that_was_read(store: LocalStore) -> None:
    store.create("budget.json", b"1")
    data, generation = store.read_versioned("budget.json")
    following = store.swap("budget.json", b"2", generation)
    assert data == b"1"
    assert store.read_versioned("budget.json") == (b"2", following)


def test_a_swap_from_an_older_generation_is_refused(store: LocalStore) -> None:
    store.create("budget.json", b"1")
    _, generation = store.read_versioned("budget.json")
    store.swap("budget.json", b"2", generation)
    with pytest.raises(PreconditionFailedError, match=r"budget\.json is at"):
        store.swap("budget.json", b"3", generation)
    assert store.read("budget.json") == b"2"


def test_no_swap_of_many_threads_is_lost(store: LocalStore) -> None:
    store.create("count", b"0")

    def add_one(_: int) -> None:
        while True:
            data, generation = store.read_versioned("count")
            try:
                store.swap("count", b"%d" % (int(data) + 1), generation)
                return
            except PreconditionFailedError:
                continue

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add_one, range(40)))
    assert store.read("count") == b"40"


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
    done = python(_FULL_DISK, store.root, operation, repr(arguments)).communicate(timeout=30)[0]
    assert int(done) == errno.EFBIG
    assert set(os.listdir(store.root)) <= {"old", ".old.lock"}
    assert store.read("old") == b"value"


def test_nothing_staged_is_visible_under_its_final_name_until_it_is_published(store: LocalStore) -> None:
    stage(store, "_staging/x/part", b"rows")
    assert list(store.list("results")) == []
    store.publish("_staging/x/part", "results/part")
    assert store.read("results/part") == b"rows"
    assert not store.exists("_staging/x/part")


def test_publishing_again_changes_nothing(store: LocalStore) -> None:
    stage(store, "_staging/x/part", b"rows")
    for _ in range(3):
        store.publish("_staging/x/part", "results/part")
    assert store.read("results/part") == b"rows"


def test_many_publishers_of_one_part_all_succeed(store: LocalStore) -> None:
    for number in range(20):
        stage(store, f"_staging/x/{number}", b"rows")

    def publish(_: int) -> None:
        for number in range(20):
            store.publish(f"_staging/x/{number}", f"results/{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish, range(8)))
    assert sorted(store.list("results")) == sorted(f"results/{n}" for n in range(20))


def test_a_part_that_is_nowhere_is_named_with_what_to_do(store: LocalStore) -> None:
    with pytest.raises(StoreError, match=r"results/part can't be published.*restore it"):
        store.publish("_staging/x/part", "results/part")


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


def test_what_is_not_there_is_not_there(store: LocalStore) -> None:
    assert not store.exists("none")
    assert list(store.list("none")) == []
    store.delete("none")
    for read in (store.read, store.read_versioned, store.open):
        with pytest.raises(FileNotFoundError):
            read("none")


def test_an_output_that_is_no_local_folder_is_refused(tmp_path: Path) -> None:
    assert open_store(str(tmp_path)).root == str(tmp_path)
    with pytest.raises(StoreError, match=r"gs://bucket/x: only local folders"):
        open_store("gs://bucket/x")
