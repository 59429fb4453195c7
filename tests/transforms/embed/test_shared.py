"""One embedder host of a machine, several workers: what is lost with a host is asked of the next one."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BatchError, ModelError, OutputError
from tests.support.fakes import FakeEmbedder
from transforms.embed.embeddings import Embeddings, EmbedStats, in_groups
from transforms.embed.shared import SharedEmbedder
from transforms.embed.shared_host import EmbedderHost, GoneError, Progress, awaited, free_address
from transforms.embed.shared_messages import (
    Opening,
    pack_answer,
    pack_error,
    pack_progress,
    pack_space,
    pack_texts,
    unpack_answer,
    unpack_error,
    unpack_texts,
)
from transforms.embed.shared_place import HostPlace, reach_host

OPENING = Opening({"provider": "jax"}, "/models", None)


# ---- what is said


@given(st.lists(st.one_of(st.none(), st.text(st.characters(codec=None, categories=None)))))
def test_texts_arrive_as_they_were_lone_surrogates_and_nulls_too(texts: list[Any]):
    assert unpack_texts(pack_texts(texts)) == texts


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_vectors_arrive_with_all_that_belongs_to_their_rows(dtype: type, count: int):
    rng = np.random.default_rng(count)
    made = Embeddings(
        rng.normal(size=(count, 3)).astype(dtype),
        rng.integers(0, 9, count).astype(np.int32),
        rng.integers(0, 2, count).astype(bool),
        rng.random(count),
        {row: f"reason {row}" for row in range(count) if row % 2},
        rng.integers(1, 4, count).astype(np.int32),
    )
    stats = EmbedStats(1, 2, 3, 4, 5, 6.5, 7.5, 8, 9.5, 10.5, 11)
    found, told = unpack_answer(pack_answer(made, stats)[1:])
    assert told == stats
    assert found.errors == made.errors
    for name in ("vectors", "token_counts", "truncated", "device_seconds", "chunks"):
        ours, theirs = getattr(made, name), getattr(found, name)
        assert (theirs.dtype, theirs.shape) == (ours.dtype, ours.shape)
        np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ModelError("no such model"), ModelError, "no such model"),
        (ZeroDivisionError("a defect\nof ours"), RuntimeError, "ZeroDivisionError: a defect"),
        (KeyboardInterrupt(), RuntimeError, "KeyboardInterrupt: KeyboardInterrupt"),
    ],
)
def test_an_error_of_the_host_is_the_workers_own(error: BaseException, kind: type, text: str):
    found = unpack_error(pack_error(error)[1:])
    assert (type(found), str(found)) == (kind, text)


# ---- a host in a thread of this process


@dataclass
class CountingEmbedder(FakeEmbedder):
    """Counts like an embedder: a step for each call, and a program and idle time that belong to none."""

    before_answer: Callable[[], None] = lambda: None
    done: EmbedStats = field(default_factory=EmbedStats)

    def embed_counted(self, texts: list[str], on_texts: Callable[[int], None]):
        if "defect" in texts:
            raise ZeroDivisionError("a defect")
        made = self.embed_groups([texts])[0]
        on_texts(len(texts))
        self.before_answer()
        on_texts(0)
        took = EmbedStats(len(texts), 10 * len(texts), 20 * len(texts), 1, device_seconds=len(texts) / 4)
        self.done = self.done.plus(took).plus(EmbedStats(compilations=1, idle_seconds=0.5))
        return made, took

    def stats(self) -> EmbedStats:
        return self.done


@dataclass
class Served:
    """A host at a place, with the seconds that it believes to have passed."""

    place: HostPlace
    host: EmbedderHost
    embedder: CountingEmbedder
    thread: threading.Thread
    seconds: list[float]
    workers: list[SharedEmbedder] = field(default_factory=list)

    def worker(self) -> SharedEmbedder:
        def reach() -> Connection:
            return reach_host(self.place, start=lambda _: pytest.fail("it is there"))

        self.workers.append(SharedEmbedder(OPENING, reach))
        return self.workers[-1]


def listening(place: HostPlace) -> socket.socket:
    """A socket that the place leads to."""
    listener, address = socket.socket(socket.AF_UNIX), free_address()
    listener.bind(address)
    listener.listen(64)
    place.announce(address)
    return listener


@pytest.fixture
def served(tmp_path: Path):
    place = HostPlace.under(tmp_path)
    place.lock.parent.mkdir()
    embedder, seconds = CountingEmbedder(), [0.0]
    listener = listening(place)
    host = EmbedderHost(lambda _: embedder, linger=20, now=lambda: seconds[0])
    thread = threading.Thread(target=host.serve, args=(listener, 0.01), daemon=True)
    thread.start()
    found = Served(place, host, embedder, thread, seconds)
    yield found
    for worker in found.workers:
        worker.close()
    while thread.is_alive():
        seconds[0] += 1e6
        thread.join(0.01)
    listener.close()
    place.withdraw()


def test_groups_come_back_in_order_and_as_the_embedder_made_them(served: Served):
    groups = [["one", "two"], [], ["three", "!four", "five"]]
    worker = served.worker()
    for _ in range(2):
        for found, own in zip(worker.embed_groups(groups), FakeEmbedder().embed_groups(groups), strict=True):
            np.testing.assert_array_equal(found.vectors, own.vectors)
            assert found.errors == own.errors
            assert found.device_seconds.tolist() == own.device_seconds.tolist()
    assert worker.space == served.embedder.space
    assert worker.device_kind == served.embedder.device_kind == "cpu"


def test_what_workers_are_told_adds_up_to_what_the_host_did(served: Served):
    workers = [served.worker() for _ in range(3)]

    def work(worker: SharedEmbedder, texts: int) -> None:
        for _ in range(4):
            worker.embed_groups([[f"text {n}" for n in range(texts)]])

    threads = [threading.Thread(target=work, args=(w, 1 + n)) for n, w in enumerate([*workers, workers[0]])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [worker.stats().texts for worker in workers] == [4 + 16, 8, 12]
    total = EmbedStats()
    for worker in workers:
        total = total.plus(worker.stats())
    assert total == served.embedder.done
    assert total.compilations == 16


def test_texts_that_are_under_way_count_before_they_are_answered(served: Served):
    worker, go = served.worker(), threading.Event()
    served.embedder.before_answer = lambda: go.wait(60)
    asking = threading.Thread(target=worker.embed_groups, args=([["a", "b", "c"]],))
    asking.start()
    while not worker.stats().texts:
        go.wait(0.01)
    assert worker.stats().texts == 3
    go.set()
    asking.join()
    assert worker.stats().texts == 3


def test_a_request_that_fails_fails_its_worker_alone(served: Served):
    worker, other = served.worker(), served.worker()
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a defect"):
        worker.embed_groups([["defect"]])
    assert other.embed_groups([["fine"]])[0].vectors[0, 0] == 4
    assert worker.embed_groups([["fine too"]])[0].vectors[0, 0] == 8


def test_a_host_ends_when_no_worker_has_been_there_for_a_while(served: Served):
    worker = served.worker()
    worker.embed_groups([["a"]])
    served.seconds[0] = 1000.0  # long, but a worker is connected
    served.thread.join(0.1)
    assert served.thread.is_alive()
    worker.close()
    while served.host.users:
        served.thread.join(0.01)
    served.seconds[0] += 19
    served.thread.join(0.1)
    assert served.thread.is_alive()
    served.seconds[0] += 1
    served.thread.join(60)
    assert not served.thread.is_alive()


def test_the_rest_of_a_request_is_dropped_once_its_worker_is_gone():
    ours, theirs = Pipe()
    progress = Progress()
    theirs.close()
    with pytest.raises(BrokenPipeError):
        awaited(ours, Future(), progress)
    with pytest.raises(GoneError):
        progress.advance(1)


# ---- hosts that die


class DyingHosts:
    """Hosts that hang up at the given moments, one after the other; then one that answers."""

    def __init__(self, *deaths: str, space: Any = None) -> None:
        self.deaths = list(deaths)
        self.asked: list[list[str]] = []
        self.space = space

    def reach(self) -> Connection:
        ours, theirs = Pipe()
        death = self.deaths.pop(0) if self.deaths else ""
        threading.Thread(target=self._serve, args=(theirs, death), daemon=True).start()
        return ours

    def _serve(self, link: Connection, death: str) -> None:
        with link:
            link.recv_bytes()
            if death == "while opening":
                return
            embedder = FakeEmbedder()
            other = death == "of another space"
            link.send_bytes(pack_space(FakeEmbedder(fingerprint_salt="x").space if other else embedder.space))
            while True:
                try:
                    texts = unpack_texts(link.recv_bytes())
                except EOFError:
                    return
                self.asked.append(texts)
                link.send_bytes(pack_progress(1))
                if death == "while embedding":
                    return
                link.send_bytes(pack_answer(embedder.embed_groups([texts])[0], EmbedStats(len(texts))))
                if death == "when answered":
                    return


@pytest.mark.parametrize("death", ["while opening", "while embedding", "when answered"])
def test_what_is_lost_with_a_host_is_asked_of_the_next_one(death: str):
    hosts = DyingHosts(death)
    worker = SharedEmbedder(OPENING, hosts.reach)
    groups = [["a", "bb"], ["ccc"]]
    for _ in range(2):
        found = worker.embed_groups(groups)
        assert [made.vectors[:, 0].tolist() for made in found] == [[1, 2], [3]]
    assert worker.stats() == EmbedStats(6)  # what the dead one did is nobody's
    lost = {"while opening": 0, "while embedding": 1, "when answered": 0}[death]
    assert hosts.asked == [["a", "bb", "ccc"]] * (2 + lost)


def test_texts_that_kill_one_host_after_the_other_are_given_up(caplog: pytest.LogCaptureFixture):
    hosts = DyingHosts("", *["while embedding"] * 9)
    worker = SharedEmbedder(OPENING, hosts.reach)
    worker.close()
    with pytest.raises(BatchError, match="3 embedder hosts ended one after the other"):
        worker.embed_groups([["poison"]])
    assert hosts.asked == [["poison"]] * 3
    assert caplog.text.count("the next one is asked") == 3


def test_a_new_host_with_other_vectors_is_refused():
    hosts = DyingHosts("while embedding", "of another space")
    worker = SharedEmbedder(OPENING, hosts.reach)
    with pytest.raises(OutputError, match="the model's files have changed"):
        worker.embed_groups([["a"]])


def test_a_host_that_says_nothing_any_more_is_not_waited_for_for_ever():
    ours, theirs = Pipe()
    theirs.send_bytes(pack_space(FakeEmbedder().space))
    worker = SharedEmbedder(OPENING, lambda: ours, silence=0.01)
    with pytest.raises(BatchError, match="has said nothing for"):
        worker.embed_groups([["a"]])


# ---- finding and starting it


def test_of_many_that_need_a_host_one_starts_it(tmp_path: Path):
    place, started, lock = HostPlace.under(tmp_path), [], threading.Lock()
    listeners: list[socket.socket] = []

    def start(at: HostPlace) -> None:
        with lock:
            started.append(at)
        listeners.append(listening(at))

    links: list[Connection] = []

    def reach() -> None:
        links.append(reach_host(place, start, sleep=lambda _: None))

    threads = [threading.Thread(target=reach) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(links) == 12
    assert started == [place]
    for end in (*links, *listeners):
        end.close()
    place.withdraw()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=4"),
        ("JAX_DEFAULT_MATMUL_PRECISION", "highest"),
        ("SWITCHGEAR_CPU_KERNELS", "0"),
        ("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/keys/other.json"),
        ("CUDA_VISIBLE_DEVICES", "1"),
    ],
)
def test_workers_whose_host_would_compute_or_read_otherwise_have_another_one(
    tmp_path: Path, name: str, value: str
):
    plain = {"HOME": "/home/one", "JAX_PLATFORMS": "cpu"}
    place = HostPlace.under(tmp_path, plain)
    assert HostPlace.under(tmp_path, {**plain, name: value}) != place
    assert HostPlace.under(tmp_path, {**plain, "HOME": "/home/two", "LANG": "C"}) == place


def test_a_host_that_never_comes_up_is_an_error_that_says_where_to_look(tmp_path: Path):
    seconds = [0.0]

    def sleep(some: float) -> None:
        seconds[0] += some

    with pytest.raises(BatchError, match=r"no embedder host answers on this machine .*\.lock is its lock"):
        reach_host(HostPlace.under(tmp_path), lambda _: None, sleep=sleep, now=lambda: seconds[0])
    assert 180 <= seconds[0] < 181


def test_a_machine_has_one_host_and_the_next_one_clears_up_behind_a_killed_one(tmp_path: Path):
    place = HostPlace.under(tmp_path)
    place.lock.parent.mkdir()
    command = [
        sys.executable,
        "-m",
        "transforms.embed.shared_host",
        place.lock,
        place.address,
        place.starting,
    ]

    def started() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])

    first = started()
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"listening\n"
        pid, address = place.read()
        assert pid == first.pid
        assert Path(address).parent.stat().st_mode & 0o077 == 0
        with started() as second:
            assert second.wait(60) == 3
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
    assert place.connect() is None
    lock = place.own()
    assert lock is not None
    place.announce("elsewhere")
    assert not Path(address).parent.exists()
    lock.close()


def test_vectors_that_come_together_are_handed_back_group_by_group():
    made = FakeEmbedder().embed_groups([["a", "!b", "c", "!d"]])[0]
    found = in_groups(made, [["a"], [], ["!b", "c"], ["!d"]])
    assert [group.vectors[:, 1].tolist() for group in found] == [[97], [], [33, 99], [33]]
    assert [group.errors for group in found] == [{}, {}, {0: "no tokens"}, {0: "no tokens"}]
