"""Sockets: plain HTTP/1.1 over kept connections, parsed by llhttp. See .github/adr/006-transport.md.

Only what calls need: a request with a body, its whole response. No redirects, cookies, proxies, netrc,
compression or pipelining; whatever a server does that is not understood ends as a lost call.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from schemas.run import CODE_VERSION
from transforms.call.address import Address, AllowList
from transforms.call.connection import BrokenError, Connection
from transforms.call.ports import LostError, NotSentError
from transforms.call.secret import Secret
from transforms.call.wire import WireRequest, WireResponse

LARGEST_BODY = 32 << 20
CONNECT_TIMEOUT_S = 10.0
# Shorter than the 5 s after which common servers drop an idle connection: a request that meets the
# server's goodbye on the wire has an unknown end.
KEEP_ALIVE_S = 4.0
_NAMES_KEPT_S = 30.0
_MOST_HEADS = 64
_OWN_HEADERS = {"user-agent": f"switchgear/{CODE_VERSION}", "accept-encoding": "identity"}
_UNPRINTABLE = frozenset("\r\n\0")


@dataclass(frozen=True, slots=True)
class _Head:
    """A request's first bytes, up to the body's length, and what they were made of."""

    address: Address
    data: bytes
    made_of: tuple[Mapping[str, str], Secret | None]  # kept alive, because heads are found by identity
    idle: list[Connection]  # of the address; the one that was used last at the end


class HttpTransport:
    """A transport over kept connections; made on the event loop that uses it.

    Opens sockets to allowed addresses only, and takes no body over `largest_body`.
    """

    def __init__(self, allowed: AllowList, *, largest_body: int = LARGEST_BODY) -> None:
        self._allowed = allowed
        self._largest_body = largest_body
        self._loop = asyncio.get_running_loop()
        self._tls: ssl.SSLContext | None = None
        self._heads: dict[tuple[str, str, int, int], _Head] = {}
        self._idle: dict[Address, list[Connection]] = {}
        self._open: set[Connection] = set()
        self._names: dict[Address, tuple[float, list[str]]] = {}

    async def send(self, request: WireRequest, key: Secret | None, timeout_s: float) -> WireResponse:
        """The whole response; see `Transport`."""
        head = self._head(request, key)
        deadline = self._loop.time() + timeout_s
        connection = self._kept(head.idle) or await self._connect(head.address, timeout_s)
        try:
            response = await connection.exchange(
                b"%b%d\r\n\r\n%b" % (head.data, len(request.body), request.body), deadline
            )
        except TimeoutError:
            error = LostError("timeout", f"{_where(head.address)}: no whole answer within {timeout_s:g} s")
        except BrokenError as broken:
            error = LostError("connection", f"{_where(head.address)}: {broken}")
        else:
            if connection.is_reusable:
                head.idle.append(connection)
            else:
                connection.abort()
            return response
        raise error

    def _head(self, request: WireRequest, key: Secret | None) -> _Head:
        known = (request.url, request.auth, id(request.headers), id(key))
        head = self._heads.get(known)
        if head is None:
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            head = self._heads[known] = self._make_head(request, key)
        return head

    def _make_head(self, request: WireRequest, key: Secret | None) -> _Head:
        parts = urlsplit(request.url)
        if not self._allowed.allows_url(request.url):
            raise NotSentError(
                f"{parts.hostname} is not the address of a backend; nothing was sent", final=True
            )
        host = (parts.hostname or "").lower().rstrip(".")
        address = Address(parts.scheme, host, parts.port or (443 if parts.scheme == "https" else 80))
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        headers = {"host": parts.netloc, **_OWN_HEADERS, **request.headers}
        if key is not None:
            _add_key(headers, request.auth, key)
        lines = [
            f"{request.method} {target} HTTP/1.1",
            *(f"{name}: {text}" for name, text in headers.items()),
        ]
        if any(_UNPRINTABLE & set(line) for line in lines):
            raise NotSentError(f"{host}: a header holds a line break; nothing was sent", final=True)
        data = "\r\n".join([*lines, "content-length: "]).encode("latin-1")
        return _Head(address, data, (request.headers, key), self._idle.setdefault(address, []))

    def _kept(self, idle: list[Connection]) -> Connection | None:
        """A connection that is still good; the one that was used last."""
        oldest = self._loop.time() - KEEP_ALIVE_S
        while idle:
            connection = idle.pop()
            if connection.is_reusable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self, address: Address, timeout_s: float) -> Connection:
        # What is raised here may lead to frames that hold the key: nothing of it is kept as a context.
        try:
            async with asyncio.timeout(min(CONNECT_TIMEOUT_S, timeout_s)):
                return await self._open_any(address)
        except NotSentError as refused:
            error = refused
        except (TimeoutError, OSError, ssl.SSLError) as caught:
            is_final = isinstance(caught, ssl.SSLCertVerificationError)
            error = NotSentError(f"{_where(address)}: {_reason(caught)}; nothing was sent", final=is_final)
        error.__cause__ = error.__context__ = None
        raise error

    async def _open_any(self, address: Address) -> Connection:
        failed: OSError | None = None
        for ip in await self._lookup(address):
            try:
                return await self._open_socket(address, ip)
            except OSError as error:
                failed = error
        assert failed is not None
        raise failed

    async def _open_socket(self, address: Address, ip: str) -> Connection:
        if not self._allowed.allows_socket(ip, address.port):
            raise _refused(f"{ip}:{address.port} is not the address of a backend")
        is_tls = address.scheme == "https"
        _, connection = await self._loop.create_connection(
            lambda: Connection(self._loop, self._largest_body, self._open.discard),
            ip,
            address.port,
            ssl=self._tls_context() if is_tls else None,
            server_hostname=address.host if is_tls else None,
        )
        self._open.add(connection)
        return connection

    async def _lookup(self, address: Address) -> list[str]:
        """The IP addresses behind an allowed name; looked up anew every _NAMES_KEPT_S."""
        kept = self._names.get(address)
        if kept is not None and kept[0] > self._loop.time():
            return kept[1]
        host, port = address.host, address.port
        if not self._allowed.allows_name(host, port):
            raise _refused(f"{host}:{port} is not the address of a backend")
        found = await self._loop.run_in_executor(None, _resolve, host, port)
        admitted = [ip for ip in found if self._allowed.admit(host, ip, port)]
        if not admitted:
            raise _refused(f"{host} resolves to this machine, its link or a private network alone")
        self._names[address] = (self._loop.time() + _NAMES_KEPT_S, admitted)
        return admitted

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    async def close(self) -> None:
        """Closes every connection."""
        for connection in list(self._open):
            connection.abort()
        for idle in self._idle.values():
            idle.clear()


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _add_key(headers: dict[str, str], auth: str, key: Secret) -> None:
    if auth == "bearer":
        headers["authorization"] = f"Bearer {key.reveal()}"
    else:
        headers[auth] = key.reveal()


def _refused(why: str) -> NotSentError:
    return NotSentError(f"{why}; nothing was sent", final=True)


def _where(address: Address) -> str:
    return f"{address.host}:{address.port}"


def _reason(error: OSError) -> str:
    """A few words; never the exception's own text where that could repeat what was sent."""
    if isinstance(error, socket.gaierror):
        return "the name can't be resolved"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not valid"
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, ssl.SSLError):
        return "no TLS connection"
    return error.strerror.lower() if error.strerror else type(error).__name__
