"""One connection after the other: what is reused, what is not, and what is never taken for an answer."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.transforms.call.test_transport import KEY, Server, answers, http, request_to
from transforms.call.address import Address, AllowList
from transforms.call.connection import MOST_HEADER_BYTES
from transforms.call.ports import LostError, NotSentError
from transforms.call.transport import HttpTransport
from transforms.call.wire import WireRequest, WireResponse

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


def exchange(
    serve: Any,
    times: int = 1,
    new_loop: Callable[[], Any] = asyncio.new_event_loop,
    pause_s: float = 0.0,
    first_timeout_s: float = 60.0,
) -> tuple[list[Any], Server]:
    """So many requests one after the other over one transport."""

    async def main() -> tuple[list[Any], Server]:
        async with Server(serve) as server:
            transport = transport_to(server.port)
            results: list[Any] = []
            for number in range(times):
                timeout_s = 60.0 if number else first_timeout_s
                try:
                    results.append(await transport.send(request_to(server.port), KEY, timeout_s))
                except (LostError, NotSentError) as error:
                    results.append(error)
                await asyncio.sleep(pause_s)
            await transport.close()
            return results, server

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main())


def transport_to(port: int) -> HttpTransport:
    return HttpTransport(AllowList(frozenset({Address("http", "127.0.0.1", port)})), largest_body=10_000)


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_connection_is_used_again_and_every_answer_is_its_own_requests(new_loop: Any) -> None:
    number = iter(range(10))

    async def serve(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(200, b'{"n": %d}' % next(number)))

    results, server = exchange(serve, 5, new_loop)
    assert [result.body for result in results] == [b'{"n": %d}' % n for n in range(5)]
    assert server.connections == 1


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("cut", [1, 7, 40])
def test_an_answer_may_come_in_any_pieces(cut: int, new_loop: Any) -> None:
    data = http(200, b'{"a": "in pieces"}', "x-request-id: r1")

    async def serve(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for start in range(0, len(data), cut):
            writer.write(data[start : start + cut])
            await asyncio.sleep(0)

    results, _ = exchange(serve, 2, new_loop)
    assert [(r.status, r.body, r.headers["x-request-id"]) for r in results] == [
        (200, b'{"a": "in pieces"}', "r1")
    ] * 2


def test_a_chunked_answer_is_put_together() -> None:
    chunked = (
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{"a\r\n4\r\n": 1\r\n1\r\n}\r\n0\r\n\r\n'
    )
    results, server = exchange(answers(chunked), 2)
    assert [result.body for result in results] == [b'{"a": 1}'] * 2
    assert server.connections == 1


def test_interim_answers_are_passed_over() -> None:
    results, _ = exchange(answers(b"HTTP/1.1 100 Continue\r\n\r\n" + http(200, b'{"a": 1}')))
    assert (results[0].status, results[0].body) == (200, b'{"a": 1}')


@pytest.mark.parametrize(
    "data",
    [
        http(200, b"{}", "connection: close"),
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        http(200, b"{}") + b"HTTP/1.1 200 OK\r\n",  # a second answer that nobody asked for
    ],
)
def test_a_connection_that_can_not_be_trusted_any_more_is_not_used_again(data: bytes) -> None:
    results, server = exchange(answers(data), 2, pause_s=0.05)
    assert [result.body for result in results if isinstance(result, WireResponse)] == [b"{}"] * 2
    assert server.connections == 2


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    results, _ = exchange(answers(b"HTTP/1.1 200 OK\r\n\r\n", b'{"a": 1}', close=True))
    assert results[0].body == b'{"a": 1}'


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * MOST_HEADER_BYTES * 2,
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n12345",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}",
        b"HTTP/9.9 banana\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
def test_what_is_no_proper_http_is_lost_and_closes_the_connection(data: bytes) -> None:
    results, server = exchange(answers(data), 2)
    assert all(isinstance(result, LostError) for result in results)
    assert server.connections == 2


def test_after_a_lost_call_the_late_answer_is_not_taken_for_the_next_ones() -> None:
    answered = iter([b'{"late": 1}', b'{"own": 2}'])

    async def serve(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = next(answered)
        await asyncio.sleep(1.2 if b"late" in body else 0)
        writer.write(http(200, body))

    results, server = exchange(serve, 2, first_timeout_s=1.0)
    assert isinstance(results[0], LostError)
    assert results[0].cause == "timeout"
    assert results[1].body == b'{"own": 2}'
    assert server.connections == 2


def test_a_cancelled_call_takes_its_connection_with_it() -> None:
    async def hang_once(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if server.connections > 1:
            writer.write(http(200, b"{}"))

    server = Server(hang_once)

    async def main() -> WireResponse:
        async with server:
            transport = transport_to(server.port)
            call = asyncio.create_task(transport.send(request_to(server.port), KEY, 60))
            while not server.requests:
                await asyncio.sleep(0.001)
            call.cancel()
            await asyncio.wait({call})
            assert call.cancelled()
            answer = await transport.send(request_to(server.port), KEY, 60)
            await transport.close()
            return answer

    assert asyncio.run(main()).body == b"{}"
    assert server.connections == 2


def test_a_header_with_a_line_break_is_never_sent() -> None:
    request = WireRequest("http://127.0.0.1:9/v1", {"x": "a\r\nevil: yes"}, "bearer", b"{}")

    async def main() -> None:
        await transport_to(9).send(request, KEY, 1)

    with pytest.raises(NotSentError, match="line break") as caught:
        asyncio.run(main())
    assert caught.value.final


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of a `localhost` that no one vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def over_tls(certificate: Path, new_loop: Any) -> Any:
    """One request to a TLS server: the answer or the error."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(200, b"{}"))
        await writer.drain()

    async def main() -> Any:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server = await asyncio.start_server(serve, "localhost", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        transport = HttpTransport(AllowList(frozenset({Address("https", "localhost", port)})))
        request = WireRequest(f"https://localhost:{port}/v1", {}, "bearer", b"{}")
        call: Awaitable[WireResponse] = transport.send(request, KEY, 60)
        try:
            return await call
        except (NotSentError, LostError) as error:
            return error
        finally:
            await transport.close()
            server.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main())


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_certificate_that_no_one_vouches_for_gets_no_key(certificate: Path, new_loop: Any) -> None:
    error = over_tls(certificate, new_loop)
    assert isinstance(error, NotSentError)
    assert error.final
    assert "certificate is not valid" in str(error)


@pytest.mark.parametrize("new_loop", LOOPS)
def test_calls_go_over_tls_to_a_server_that_is_vouched_for(
    certificate: Path, new_loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # what OpenSSL trusts besides the system's own
    assert over_tls(certificate, new_loop).body == b"{}"
