"""Vertex's batch prediction of Gemini through the official SDK, with a bucket that is a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.auth.exceptions import RefreshError
from google.oauth2.credentials import Credentials
from pydantic import ValidationError

from schemas.backends import HostedBackend
from schemas.failures import FailureClass
from tests.peers.batch_emulator import BatchEmulator
from tests.transforms.batchmode.crashes import LaterClock
from tests.transforms.batchmode.requests import held
from transforms.batchmode.clients import BatchClient, BatchLostError, BatchRefusedError, Finding, Request
from transforms.batchmode.driving import ProviderBatches, open_client
from transforms.batchmode.jobs import read_jobs
from transforms.batchmode.tickets import Waiting, write_tickets
from transforms.call.ledger import fold, scan
from transforms.call.ledger_file import LocalLedgers
from transforms.call.site import Site, build_sites, place_of
from transforms.call.wire import CallFailure, WireResponse
from transforms.price import PriceBook
from transforms.store import LocalStore

TOKEN = "ya29.canary-51c0"
HOUR_AGO = timedelta(hours=1)
BACKEND: dict[str, Any] = {
    "provider": "gemini",
    "platform": "vertex",
    "project": "p",
    "location": "europe-west1",
    "model": "gemini-2.5-flash",
    "mode": "batch",
    "batch_bucket": "gs://bucket/team",
}


@pytest.fixture
def site(emulator: BatchEmulator, tmp_path: Path) -> Site:
    emulator.objects = tmp_path / "bucket"
    backend = HostedBackend(**BACKEND)
    place = place_of("mini", emulator.base_url("vertex"), None)
    return build_sites({"mini": backend}, {"mini": place}, LaterClock(), PriceBook(), rehearsal=False)["mini"]


def make(site: Site, emulator: BatchEmulator) -> BatchClient:
    places = {"mini": place_of("mini", emulator.base_url("vertex"), None)}
    return open_client(
        site,
        places,
        credentials=lambda: Credentials(token=TOKEN),  # type: ignore[no-untyped-call]
        open_bucket=lambda uri: LocalStore(str(emulator.objects / uri.removeprefix("gs://bucket/"))),
    )


@pytest.fixture
def client(site: Site, emulator: BatchEmulator) -> Iterator[BatchClient]:
    with closing(make(site, emulator)) as made:
        yield made


def body(text: str) -> bytes:
    return orjson.dumps({"contents": [{"role": "user", "parts": [{"text": text}]}], "labels": {"team": "x"}})


def requests(tag: str, count: int = 3) -> list[Request]:
    return [Request(f"{tag}-{n}", body(f"text {n}")) for n in range(count)]


def now() -> datetime:
    return datetime.now(UTC)


def test_requests_lie_in_the_bucket_with_labels_that_say_whose_they_are(
    client: BatchClient, emulator: BatchEmulator
) -> None:
    name = client.submit("t1", iter(requests("t1")))
    (batch,) = emulator.of("vertex")
    assert name == batch.id
    assert list(batch.requests) == ["t1-0", "t1-1", "t1-2"]
    assert batch.requests["t1-0"]["labels"] == {"team": "x", "switchgear_id": "t1-0"}
    assert batch.metadata["model"] == "publishers/google/models/gemini-2.5-flash"
    assert batch.metadata["prefix"] == "gs://bucket/team/t1"
    assert emulator.keys - {""} == {f"Bearer {TOKEN}"}


def test_predictions_come_back_by_label_in_any_order_and_from_every_file(
    client: BatchClient, emulator: BatchEmulator
) -> None:
    name = client.submit("t1", requests("t1", 5))
    assert not client.standing(name).ended
    ends = {"text 1": "errored", "text 2": "invalid", "text 3": "odd"}
    emulator.finish(emulator.batches[0], lambda prompt: ends.get(prompt, "succeeded"))
    assert client.standing(name).ended
    found = {line.custom_id: line.result for line in client.results(name)}
    assert set(found) == {f"t1-{n}" for n in range(5)}
    for good in ("t1-0", "t1-4"):
        answer = found[good]
        assert isinstance(answer, WireResponse)
        assert f"answer to text {good[-1]}" in answer.body.decode()
    failures = [found[f"t1-{n}"] for n in (1, 2, 3)]
    assert [(f.failure, f.ambiguous) for f in failures if isinstance(f, CallFailure)] == [
        (FailureClass.OVERLOADED, False),
        (FailureClass.BAD_REQUEST, False),
        (FailureClass.MALFORMED_RESPONSE, True),
    ]


def test_a_job_is_found_again_by_its_display_name(client: BatchClient, emulator: BatchEmulator) -> None:
    names = {tag: client.submit(tag, requests(tag)) for tag in ("t1", "t2", "t3", "t4", "t5")}
    assert client.find("t2", 3, now() - HOUR_AGO, ()) == Finding(names["t2"])
    assert client.find("t9", 3, now() - HOUR_AGO, ()) == Finding()
    emulator.garbage = b'{"data": []}'
    with pytest.raises(BatchLostError):
        client.find("t2", 3, now() - HOUR_AGO, ())


def test_the_same_job_can_be_submitted_again_after_a_refusal(
    client: BatchClient, emulator: BatchEmulator
) -> None:
    emulator.faults["create"] = 429
    with pytest.raises(BatchRefusedError) as caught:
        client.submit("t1", requests("t1"))
    assert (caught.value.failure, caught.value.lasting) == (FailureClass.RATE_LIMITED, False)
    emulator.faults.clear()
    client.submit("t1", requests("t1"))
    assert len(emulator.batches) == 1


def test_without_a_token_nothing_is_sent_and_no_strange_error_rises(
    site: Site, emulator: BatchEmulator
) -> None:
    class Revoked(Credentials):
        def refresh(self, request: Any) -> None:
            raise RefreshError(f"revoked: {TOKEN}")

    places = {"mini": place_of("mini", emulator.base_url("vertex"), None)}
    client = open_client(
        site,
        places,
        credentials=lambda: Revoked(token=None),  # type: ignore[no-untyped-call]
        open_bucket=lambda _: LocalStore(str(emulator.objects)),
    )
    with closing(client), pytest.raises(BatchLostError) as caught:
        client.standing("projects/p/locations/europe-west1/batchPredictionJobs/1")
    assert TOKEN not in str(caught.value)
    assert not emulator.seen


def test_predictions_in_another_bucket_are_not_read(client: BatchClient, emulator: BatchEmulator) -> None:
    name = client.submit("t1", requests("t1"))
    emulator.finish(emulator.batches[0])
    emulator.batches[0].metadata["prefix"] = "gs://bucket/other/t1"
    with pytest.raises(BatchLostError):
        list(client.results(name))


@pytest.mark.parametrize(
    ("state", "ended", "missing"),
    [
        ("JOB_STATE_QUEUED", False, None),
        ("JOB_STATE_PAUSED", False, None),
        ("JOB_STATE_OF_TOMORROW", False, None),
        ("JOB_STATE_FAILED", True, "failed"),
        ("JOB_STATE_CANCELLED", True, None),
        ("JOB_STATE_EXPIRED", True, None),
        ("JOB_STATE_PARTIALLY_SUCCEEDED", True, None),
    ],
)
def test_only_the_known_ends_of_vertex_are_ends(
    client: BatchClient, emulator: BatchEmulator, state: str, ended: bool, missing: str | None
) -> None:
    name = client.submit("t1", requests("t1"))
    emulator.batches[0].status = state
    standing = client.standing(name)
    assert (standing.ended, standing.missing) == (ended, missing)
    assert ("too many jobs" in standing.message) == (state == "JOB_STATE_FAILED")
    client.cancel(name)
    assert emulator.batches[0].cancel_asked


def test_the_driver_submits_adopts_and_collects(site: Site, emulator: BatchEmulator, tmp_path: Path) -> None:
    store, batch_id = LocalStore(str(tmp_path / "out")), "b" * 32
    waits = [Waiting(held(n, body=body(f"text {n}")), now().isoformat()) for n in range(3)]
    write_tickets(store, batch_id, 1, waits)
    ledgers, clock = LocalLedgers(store.root), LaterClock()
    with closing(
        ProviderBatches(store, ledgers, {"mini": site}, 24, clock, lambda s: make(s, emulator))
    ) as batches:
        emulator.lose_creates = 1
        batches.submit()
        emulator.finish(emulator.batches[0])
        batches.collect()
        batches.collect()
    ledgers.close()
    assert len(emulator.batches) == 1
    assert not list(read_jobs(store)), "it is done"
    calls = fold(scan(Path(store.root, f"ledger/{batch_id}/calls.ledger").read_bytes())[0], batch_id).calls
    assert Counter(call.end for call in calls.values()) == {"answered": 3}
    assert {call.charge.certainty for call in calls.values()} == {"estimated"}
    assert emulator.bill == {f"text {n}": 1 for n in range(3)}


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_bucket": None},
        {"batch_bucket": "https://bucket/x"},
        {"batch_bucket": "gs://bucket/../x y"},
        {"provider": "anthropic"},
        {"platform": "direct", "project": None, "location": None},
    ],
)
def test_a_workload_that_vertex_batches_can_not_serve_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HostedBackend(**{**BACKEND, **changes})
