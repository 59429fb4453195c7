"""Vertex: the official SDKs' addresses and paths, tokens that are refreshed and kept quiet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import anthropic
import orjson
import pytest
from google.auth.credentials import AnonymousCredentials
from google.genai import Client

from schemas.backends import HostedBackend, TokenPrice
from schemas.errors import MissingSecretError
from schemas.failures import FailureClass
from schemas.run import RunContext
from tests.transforms.call.fakes import (
    EPOCH,
    FakeTransport,
    MemoryLedgers,
    anthropic_answer,
    gemini_answer,
    make_batch,
    make_core,
    make_request,
    make_workload,
    run_virtual,
)
from transforms.call.codecs import base_url_of, codec_of
from transforms.call.engine import open_call_engine
from transforms.call.secret import Secret, key_variable
from transforms.call.site import build_sites, place_of
from transforms.call.vertex import GoogleTokens, TokenError, price_factor
from transforms.call.wire import Answer, WireResponse, encode
from transforms.price import PriceBook

F = FailureClass
TOKEN = "ya29.canary-token-7c41"


def vertex(provider: str, location: str = "europe-west1", **more: Any) -> HostedBackend:
    model = {"gemini": "gemini-2.5-flash", "anthropic": "claude-haiku-4-5@20251001"}[provider]
    values = {
        "provider": provider,
        "platform": "vertex",
        "model": model,
        "project": "p-1",
        "location": location,
    }
    return HostedBackend.model_validate({**values, **more})


@pytest.mark.parametrize("location", ["europe-west1", "us-central1", "global"])
def test_gemini_is_called_where_the_official_sdk_calls_it(location: str) -> None:
    credentials = AnonymousCredentials()
    official = Client(vertexai=True, project="p-1", location=location, credentials=credentials)
    options = official._api_client._http_options
    assert base_url_of(vertex("gemini", location)) == f"{options.base_url}{options.api_version}"


@pytest.mark.parametrize("location", ["europe-west1", "us", "eu", "global"])
def test_claude_is_called_where_the_official_sdk_calls_it(location: str) -> None:
    official = anthropic.AnthropicVertex(region=location, project_id="p-1", access_token="t")
    assert base_url_of(vertex("anthropic", location)) == str(official.base_url).rstrip("/")


def test_project_location_and_model_stand_in_the_path() -> None:
    assert codec_of(vertex("gemini")).path(vertex("gemini")) == (
        "/projects/p-1/locations/europe-west1/publishers/google/models/gemini-2.5-flash:generateContent"
    )
    assert codec_of(vertex("anthropic")).path(vertex("anthropic")) == (
        "/projects/p-1/locations/europe-west1/publishers/anthropic/models/claude-haiku-4-5@20251001:rawPredict"
    )


def test_claudes_version_moves_into_the_body_and_its_model_out_of_it() -> None:
    backend = vertex("anthropic", parameters={"temperature": 0})
    encoded = encode(codec_of(backend), backend, make_request(1), "https://h.example/v1", "live")
    body = orjson.loads(encoded.wire.body)
    assert body == {
        "anthropic_version": "vertex-2023-10-16",
        "max_tokens": 1024,
        "messages": [{"role": "user", "content": "row-1"}],
        "system": "be brief",
        "temperature": 0,
    }
    assert encoded.wire.auth == "bearer"
    assert "anthropic-version" not in encoded.wire.headers


@pytest.mark.parametrize("provider", ["gemini", "anthropic"])
def test_the_same_question_on_vertex_and_direct_are_two_requests(provider: str) -> None:
    on_vertex = vertex(provider)
    direct = HostedBackend(provider=on_vertex.provider, model=on_vertex.model)
    other_model = on_vertex.model_copy(update={"model": "another"})
    digests = {
        encode(codec_of(b), b, make_request(1), "https://h.example", "live").sha256
        for b in (on_vertex, direct, other_model)
    }
    assert len(digests) == (3 if provider == "anthropic" else 2)  # Gemini's body is the same on both


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ({"error": {"code": 429, "message": "q", "status": "RESOURCE_EXHAUSTED"}}, F.RATE_LIMITED),
        ({"type": "error", "error": {"type": "rate_limit_error", "message": "q"}}, F.RATE_LIMITED),
        ({"error": {"code": 403, "message": "q", "status": "PERMISSION_DENIED"}}, F.PERMISSION),
    ],
)
def test_claude_on_vertex_fails_in_googles_words_or_in_anthropics(body: Any, failure: FailureClass) -> None:
    status = body["error"].get("code", 429)
    result = codec_of(vertex("anthropic")).decode(WireResponse(status, {}, orjson.dumps(body)))
    assert not isinstance(result, Answer)
    assert result.failure is failure


def test_no_key_is_looked_for() -> None:
    assert key_variable(vertex("gemini")) == ""


class FakeCredentials:
    """google-auth's credentials, as far as they are used: a token and when it ends, in naive UTC."""

    def __init__(self) -> None:
        self.token: str | None = None
        self.expiry: datetime | None = None


class Bank:
    """Gives out numbered tokens that are good for an hour."""

    def __init__(self, lasts: timedelta | None = timedelta(hours=1)) -> None:
        self.now = EPOCH
        self.given = 0
        self.lasts = lasts
        self.error: Exception | None = None

    def refresh(self, credentials: Any) -> None:
        if self.error is not None:
            raise self.error
        self.given += 1
        credentials.token = f"{TOKEN}-{self.given}"
        ends = None if self.lasts is None else self.now + self.lasts
        credentials.expiry = None if ends is None else ends.astimezone(UTC).replace(tzinfo=None)

    def tokens(self) -> GoogleTokens:
        return GoogleTokens(FakeCredentials(), self.refresh, lambda: self.now)


def test_a_token_is_kept_until_shortly_before_it_ends() -> None:
    bank = Bank()

    async def main() -> list[str]:
        tokens = bank.tokens()
        seen = []
        for minutes in (0, 30, 24, 2, 1):  # refreshed 5 minutes before the hour is over
            bank.now += timedelta(minutes=minutes)
            seen.append((await tokens.token()).reveal()[-1])
        return seen

    assert asyncio.run(main()) == ["1", "1", "1", "2", "2"]


def test_a_token_without_an_end_is_kept() -> None:
    bank = Bank(lasts=None)

    async def main() -> None:
        tokens = bank.tokens()
        await tokens.token()
        bank.now += timedelta(days=400)
        await tokens.token()

    asyncio.run(main())
    assert bank.given == 1


def test_many_documents_at_once_ask_for_one_token() -> None:
    bank = Bank()

    async def main() -> set[str]:
        tokens = bank.tokens()
        found = await asyncio.gather(*(tokens.token() for _ in range(200)))
        return {secret.reveal() for secret in found}

    assert asyncio.run(main()) == {f"{TOKEN}-1"}


def test_a_failed_refresh_is_told_without_its_details_and_not_repeated_at_once() -> None:
    bank = Bank()
    bank.error = RuntimeError(f"response said {TOKEN}")
    asked: list[int] = []

    def refresh(credentials: Any) -> None:
        asked.append(1)
        bank.refresh(credentials)

    async def main() -> None:
        tokens = GoogleTokens(FakeCredentials(), refresh, lambda: bank.now)
        for _ in range(50):
            with pytest.raises(TokenError, match="application-default login") as caught:
                await tokens.token()
            assert TOKEN not in str(caught.value)
        assert len(asked) == 1
        bank.now += timedelta(seconds=11)
        bank.error = None
        assert (await tokens.token()).reveal() == f"{TOKEN}-1"

    asyncio.run(main())


class FixedTokens:
    """A token source that answers by a function."""

    def __init__(self, give: Callable[[], str]) -> None:
        self._give = give

    async def token(self) -> Secret:
        return Secret(self._give())


def run_on_vertex(
    backend: HostedBackend, script: Any, give: Callable[[], str], ledgers: MemoryLedgers | None = None
) -> tuple[Any, FakeTransport]:
    transport = FakeTransport(script)

    async def main() -> Any:
        workload = make_workload({"v": backend})
        core = make_core(transport, ledgers, workload)
        place = place_of("v", base_url_of(backend), None, FixedTokens(give))
        clock = core.desk.clock
        core.desk.sites = build_sites(workload.hosted_backends(), {"v": place}, clock, PriceBook(), False)
        return await core.run(make_batch(3, ("v",)))

    return run_virtual(main()), transport


@pytest.mark.parametrize(
    ("provider", "answer"), [("gemini", gemini_answer("fine")), ("anthropic", anthropic_answer("fine"))]
)
def test_every_call_carries_the_token_of_its_time(provider: str, answer: WireResponse) -> None:
    given = iter(f"{TOKEN}-{n}" for n in range(9))
    result, transport = run_on_vertex(vertex(provider), lambda sent, seen: answer, lambda: next(given))
    assert [outcome.provider for outcome in result.outcomes] == ["gcp.vertex_ai"] * 3
    assert sorted(sent.key or "" for sent in transport.sent) == [f"{TOKEN}-{n}" for n in range(3)]


def test_without_a_token_nothing_is_sent_and_the_document_says_why() -> None:
    def none() -> str:
        raise TokenError("no access token for Vertex")

    result, transport = run_on_vertex(vertex("gemini"), lambda sent, seen: gemini_answer("fine"), none)
    assert {outcome.failure for outcome in result.outcomes} == {F.AUTHENTICATION}
    assert "no access token" in result.outcomes[0].message
    assert transport.sent == []
    assert result.outcomes[0].calls == 0


def test_an_echoed_token_is_masked_in_outcome_and_ledger() -> None:
    ledgers = MemoryLedgers()
    result, _ = run_on_vertex(
        vertex("gemini"), lambda sent, seen: gemini_answer(f"you are {sent.key}"), lambda: TOKEN, ledgers
    )
    assert result.outcomes[0].answer == "you are [key]"
    assert TOKEN not in repr(result)
    assert TOKEN.encode() not in bytes(ledgers.files["b1"])


@pytest.mark.parametrize(
    ("provider", "location", "factor"),
    [
        ("anthropic", "europe-west1", "1.1"),
        ("anthropic", "eu", "1.1"),
        ("anthropic", "global", "1"),
        ("gemini", "europe-west1", "1"),
    ],
)
def test_regional_claude_is_reserved_and_charged_with_its_premium(
    provider: str, location: str, factor: str
) -> None:
    backend = vertex(provider, location)
    assert price_factor(backend) == Decimal(factor)
    answer = {"gemini": gemini_answer("x"), "anthropic": anthropic_answer("x")}[provider]
    ledgers = MemoryLedgers()
    result, _ = run_on_vertex(backend, lambda sent, seen: answer, lambda: TOKEN, ledgers)
    base = {"gemini": Decimal("0.00008"), "anthropic": Decimal("0.0002")}[provider]
    charge = result.outcomes[0].charge
    assert (charge.amount, charge.certainty) == (base * Decimal(factor), "estimated")
    assert all(call.worst is not None and call.worst > charge.amount for call in ledgers.calls())


def test_a_price_of_ones_own_has_no_premium() -> None:
    price = TokenPrice(input_per_million=Decimal(1), output_per_million=Decimal(5))
    backend = vertex("anthropic", price=price)
    result, _ = run_on_vertex(backend, lambda sent, seen: anthropic_answer("x"), lambda: TOKEN)
    assert result.outcomes[0].charge.amount == Decimal("0.0002")


def test_an_engine_asks_for_credentials_once_and_only_for_a_real_run_on_vertex(tmp_path: Any) -> None:
    asked: list[str] = []

    def none() -> Any:
        asked.append("x")
        raise MissingSecretError("there are no credentials")

    workload = make_workload({"v": vertex("gemini"), "w": vertex("anthropic")})
    with pytest.raises(MissingSecretError, match="no credentials"):
        open_call_engine(
            workload,
            RunContext("run", str(tmp_path), "w" * 64, False, 8),
            budget_limit=None,
            environ={},
            vertex_tokens=none,
        )
    assert asked == ["x"]
    rehearsal = RunContext("run", str(tmp_path), "w" * 64, True, 8)
    open_call_engine(workload, rehearsal, budget_limit=None, environ={}, vertex_tokens=none).close()
    assert asked == ["x"]


def test_older_models_of_claude_have_no_regional_premium() -> None:
    older = ("claude-3-haiku@20240307", "claude-sonnet-4@20250514", "claude-sonnet-4", "claude-opus-4-1")
    newer = ("claude-sonnet-4-5@20250929", "claude-opus-4-5@20251101", "claude-sonnet-4-6", "claude-next")
    backend = vertex("anthropic", "europe-west1")
    factors = [price_factor(backend.model_copy(update={"model": name})) for name in (*older, *newer)]
    assert factors == [Decimal(1)] * 4 + [Decimal("1.1")] * 4
