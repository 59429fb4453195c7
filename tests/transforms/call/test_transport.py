"""Real sockets on loopback: what was sent, what was lost, and what is never opened."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.transforms.call.fakes import CANARY
from transforms.call.address import Address, AllowList
from transforms.call.ports import LostError, NotSentError
from transforms.call.secret import Secret
from transforms.call.transport import HttpTransport
from transforms.call.wire import WireRequest, WireResponse

Serve = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
KEY = Secret(CANARY)


def http(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Server:
    """A loopback server that does what it is told with each request."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.requests: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                self.requests.append(head + await reader.readexactly(length))
                await self.serve(self.requests[-1], reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def answers(*data: bytes, close: bool = False) -> Serve:
    async def serve(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in data:
            writer.write(piece)
            await writer.drain()
        if close:
            raise ConnectionError

    return serve


async def reset(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    raise ConnectionError


async def hang(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def request_to(port: int, host: str = "127.0.0.1", auth: Any = "bearer") -> WireRequest:
    return WireRequest(f"http://{host}:{port}/v1/x", {"content-type": "application/json"}, auth, b'{"q": 1}')


def send(serve: Serve, *, timeout_s: float = 60.0, largest_body: int = 10_000, auth: Any = "bearer") -> Any:
    """One request to a server; what came back, and what the server saw."""

    async def main() -> tuple[Any, Server]:
        async with Server(serve) as server:
            allowed = AllowList(frozenset({Address("http", "127.0.0.1", server.port)}))
            transport = HttpTransport(allowed, largest_body=largest_body)
            try:
                return await transport.send(request_to(server.port, auth=auth), KEY, timeout_s), server
            except (LostError, NotSentError) as error:
                return error, server
            finally:
                await transport.close()

    return asyncio.run(main())


def test_a_response_arrives_whole_with_status_headers_and_body() -> None:
    response, server = send(answers(http(429, b'{"a": 1}', "Retry-After: 7")))
    assert (response.status, response.body, response.headers["retry-after"]) == (429, b'{"a": 1}', "7")
    assert server.requests[0].endswith(b'{"q": 1}')
    assert b"user-agent: switchgear/" in server.requests[0].lower()


@pytest.mark.parametrize(
    ("auth", "line"), [("bearer", f"authorization: Bearer {CANARY}"), ("x-api-key", f"x-api-key: {CANARY}")]
)
def test_the_key_is_in_its_header_and_nowhere_else(auth: str, line: str) -> None:
    _, server = send(answers(http(200, b"{}")), auth=auth)
    lines = server.requests[0].decode().split("\r\n")
    assert [text for text in lines if CANARY in text] == [
        text for text in lines if text.lower() == line.lower()
    ]
    assert len([text for text in lines if CANARY in text]) == 1


@pytest.mark.parametrize(
    ("serve", "cause"),
    [
        (reset, "connection"),
        (answers(close=True), "connection"),
        (answers(http(200, b'{"half": ', length=500), close=True), "connection"),
        (answers(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", close=True), "connection"),
        (answers(b"this is not HTTP at all\r\n\r\n", close=True), "connection"),
        (answers(http(200, b"x" * 20_000)), "connection"),
        (
            answers(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"4e20\r\n" + b"x" * 20_000),
            "connection",
        ),
        (hang, "timeout"),
        (answers(http(200, b'{"slow": ', length=500)), "timeout"),
    ],
)
def test_an_end_that_is_not_known_is_lost_and_never_an_answer(serve: Serve, cause: str) -> None:
    error, server = send(serve, timeout_s=1.0 if cause == "timeout" else 60.0)
    assert isinstance(error, LostError)
    assert error.cause == cause
    assert len(server.requests) == 1  # the transport itself sends nothing twice


def test_a_redirect_is_a_response_and_is_not_followed() -> None:
    response, server = send(answers(http(307, b"", "Location: http://127.0.0.1:1/elsewhere")))
    assert response.status == 307
    assert len(server.requests) == 1


def test_a_compressed_body_is_not_unpacked() -> None:
    packed = gzip.compress(b"0" * 10_000_000)
    response, _ = send(answers(http(200, packed, "content-encoding: gzip")), largest_body=100_000)
    assert response.body == packed


def test_no_cookie_is_kept() -> None:
    async def main() -> list[bytes]:
        async with Server(answers(http(200, b"{}", "Set-Cookie: tracked=yes; Path=/"))) as server:
            transport = HttpTransport(AllowList(frozenset({Address("http", "127.0.0.1", server.port)})))
            for _ in range(2):
                await transport.send(request_to(server.port), KEY, 60)
            await transport.close()
            assert server.connections == 1  # and the connection is
            return server.requests

    assert not any(b"tracked" in request for request in asyncio.run(main()))


def test_a_refused_connection_sent_nothing() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # kept, and nobody listens
        error = refused(AllowList(frozenset({Address("http", "127.0.0.1", port)})), request_to(port))
    assert not error.final
    assert "nothing was sent" in str(error)


def refused(allowed: AllowList, request: WireRequest) -> NotSentError:
    async def main() -> NotSentError:
        transport = HttpTransport(allowed)
        try:
            with pytest.raises(NotSentError) as caught:
                await transport.send(request, KEY, 60)
            return caught.value
        finally:
            await transport.close()

    return asyncio.run(main())


def test_an_address_that_is_no_backends_gets_no_socket() -> None:
    allowed = AllowList(frozenset({Address("https", "api.example", 443)}))
    error = refused(allowed, request_to(80, "169.254.169.254"))
    assert error.final
    assert "not the address of a backend" in str(error)


def test_an_allowed_name_that_leads_to_this_machine_gets_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)  # the one thing that can't be handed in: DNS
    allowed = AllowList(frozenset({Address("http", "api.example", 80)}))
    error = refused(allowed, request_to(80, "api.example"))
    assert error.final
    assert "this machine" in str(error)


def test_a_name_that_does_not_exist_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    error = refused(AllowList(frozenset({Address("http", "api.example", 80)})), request_to(80, "api.example"))
    assert "can't be resolved" in str(error)
    assert not error.final


def everything_in(error: BaseException | None) -> str:
    """All that an exception and those behind it can be made to say."""
    said = ""
    while error is not None:
        said += f"{error!r} {error} {error.args} {vars(error)} "
        for value in vars(error).values():
            said += f"{getattr(value, 'headers', '')} "
        error = error.__cause__ or error.__context__
    return said


@pytest.mark.parametrize("serve", [reset, hang, answers(b"junk\r\n\r\n", close=True)])
def test_no_exception_and_no_log_line_ever_holds_the_key(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        error, server = send(serve, timeout_s=1.0)
    assert CANARY in server.requests[0].decode()
    assert CANARY not in everything_in(error)
    assert CANARY not in caplog.text


def test_a_response_is_a_plain_value() -> None:
    response, _ = send(answers(http(200, b"{}")))
    assert isinstance(response, WireResponse)
    assert CANARY not in repr(response)
