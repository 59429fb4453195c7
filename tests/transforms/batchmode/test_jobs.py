from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.backends import HostedBackend
from schemas.errors import StoreError
from tests.transforms.batchmode.requests import held
from transforms.batchmode.jobs import Job, TicketRange, job_path, new_tag, read_jobs, write_record
from transforms.batchmode.packing import BOUNDS, LINE_OVERHEAD, Bounds, pack
from transforms.batchmode.standing import open_batches
from transforms.batchmode.tickets import Ticket, Waiting
from transforms.store import LocalStore

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
BACKENDS = {
    "mini": HostedBackend(provider="openai", model="gpt-4.1-mini", mode="batch"),
    "haiku": HostedBackend(provider="anthropic", model="claude-haiku-4-5", mode="batch"),
}
JOB = Job(
    tag="switchgear-00ff",
    backend="mini",
    model="gpt-4.1-mini",
    created_at=NOON.isoformat(),
    since=NOON.isoformat(),
    requests=12,
    size=100,
    worst="1.5",
    tickets=(TicketRange("b1", 1, 0, 12),),
)


def ticket(number: int, items: int, backend: str = "mini", hours: float = 0, size: int = 100) -> Ticket:
    since = (NOON + timedelta(hours=hours)).isoformat()
    waits = [Waiting(held(row, backend, body=b"x" * size), since).item() for row in range(items)]
    return Ticket("b1", number, backend, since, "bodies", tuple(waits))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def test_a_custom_id_leads_back_to_its_request_and_no_other_id_does() -> None:
    assert [JOB.index_of(JOB.custom_id(n)) for n in range(12)] == list(range(12))
    others: list[Any] = ["switchgear-00ff-12", "switchgear-00ff-01", "switchgear-00ff-", "switchgear-00ff--1"]
    others += ["switchgear-00fe-1", "1", "", None, 1, ["switchgear-00ff-1"], "switchgear-00ff-²"]
    assert [JOB.index_of(other) for other in others] == [None] * len(others)


@given(st.text(max_size=30) | st.integers() | st.none())
def test_no_id_of_any_shape_breaks_the_matching(custom_id: Any) -> None:
    index = JOB.index_of(custom_id)
    assert index is None or JOB.custom_id(index) == custom_id


def test_custom_ids_keep_to_what_providers_take() -> None:
    job = replace(JOB, tag=new_tag())
    longest = job.custom_id(99_999)
    assert len(longest) <= 64, "Anthropic's limit"
    assert longest.replace("-", "").isalnum()
    assert longest.isascii()
    assert new_tag() != new_tag()


def test_a_job_comes_back_as_it_was_written_and_another_version_is_refused() -> None:
    assert Job.from_json(JOB.to_json()) == JOB
    with pytest.raises(StoreError, match="another version"):
        Job.from_json(json.dumps({**json.loads(JOB.to_json()), "version": "job/2"}).encode())


def test_where_a_job_stands_is_what_its_records_say(store: LocalStore) -> None:
    words = []

    def look() -> None:
        words.append([batch.state for batch in open_batches(store)])

    write_record(store, JOB.tag, "sending-0001", at="t1")
    look()
    store.create(job_path(JOB.tag, "intended"), JOB.to_json())
    (store.local_path(job_path(JOB.tag, "sending-0001"))).unlink()
    look()
    write_record(store, JOB.tag, "sending-0001", at="t1")
    look()
    write_record(
        store, JOB.tag, "refused-0001", **{"class": "rate_limited", "message": "m", "lasting": False}
    )
    look()
    write_record(store, JOB.tag, "sending-0002", at="t2")
    look()
    (state,) = read_jobs(store)
    assert (state.last_attempt, state.undecided, state.sent_at) == (2, ["t2"], {1: "t1", 2: "t2"})
    write_record(store, JOB.tag, "submitted", provider_batch_id="batch_1", at="t3", adopted=True)
    look()
    write_record(store, JOB.tag, "cancelled", at="t4")
    look()
    write_record(store, JOB.tag, "ended", at="t5")
    look()
    assert words == [
        [], ["intended"], ["undecided"], ["refused"], ["undecided"], ["submitted"], ["cancelled"], [],
    ]  # fmt: skip
    (state,) = read_jobs(store, ended=True)
    assert (state.provider_batch_id, state.submitted_at, state.ended) == ("batch_1", "t3", True)


def test_tickets_are_packed_by_backend_and_none_twice() -> None:
    tickets = [ticket(1, 3), ticket(2, 4, "haiku"), ticket(3, 5), ticket(4, 6), ticket(5, 1, "gone")]
    jobs = list(pack(tickets, {("b1", 3)}, BACKENDS, NOON))
    found = {job.backend: [(part.number, part.first, part.count) for part in job.tickets] for job in jobs}
    assert found == {"mini": [(1, 0, 3), (4, 3, 6)], "haiku": [(2, 0, 4)]}
    mini = next(job for job in jobs if job.backend == "mini")
    assert (mini.requests, mini.size, mini.reserved, mini.model) == (
        9,
        900,
        9 * held(0).worst,
        "gpt-4.1-mini",
    )


def test_an_old_request_does_not_shorten_the_deadline_of_a_young_one() -> None:
    jobs = list(pack([ticket(1, 1, hours=5), ticket(2, 1), ticket(3, 1, hours=0.5)], set(), BACKENDS, NOON))
    assert [[part.number for part in job.tickets] for job in jobs] == [[2, 3], [1]]
    assert [job.since for job in jobs] == [ticket(2, 1).since, ticket(1, 1, hours=5).since]


def test_a_request_that_asks_what_another_asks_is_not_sent_and_takes_no_room() -> None:
    tickets = [ticket(1, 3), ticket(2, 4), ticket(3, 2, "haiku")]
    mini, haiku = pack(tickets, set(), BACKENDS, NOON, leaders={})
    assert [(r.index, r.number, r.position) for r in mini.repeats] == [(3, 1, 0), (4, 1, 1), (5, 1, 2)]
    assert (mini.requests, mini.sent, mini.size, mini.reserved) == (7, 4, 400, 4 * held(0).worst)
    assert (haiku.sent, haiku.repeats) == (2, ()), "another backend may be another provider"
    assert mini.index_of(mini.custom_id(4)) is None, "it has no line"
    assert list(mini.not_sent()) == [("b1", 2, 0), ("b1", 2, 1), ("b1", 2, 2)]
    assert Job.from_json(mini.to_json()) == mini


def test_leaders_come_from_jobs_that_are_open_too_and_their_jobs_are_older() -> None:
    leaders = {("mini", held(1).request_sha256): ("b0", 9, 5)}
    bounds = {"openai": Bounds(2, 1 << 20)}
    jobs = list(pack([ticket(1, 2), ticket(2, 4)], set(), BACKENDS, NOON, bounds, leaders))
    assert [[(r.index, r.batch_id, r.number, r.position) for r in job.repeats] for job in jobs] == [
        [(1, "b0", 9, 5)],
        [(0, "b1", 1, 0), (1, "b0", 9, 5)],
    ]
    assert [job.sent for job in jobs] == [1, 2]
    assert jobs[0].created_at < jobs[1].created_at


@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(10, 2000)), max_size=30),
    st.integers(400, 900),
    st.integers(900_000, 1_200_000),
)
def test_every_ticket_is_in_one_job_and_every_job_within_the_bounds(
    sizes: list[tuple[int, int]], requests: int, most: int
) -> None:
    tickets = [ticket(n, items, size=size) for n, (items, size) in enumerate(sizes)]
    bounds = {"openai": Bounds(requests, most)}
    jobs = list(pack(tickets, set(), BACKENDS, NOON, bounds))
    assert sorted(part.number for job in jobs for part in job.tickets) == list(range(len(sizes)))
    for job in jobs:
        assert job.requests <= requests
        assert job.size + LINE_OVERHEAD * job.requests <= most
        firsts = [part.first for part in job.tickets] + [job.requests]
        assert all(b - a == p.count for a, b, p in zip(firsts, firsts[1:], job.tickets, strict=False))


def test_the_bounds_are_within_those_of_the_providers() -> None:
    assert BOUNDS["openai"].requests <= 50_000
    assert BOUNDS["openai"].bytes < 200_000_000
    assert BOUNDS["anthropic"].requests <= 100_000
    assert BOUNDS["anthropic"].bytes < 256_000_000
