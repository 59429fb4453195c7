"""The batch APIs through the official SDKs, against the emulator over real sockets."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from schemas.failures import FailureClass
from tests.peers.batch_emulator import BatchEmulator
from tests.support.workloads import workload
from transforms.batchmode.clients import BatchClient, BatchLostError, BatchRefusedError, Finding, Request
from transforms.batchmode.driving import open_client
from transforms.call.ports import SystemClock
from transforms.call.secret import Secret
from transforms.call.site import build_sites, place_of
from transforms.call.wire import CallFailure, WireResponse
from transforms.price import PriceBook

CANARY = "sk-canary-2b61f0ce77"
HOUR_AGO = timedelta(hours=1)
MakeClient = Callable[..., BatchClient]


@pytest.fixture
def client_of(emulator: BatchEmulator) -> Iterator[MakeClient]:
    made: list[BatchClient] = []

    def make(provider: str, base_url: str | None = None, **changes: Any) -> BatchClient:
        backend = workload(
            backends__mini={"provider": provider, "model": "m", "mode": "batch", **changes}
        ).hosted_backends()["mini"]
        place = place_of("mini", base_url or emulator.base_url(provider), Secret(CANARY))
        site = build_sites({"mini": backend}, {"mini": place}, SystemClock(), PriceBook(), rehearsal=False)
        made.append(open_client(site["mini"], {"mini": place}))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(client_of: MakeClient, provider: str) -> BatchClient:
    return client_of(provider)


def requests(tag: str, count: int = 3) -> list[Request]:
    body = {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "line one\nline \u2028 two é"}],
    }
    return [Request(f"{tag}-{n}", orjson.dumps({**body, "seed": n})) for n in range(count)]


def now() -> datetime:
    return datetime.now(UTC)


def test_what_is_submitted_arrives_as_it_was_written(
    client: BatchClient, emulator: BatchEmulator, provider: str
) -> None:
    given = requests("t1")
    batch_id = client.submit("t1", iter(given))
    (batch,) = emulator.of(provider)
    assert batch.id == batch_id
    assert batch.requests == {r.custom_id: orjson.loads(r.body) for r in given}


def test_results_come_back_by_custom_id_with_the_whole_answer(
    client: BatchClient, emulator: BatchEmulator, provider: str
) -> None:
    batch_id = client.submit("t1", requests("t1"))
    assert not client.standing(batch_id).ended
    kinds = iter(["succeeded", "expired", "errored"])
    emulator.finish(emulator.batches[0], lambda _prompt: next(kinds))
    assert client.standing(batch_id).ended
    found = {line.custom_id: line.result for line in client.results(batch_id)}
    answer = found["t1-0"]
    assert isinstance(answer, WireResponse)
    said = orjson.loads(answer.body)
    part = {"openai": "choices", "anthropic": "content", "gemini": "candidates"}[provider]
    assert "line one" in str(said[part])
    failures = [found["t1-1"], found["t1-2"]]
    assert [f.failure for f in failures if isinstance(f, CallFailure)] == [
        FailureClass.DEADLINE,
        FailureClass.OVERLOADED if provider == "anthropic" else FailureClass.PROVIDER_ERROR,
    ]


def test_a_batch_is_found_again_among_many_by_its_tag_alone(
    client: BatchClient, emulator: BatchEmulator, provider: str
) -> None:
    ids = {tag: client.submit(tag, requests(tag)) for tag in ("t1", "t2", "t3", "t4", "t5")}
    for batch in emulator.batches:
        emulator.finish(batch)
    assert client.find("t2", 3, now() - HOUR_AGO, ()) == Finding(ids["t2"])
    assert client.find("t9", 3, now() - HOUR_AGO, ()) == Finding()


def test_further_batches_of_one_tag_are_reported_and_the_first_counts(
    client: BatchClient, emulator: BatchEmulator
) -> None:
    emulator.now = lambda: now() - timedelta(minutes=5)
    first = client.submit("t1", requests("t1"))
    emulator.now = now
    second = client.submit("t1", requests("t1"))
    for batch in emulator.batches:
        emulator.finish(batch)
    assert client.find("t1", 3, now() - HOUR_AGO, ()) == Finding(first, more=(second,))


def test_batches_from_long_before_the_submission_are_not_looked_at(
    client: BatchClient, emulator: BatchEmulator
) -> None:
    emulator.now = lambda: now() - timedelta(hours=30)
    client.submit("t1", requests("t1"))
    emulator.finish(emulator.batches[0])
    assert client.find("t1", 3, now(), ()) == Finding()


def test_a_batch_of_anthropic_that_might_be_ours_is_told_only_when_it_has_ended(
    client_of: MakeClient, emulator: BatchEmulator
) -> None:
    client = client_of("anthropic")
    ours, other = client.submit("t1", requests("t1")), client.submit("t2", requests("t2"))
    client.submit("t3", requests("t3", 4))
    assert client.find("t1", 3, now() - HOUR_AGO, ()).undecided
    assert client.find("t1", 3, now() - HOUR_AGO, {ours, other}) == Finding(), "another number of requests"
    emulator.finish(emulator.batches[1])
    assert client.find("t1", 3, now() - HOUR_AGO, {other}).undecided
    emulator.finish(emulator.batches[0])
    assert client.find("t1", 3, now() - HOUR_AGO, {other}) == Finding(ours)


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        ("validating", False),
        ("finalizing", False),
        ("cancelling", False),
        ("of_tomorrow", False),
        ("completed", True),
        ("failed", True),
        ("expired", True),
        ("cancelled", True),
    ],
)
def test_only_the_known_ends_of_openai_are_ends(
    client_of: MakeClient, emulator: BatchEmulator, status: str, ended: bool
) -> None:
    client = client_of("openai")
    batch_id = client.submit("t1", requests("t1"))
    emulator.batches[0].status = status
    standing = client.standing(batch_id)
    assert (standing.status, standing.ended) == (status, ended)
    assert (standing.missing is None) == (status in ("completed",) or not ended)
    assert ("too many enqueued" in standing.message) == (status == "failed")


@pytest.mark.parametrize(
    ("state", "ended", "missing"),
    [
        ("BATCH_STATE_PENDING", False, None),
        ("BATCH_STATE_RUNNING", False, None),
        ("JOB_STATE_QUEUED", False, None),
        ("JOB_STATE_PAUSED", False, None),
        ("JOB_STATE_CANCELLING", False, None),
        ("BATCH_STATE_UNSPECIFIED", False, None),
        ("BATCH_STATE_FAILED", True, "failed"),
        ("BATCH_STATE_CANCELLED", True, None),
        ("BATCH_STATE_EXPIRED", True, None),
        ("JOB_STATE_EXPIRED", True, None),
        ("BATCH_STATE_SUCCEEDED", True, None),
        ("JOB_STATE_PARTIALLY_SUCCEEDED", True, None),
    ],
)
def test_only_the_known_ends_of_gemini_are_ends(
    client_of: MakeClient, emulator: BatchEmulator, state: str, ended: bool, missing: str | None
) -> None:
    client = client_of("gemini")
    batch_id = client.submit("t1", requests("t1"))
    emulator.batches[0].status = state
    standing = client.standing(batch_id)
    assert (standing.ended, standing.missing) == (ended, missing)
    assert standing.status == state.replace("BATCH", "JOB")


def test_the_environment_of_googles_sdk_leads_no_request_elsewhere(
    client_of: MakeClient, emulator: BatchEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "https://elsewhere.invalid")
    monkeypatch.setenv("GOOGLE_API_KEY", "a-key-of-the-environment")
    client = client_of("gemini")
    client.submit("t1", requests("t1"))
    assert len(emulator.of("gemini")) == 1
    assert "a-key-of-the-environment" not in emulator.keys
    assert CANARY in emulator.keys


@pytest.mark.parametrize("provider", ["openai", "gemini"], indirect=True)
def test_embeddings_go_to_the_batches_of_embeddings(
    client_of: MakeClient, emulator: BatchEmulator, provider: str
) -> None:
    client = client_of(provider, operation="embeddings", dimensions=4)
    client.submit("t1", requests("t1"))
    created = [path for method, path in emulator.seen if method == "POST"][-1]
    assert created == {"openai": "/v1/batches", "gemini": "/v1beta/models/m:asyncBatchEmbedContent"}[provider]
    assert emulator.batches[0].endpoint == ("/v1/embeddings" if provider == "openai" else "")


def test_cancelling_is_asked_for(client: BatchClient, emulator: BatchEmulator) -> None:
    client.cancel(client.submit("t1", requests("t1")))
    assert emulator.batches[0].cancel_asked


def test_a_lost_response_is_no_refusal(client: BatchClient, emulator: BatchEmulator) -> None:
    emulator.lose_creates = 1
    with pytest.raises(BatchLostError):
        client.submit("t1", requests("t1"))
    assert len(emulator.batches) == 1, "and nothing was tried again behind our back"


def test_a_lost_upload_has_made_no_batch(client_of: MakeClient, emulator: BatchEmulator) -> None:
    emulator.lose_uploads = 1
    with pytest.raises(BatchRefusedError) as caught:
        client_of("openai").submit("t1", requests("t1"))
    assert not caught.value.lasting
    assert not emulator.batches


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (400, "invalid_request_error", (BatchRefusedError, "bad_request", True)),
        (413, "request_too_large", (BatchRefusedError, "request_too_large", True)),
        (401, "authentication_error", (BatchRefusedError, "authentication", False)),
        (403, "permission_error", (BatchRefusedError, "permission", False)),
        (429, "rate_limit_error", (BatchRefusedError, "rate_limited", False)),
        (429, "insufficient_quota", (BatchRefusedError, "quota_exhausted", False)),
        (409, "conflict", (BatchLostError, None, None)),
        (500, "api_error", (BatchLostError, None, None)),
        (503, "overloaded_error", (BatchLostError, None, None)),
        (529, "overloaded_error", (BatchLostError, None, None)),
    ],
)
def test_an_error_response_is_a_refusal_only_where_nothing_can_have_been_made(
    client: BatchClient, emulator: BatchEmulator, status: int, kind: str, expected: tuple[Any, Any, Any]
) -> None:
    emulator.refuse_creates = [(status, kind, f"no, {CANARY}")]
    with pytest.raises((BatchRefusedError, BatchLostError)) as caught:
        client.submit("t1", requests("t1"))
    error = caught.value
    found = (type(error), getattr(error, "failure", None), getattr(error, "lasting", None))
    assert found == (expected[0], expected[1] and FailureClass(expected[1]), expected[2])
    assert len([path for method, path in emulator.seen if method == "POST" and "batch" in path]) == 1
    assert CANARY not in "".join(traceback.format_exception(error))
    assert error.__context__ is None, "the SDK's own exception holds the request, and the key in it"


@pytest.mark.parametrize(
    "garbage", [b"<html>try later</html>", b"", b"null", b"[]", b'{"id": 7, "data": [{"id": 7}]}', b'"text"']
)
def test_a_response_of_the_wrong_shape_says_nothing_and_breaks_nothing(
    client: BatchClient, emulator: BatchEmulator, garbage: bytes
) -> None:
    batch_id = client.submit("t1", requests("t1"))
    emulator.garbage = garbage
    with pytest.raises((BatchLostError, BatchRefusedError)):
        client.submit("t2", requests("t2"))
    with pytest.raises(BatchLostError):  # to find nothing would be to send it again
        client.find("t1", 3, now() - HOUR_AGO, ())
    with contextlib.suppress(BatchLostError):
        assert not client.standing(batch_id).ended
    with contextlib.suppress(BatchLostError):
        assert list(client.results(batch_id)) == []


@pytest.mark.parametrize("fault", ["half", "cut"])
def test_results_that_break_off_in_the_middle_are_an_error_of_ours_without_the_key(
    client: BatchClient, emulator: BatchEmulator, fault: str
) -> None:
    batch_id = client.submit("t1", requests("t1", 40))
    emulator.finish(emulator.batches[0])
    emulator.faults["results"] = fault
    with pytest.raises(BatchLostError) as caught:
        list(client.results(batch_id))
    assert caught.value.__context__ is None, "the transport's own exception holds the request"


def test_where_nobody_listens_nothing_was_sent(client_of: MakeClient, provider: str) -> None:
    dead = BatchEmulator.start()
    dead.stop()
    with pytest.raises(BatchRefusedError) as caught:
        client_of(provider, dead.base_url(provider)).submit("t1", requests("t1"))
    assert (caught.value.failure, caught.value.lasting) == (FailureClass.CONNECTION, False)


def test_the_key_goes_to_no_other_address_even_if_the_provider_names_one(
    client_of: MakeClient, emulator: BatchEmulator
) -> None:
    stranger = BatchEmulator.start()
    try:
        client = client_of("anthropic")
        batch_id = client.submit("t1", requests("t1"))
        emulator.finish(emulator.batches[0])
        emulator.results_url = f"{stranger.url}/v1/messages/batches/{batch_id}/results"
        with pytest.raises(BatchRefusedError):
            list(client.results(batch_id))
        assert not stranger.seen
    finally:
        stranger.stop()


def test_a_redirect_is_not_followed(client_of: MakeClient, emulator: BatchEmulator, provider: str) -> None:
    stranger = BatchEmulator.start()
    try:
        emulator.redirect_to = stranger.url
        with pytest.raises(BatchRefusedError):
            client_of(provider).standing("batches/1" if provider == "gemini" else "batch_1")
        assert not stranger.seen
    finally:
        stranger.stop()


def test_the_key_is_in_no_representation_of_a_client(client: BatchClient) -> None:
    assert CANARY not in repr(client)
