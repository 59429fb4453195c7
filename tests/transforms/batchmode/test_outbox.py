from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from schemas.run import RunContext
from tests.support import workloads
from tests.transforms.batchmode.requests import held
from transforms.batchmode.outbox import BatchTickets, FolderOutbox, open_outbox
from transforms.batchmode.tickets import close_ticket, list_tickets, read_open_tickets, read_ticket
from transforms.store import LocalStore

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
KEY = (1, "r", "mini")


class Bench:
    """An outbox over a folder, at a time of one's choice."""

    def __init__(self, folder: Path) -> None:
        self.store = LocalStore(str(folder))

    def open(self, hours: float = 0, *, share: bool = True) -> BatchTickets:
        now = NOON + timedelta(hours=hours)
        return FolderOutbox(self.store, 24, share=share, now=lambda: now).open("b1")

    def put_out(self, *rows: int, hours: float = 0) -> None:
        tickets = self.open(hours)
        for row in rows:
            tickets.add(held(row))
        tickets.seal()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_request_is_new_then_waits_and_is_new_once_more_when_its_ticket_is_closed(bench: Bench) -> None:
    assert bench.open().state(*KEY) == "new"
    bench.put_out(1)
    assert bench.open(1).state(*KEY) == "waiting"
    assert bench.open(1).state(2, "r", "mini") == "new"
    assert bench.open(1).state(1, "s", "mini") == "new"
    assert bench.open(1).state(1, "r", "other") == "new"
    close_ticket(bench.store, "b1", 1)
    assert bench.open(2).state(*KEY) == "new"


def test_after_two_provider_batches_a_request_goes_online(bench: Bench) -> None:
    for number in (1, 2):
        bench.put_out(1)
        close_ticket(bench.store, "b1", number)
    assert bench.open(1).state(*KEY) == "online"


def test_the_deadline_counts_from_the_first_ticket_of_the_request(bench: Bench) -> None:
    bench.put_out(1)
    close_ticket(bench.store, "b1", 1)
    bench.put_out(1, 2, hours=23)
    assert read_ticket(bench.store, "b1", 2).since == NOON.isoformat()
    close_ticket(bench.store, "b1", 2)
    assert bench.open(25).state(*KEY) == "online"


@pytest.mark.parametrize(("hours", "state"), [(23.99, "new"), (24, "online"), (30, "online")])
def test_what_came_back_undone_goes_online_from_the_deadline_on(
    bench: Bench, hours: float, state: str
) -> None:
    bench.put_out(1)
    close_ticket(bench.store, "b1", 1)
    assert bench.open(hours).state(*KEY) == state


def test_what_is_on_its_way_waits_on_however_late_it_is(bench: Bench) -> None:
    bench.put_out(1)
    assert bench.open(1000).state(*KEY) == "waiting"


def test_nothing_is_durable_before_the_seal(bench: Bench) -> None:
    tickets = bench.open()
    tickets.add(held(1))
    assert list_tickets(bench.store) == {}
    tickets.seal()
    assert list_tickets(bench.store) == {("b1", 1): True}
    tickets.seal()
    assert len(list_tickets(bench.store)) == 1, "sealing again adds nothing"
    bench.open().seal()
    assert len(list_tickets(bench.store)) == 1, "and neither does sealing nothing"


def test_identical_requests_share_one_item_and_all_of_them_wait(bench: Bench) -> None:
    tickets = bench.open()
    assert not tickets.join(1, "r", "mini", "s1")
    tickets.add(held(1, sha256="s1"))
    assert tickets.join(2, "r", "mini", "s1")
    assert not tickets.join(3, "r", "other", "s1"), "another backend may be another provider"
    assert not tickets.join(3, "r", "mini", "s2")
    tickets.seal()
    (ticket,) = read_open_tickets(bench.store)
    assert [item.pairs for item in ticket.items] == [((1, "r"), (2, "r"))]
    assert bench.open().state(2, "r", "mini") == "waiting"


def test_identical_requests_go_out_each_when_nothing_is_to_be_shared(bench: Bench) -> None:
    tickets = bench.open(share=False)
    tickets.add(held(1, sha256="s1"))
    assert not tickets.join(2, "r", "mini", "s1")


@pytest.mark.parametrize(
    ("mode", "rehearsal", "tickets", "opened"),
    [
        ("batch", False, False, True),
        ("online", False, False, False),
        ("online", False, True, True),
        ("batch", True, False, False),
    ],
)
def test_a_run_has_an_outbox_when_it_may_have_to_do_with_one(
    tmp_path: Path, mode: str, rehearsal: bool, tickets: bool, opened: bool
) -> None:
    if tickets:
        Bench(tmp_path).put_out(1)
    workload = workloads.workload(backends__mini={**workloads.HOSTED, "mode": mode})
    run = RunContext("r", str(tmp_path), "w" * 64, rehearsal, 8)
    assert (open_outbox(workload, run) is not None) == opened
