"""Leases: held by one, renewed, taken over from the dead and from nobody else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import PreconditionFailedError
from transforms import lease
from transforms.lease import Lease, LeaseHeldError, Times, has_ended, look, sweep, take
from transforms.store import LocalStore

PATH = "run.lock.json"


class Hours:
    """A clock that moves when somebody sleeps; what happens meanwhile can be planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self.planned: list[tuple[float, object]] = []

    def times(self) -> Times:
        # The threads that renew never wake up: tests call `renew` themselves.
        return Times(lease_s=15.0, renew_every_s=1e6, monotonic=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [work for at, work in self.planned if at <= self.now]
        self.planned = [(at, work) for at, work in self.planned if at > self.now]
        for work in due:
            work()  # type: ignore[operator]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "out"))


def as_if_elsewhere(store: LocalStore, path: str = PATH, **changes: object) -> None:
    """The lease as a process of another machine would have written it."""
    data, generation = store.read_versioned(path)
    store.swap(path, json.dumps({**json.loads(data), "boot": "another", **changes}).encode(), generation)


def test_a_lease_is_held_by_one_and_free_again_when_it_is_closed(store: LocalStore) -> None:
    hours = Hours()
    held = take(store, PATH, hours.times())
    assert look(store, PATH) == {**json.loads(store.read(PATH))}
    hours.planned = [(5.0, held.renew)]
    with pytest.raises(LeaseHeldError, match=r"run\.lock\.json is held by process \d+ on "):
        take(store, PATH, hours.times())
    assert hours.now == 5.0  # the first sign of life is enough
    held.close()
    assert look(store, PATH) is None
    take(store, PATH, hours.times()).close()


def test_a_holder_elsewhere_that_is_silent_for_the_whole_term_is_taken_over_and_learns_of_it(
    store: LocalStore,
) -> None:
    hours = Hours()
    silent = take(store, PATH, hours.times())
    as_if_elsewhere(store)
    _, silent._generation = store.read_versioned(PATH)
    heir = take(store, PATH, hours.times())
    assert hours.now == 15.0
    assert not heir.is_lost
    silent.renew()
    assert silent.is_lost
    silent.close()  # takes nothing from the heir
    assert look(store, PATH) is not None
    assert json.loads(store.read(PATH))["token"] == heir.token
    heir.close()


def test_a_holder_that_can_not_renew_in_time_counts_itself_as_lost(store: LocalStore) -> None:
    hours = Hours()
    held = take(store, PATH, hours.times())
    hours.now = 14.0
    assert not held.is_lost
    hours.now = 15.5
    assert held.is_lost
    held.renew()  # nobody has taken it: it goes on
    assert not held.is_lost
    held.close()


def test_of_two_heirs_one_gets_it(store: LocalStore) -> None:
    hours = Hours()
    take(store, PATH, hours.times())
    as_if_elsewhere(store)
    _, generation = store.read_versioned(PATH)
    heirs = [Lease(store, PATH, str(n), hours.times()) for n in range(2)]
    assert [heir.hold(generation) for heir in heirs] == [True, False]


def test_a_killed_process_of_this_machine_is_known_to_be_dead_at_once(store: LocalStore) -> None:
    code = (
        "import sys\n"
        "from transforms.lease import take\n"
        "from transforms.store import LocalStore\n"
        "take(LocalStore(sys.argv[1]), sys.argv[2])\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    hours = Hours()
    with subprocess.Popen(
        [sys.executable, "-c", code, store.root, PATH], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert look(store, PATH) is not None
        child.kill()
        child.wait()
    assert look(store, PATH) is None
    take(store, PATH, hours.times()).close()
    assert hours.now == 0.0


def test_a_process_that_got_the_number_of_a_dead_one_is_not_taken_for_it() -> None:
    assert not lease.is_gone_here(lease.here())
    assert lease.is_gone_here({**lease.here(), "started": "1"})
    assert not lease.is_gone_here({**lease.here(), "started": "1", "namespace": "pid:[1]"})


def test_has_ended_ends_what_a_dead_holder_left(store: LocalStore) -> None:
    hours = Hours()
    assert has_ended(store, PATH, hours.times())
    held = take(store, PATH, hours.times())
    hours.planned = [(1.0, held.renew)]
    assert not has_ended(store, PATH, hours.times())
    as_if_elsewhere(store)
    _, held._generation = store.read_versioned(PATH)
    assert has_ended(store, PATH, hours.times())
    assert not store.exists(PATH)
    held.renew()
    assert held.is_lost


def test_a_damaged_lease_is_taken_over(store: LocalStore) -> None:
    store.create(PATH, b"\x00 not what we wrote")
    take(store, PATH, Hours().times()).close()


def test_ending_at_an_old_generation_changes_nothing(store: LocalStore) -> None:
    held = take(store, PATH, Hours().times())
    _, before = store.read_versioned(PATH)
    held.renew()
    assert not lease.end(store, PATH, before)
    with pytest.raises(PreconditionFailedError):
        store.swap(PATH, b"x", before)
    assert look(store, PATH) is not None


def test_sweeping_ends_the_leases_of_the_dead_and_no_other(store: LocalStore) -> None:
    hours = Hours()
    held = {name: take(store, f"claims/{name}.json", hours.times()) for name in ("alive", "silent", "gone")}
    as_if_elsewhere(store, "claims/silent.json")
    as_if_elsewhere(store, "claims/gone.json", boot=lease.here()["boot"], pid=2**22 + 1)
    store.create("claims/ended.json", b'{"token": ""}')
    hours.planned = [(4.0 * beat, held["alive"].renew) for beat in range(1, 6)]
    assert sweep(store, "claims", hours.times()) == 3
    assert hours.now == 15.0  # all were watched at the same time
    assert list(store.list("claims")) == ["claims/alive.json"]
    held["alive"].renew()
    assert not held["alive"].is_lost
    held["silent"].renew()
    assert held["silent"].is_lost


def test_sweeping_where_everybody_has_let_go_takes_no_time(store: LocalStore) -> None:
    hours = Hours()
    take(store, "claims/a.json", hours.times()).close()
    assert sweep(store, "claims", hours.times()) == 0
    assert hours.now == 0.0
