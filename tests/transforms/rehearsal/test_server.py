import json
import socket
from urllib.parse import urlsplit

import anthropic
import openai
import orjson
import pytest

from schemas.rehearsal import Rehearsal
from tests.transforms.rehearsal.wire_requests import (
    CALM,
    HEADERS,
    PATHS,
    PROVIDERS,
    SCHEMA,
    body,
    faulty,
)
from transforms.rehearsal import RehearsalServer
from transforms.rehearsal.draws import request_key

both = pytest.mark.parametrize("provider", PROVIDERS)
KEY = {"api_key": "k", "max_retries": 0, "timeout": 20}


@pytest.fixture
def server():
    """Starts servers with the settings that a test asks for, and closes them after it."""
    opened = []

    def start(settings: Rehearsal = CALM, **more) -> RehearsalServer:
        opened.append(RehearsalServer(settings, **more).start())
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def ask_with_sdk(running, provider, schema=None):
    if provider == "anthropic":
        client = anthropic.Anthropic(base_url=running.base_url(provider), **KEY)
        return client.messages.create(**body(provider, schema=schema))
    client = openai.OpenAI(base_url=running.base_url(provider), **KEY)
    return client.chat.completions.create(**body(provider, schema=schema))


class Wire:
    """A client that writes and reads bytes, for what no SDK would do."""

    def __init__(self, running):
        url = urlsplit(running.base_url("anthropic"))
        self.socket = socket.create_connection((url.hostname, url.port), timeout=60)
        self.read = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.read.close()
        self.socket.close()

    def response(self):
        """Status, headers and body of the next response; fewer bytes where the connection ends early."""
        status = int(self.read.readline().split()[1])
        headers = {}
        while (line := self.read.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        return status, headers, self.read.read(int(headers["content-length"]))


def raw(provider, content=None, **extra):
    data = orjson.dumps(body(provider) if content is None else content)
    headers = {**HEADERS[provider], "content-length": str(len(data)), **extra}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {PATHS[provider]}?beta=true HTTP/1.1\r\n{lines}\r\n".encode() + data


def test_the_official_anthropic_client_gets_a_message(server):
    message = ask_with_sdk(server(), "anthropic", SCHEMA)
    assert json.loads(message.content[0].text)["summary"] == "Frames hold data in columns."
    assert message.usage.input_tokens > 0


def test_the_official_openai_client_gets_a_completion(server):
    completion = ask_with_sdk(server(), "openai", SCHEMA)
    assert json.loads(completion.choices[0].message.content)["summary"] == "Frames hold data in columns."
    assert (
        completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    )


@pytest.mark.parametrize(
    ("provider", "fault", "error"),
    [
        ("anthropic", "rate_limited", anthropic.RateLimitError),
        ("anthropic", "server_error", anthropic.InternalServerError),
        ("anthropic", "overloaded", anthropic.InternalServerError),
        ("anthropic", "connection_reset", anthropic.APIConnectionError),
        ("anthropic", "truncated_body", anthropic.APIConnectionError),
        ("openai", "rate_limited", openai.RateLimitError),
        ("openai", "server_error", openai.InternalServerError),
        ("openai", "overloaded", openai.InternalServerError),
        ("openai", "connection_reset", openai.APIConnectionError),
        ("openai", "truncated_body", openai.APIConnectionError),
    ],
)
def test_the_official_clients_recognise_every_fault(server, provider, fault, error):
    running = server(faulty(**{fault: 1}))
    with pytest.raises(error):
        ask_with_sdk(running, provider)
    assert running.journal.delivered == 0
    assert running.journal.billed == (fault == "truncated_body")


@both
def test_one_connection_carries_many_requests(server, provider):
    running = server()
    with Wire(running) as wire:
        for _ in range(3):
            wire.socket.sendall(raw(provider))
            assert wire.response()[0] == 200
    assert running.journal.requests == running.journal.delivered == 3


def test_requests_sent_ahead_are_answered_in_their_order(server):
    with Wire(server()) as wire:
        models = ["one", "two", "three"]
        wire.socket.sendall(
            b"".join(raw("anthropic", {**body("anthropic"), "model": name}) for name in models)
        )
        assert [orjson.loads(wire.response()[2])["model"] for _ in models] == models


def test_a_request_may_arrive_byte_by_byte(server):
    with Wire(server()) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in raw("openai"):
            wire.socket.sendall(bytes([byte]))
        assert wire.response()[0] == 200


def test_a_reset_is_a_reset_and_not_an_end(server):
    with Wire(server(faulty(connection_reset=1))) as wire:
        wire.socket.sendall(raw("anthropic"))
        with pytest.raises(ConnectionResetError):
            wire.socket.recv(1)


def test_a_truncated_body_ends_before_what_its_length_announced(server):
    with Wire(server(faulty(truncated_body=1))) as wire:
        wire.socket.sendall(raw("openai"))
        status, headers, content = wire.response()
        assert status == 200
        assert 0 < len(content) < int(headers["content-length"])


def test_a_hanging_call_is_never_answered_and_holds_nobody_up(server):
    running = server(faulty(hang=1))
    with Wire(running) as wire:
        wire.socket.sendall(raw("anthropic"))
        wire.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            wire.socket.recv(1)
    running.close()
    assert (running.journal.requests, running.journal.billed) == (1, 0)


def test_a_client_that_leaves_early_is_billed_but_not_delivered(server):
    running = server(Rehearsal(latency_ms=(60, 60)))
    with Wire(running) as gone:
        gone.socket.sendall(raw("anthropic"))
    with Wire(running) as stays:
        stays.socket.sendall(raw("openai"))
        stays.response()
    assert (running.journal.requests, running.journal.billed, running.journal.delivered) == (2, 2, 1)


def test_the_journal_counts_what_was_billed_for_each_request(server):
    running = server(by_digest=True)
    with Wire(running) as wire:
        for provider in ("anthropic", "anthropic", "openai"):
            wire.socket.sendall(raw(provider))
            wire.response()
        wire.socket.sendall(raw("openai", {"model": "m"}))
        assert wire.response()[0] == 400
    keys = {name: request_key(0, PATHS[name], orjson.dumps(body(name))).hex() for name in PROVIDERS}
    assert running.journal.billed_by_digest == {keys["anthropic"]: 2, keys["openai"]: 1}
    assert running.journal.statuses == {200: 3, 400: 1}


def test_the_nth_time_of_a_request_meets_the_same_fault_in_every_run(server):
    settings = faulty(server_error=0.5)

    def statuses():
        found = []
        with Wire(server(settings)) as wire:
            for _ in range(20):
                wire.socket.sendall(raw("anthropic"))
                found.append(wire.response()[0])
        return found

    first = statuses()
    assert set(first) == {200, 500}
    assert statuses() == first


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /v1/messages HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", 411),
        (b"POST /v1/messages HTTP/1.1\r\ncontent-length: many\r\n\r\n", 411),
        (b"POST /v1/messages HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n", 413),
        (b"POST /v1/messages HTTP/1.1\r\nx: " + b"x" * 70_000, 431),
    ],
)
def test_what_can_not_be_read_is_refused_and_the_connection_closed(server, head, status):
    with Wire(server()) as wire:
        wire.socket.sendall(head)
        assert wire.response()[0] == status
        assert wire.socket.recv(1) == b""


def test_addresses_have_the_form_of_the_sdks_defaults(server):
    running = server()
    assert running.base_url("openai") == f"{running.base_url('anthropic')}/v1"
    assert running.base_url("anthropic").startswith("http://127.0.0.1:")
    with pytest.raises(ValueError, match="known: anthropic, gemini, openai"):
        running.base_url("mistral")


def test_a_server_that_is_not_started_has_no_address():
    with pytest.raises(RuntimeError, match="start"):
        RehearsalServer(CALM).base_url("openai")


def test_a_server_starts_once_and_closes_as_often_as_you_like():
    running = RehearsalServer(CALM)
    running.close()
    with running:
        with pytest.raises(RuntimeError, match="make another"):
            running.start()
        url = urlsplit(running.base_url("openai"))
    running.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((url.hostname, url.port), timeout=5)
