from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from schemas.errors import StoreError
from tests.support.stepping import Countdown, CrashError, SteppedStore
from tests.transforms.batchmode.requests import held
from transforms.batchmode import tickets
from transforms.batchmode.outbox import BatchTickets
from transforms.batchmode.tickets import (
    Ticket,
    Waiting,
    batches_waiting,
    close_ticket,
    list_tickets,
    read_bodies,
    read_open_tickets,
    read_ticket,
    sweep_bodies,
    ticket_path,
    tickets_of,
    waiting_pairs,
    write_tickets,
)
from transforms.store import LocalStore

NOON = "2026-11-22T12:00:00+00:00"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def waiting(*rows: int, backend: str = "mini") -> list[Waiting]:
    return [Waiting(held(row, backend=backend), NOON) for row in rows]


def test_a_ticket_comes_back_as_it_was_written(store: LocalStore) -> None:
    given = [Waiting(held(1), NOON, also=((7, "r"), (8, "s"))), Waiting(replace(held(2), worst=None), NOON)]
    (written,) = write_tickets(store, "b1", 1, given)
    assert read_ticket(store, "b1", 1) == written
    assert written.items[0].pairs == ((1, "r"), (7, "r"), (8, "s"))
    assert written.worst == Decimal("0.5"), "what has no price is in no sum"
    assert read_bodies(store, written) == [held(1).body, held(2).body]
    assert written.held(written.items[0]) == replace(held(1), body=b"")
    assert b"prompt" not in store.read(ticket_path("b1", 1)), "texts are in the bodies alone"


def test_each_backend_has_tickets_of_its_own_and_numbers_go_on(store: LocalStore) -> None:
    write_tickets(store, "b1", 1, waiting(1, 2) + waiting(3, backend="other"))
    write_tickets(store, "b1", 3, waiting(4))
    found = [(t.number, t.backend, [i.row for i in t.items]) for t in read_open_tickets(store)]
    assert found == [(1, "mini", [1, 2]), (2, "other", [3]), (3, "mini", [4])]


def test_large_numbers_of_requests_are_cut(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "MOST_REQUESTS", 3)
    assert [len(t.items) for t in write_tickets(store, "b1", 1, waiting(*range(7)))] == [3, 3, 1]
    monkeypatch.setattr(tickets, "MOST_BYTES", 2 * len(held(0).body))
    assert [len(t.items) for t in write_tickets(store, "b2", 1, waiting(*range(5)))] == [2, 2, 1]


def test_a_number_that_is_taken_means_that_another_worker_is_on_the_batch(store: LocalStore) -> None:
    write_tickets(store, "b1", 1, waiting(1))
    with pytest.raises(StoreError, match="another worker"):
        write_tickets(store, "b1", 1, waiting(2))
    assert [i.row for i in read_ticket(store, "b1", 1).items] == [1]


def test_a_closed_ticket_waits_no_more(store: LocalStore) -> None:
    write_tickets(store, "b1", 1, waiting(1) + waiting(2, backend="other"))
    close_ticket(store, "b1", 1)
    assert list_tickets(store) == {("b1", 1): False, ("b1", 2): True}
    assert batches_waiting(store) == {"b1"}
    close_ticket(store, "b1", 2)
    close_ticket(store, "b1", 2)
    assert batches_waiting(store) == frozenset()
    assert list(read_open_tickets(store)) == []


def test_a_batch_finds_its_tickets_by_their_names_and_lists_nothing(store: LocalStore) -> None:
    asked: list[str] = []
    watched = SteppedStore(store.root, lambda operation, path: asked.append(operation))
    write_tickets(store, "b1", 1, waiting(1) + waiting(2, backend="other"))
    write_tickets(store, "b1", 3, waiting(3))
    write_tickets(store, "b2", 1, waiting(4))
    close_ticket(store, "b1", 2)
    found = tickets_of(watched, "b1")
    assert [(ticket.number, still_open) for ticket, still_open in found] == [(1, True), (2, False), (3, True)]
    assert waiting_pairs(watched, "b1") == {(1, "r"), (3, "r")}
    BatchTickets(watched, "b3", timedelta(hours=24), datetime.now(UTC), share=True)
    assert set(asked) == {"read", "exists"}
    assert asked[-1:] == ["read"], "of a batch without tickets that is one question"


def test_an_output_without_provider_batches_has_no_tickets(store: LocalStore) -> None:
    assert list_tickets(store) == {}
    assert list(tickets_of(store, "b1")) == []


def test_a_crash_leaves_a_whole_ticket_or_none_and_its_bodies_are_swept(tmp_path: Path) -> None:
    for at in range(3):
        store = LocalStore(str(tmp_path / str(at)))
        stepped = SteppedStore(store.root, Countdown(at))
        if at < 2:
            with pytest.raises(CrashError):
                write_tickets(stepped, "b1", 1, waiting(1, 2))
        else:
            write_tickets(stepped, "b1", 1, waiting(1, 2))
        found = list(read_open_tickets(store))
        assert [len(ticket.items) for ticket in found] == ([2] if at == 2 else [])
        sweep_bodies(store, found)
        assert len(list(store.list(tickets.BODIES))) == len(found)


def test_bodies_that_were_tampered_with_are_noticed(store: LocalStore) -> None:
    (ticket,) = write_tickets(store, "b1", 1, waiting(1, 2))
    path = store.local_path(ticket.bodies)
    path.write_bytes(held(1).body + b"\n")
    with pytest.raises(StoreError, match="1 of 2 requests"):
        read_bodies(store, ticket)
    path.unlink()
    with pytest.raises(StoreError, match="0 of 2 requests"):
        read_bodies(store, ticket)


def test_a_ticket_of_another_version_is_refused(store: LocalStore) -> None:
    (ticket,) = write_tickets(store, "b1", 1, waiting(1))
    data = json.loads(ticket.to_json())
    with pytest.raises(StoreError, match="another version"):
        Ticket.from_json(json.dumps({**data, "version": "ticket/2"}).encode())
