"""Just enough HTTP/1.1 for a loopback stand-in: kept connections, one request at a time on each.

A raw asyncio protocol, because it shares a core with the worker it answers: an order of magnitude
less time a call than a web framework takes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

from transforms.rehearsal.asks import HttpReply, HttpRequest

MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 32 * 1024 * 1024  # what Anthropic's Messages API takes at most
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: close sends RST

Delivered = Callable[[], None]
Handler = Callable[[HttpRequest], tuple[HttpReply, float, Delivered]]


class Connection(asyncio.Protocol):
    """One client connection.

    `handle` gives the reply, the seconds to wait before it is sent, and what to call when all of it
    is handed to the socket.
    """

    def __init__(self, handle: Handler, open_connections: set[Connection]) -> None:
        self._handle = handle
        self._open = open_connections
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio calls this first."""
        self._transport = cast(asyncio.Transport, transport)
        self._open.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        """The client has gone: its reply is not sent any more."""
        self.close()

    def close(self) -> None:
        """Drop the connection and the reply that waits on it."""
        self._open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def data_received(self, data: bytes) -> None:
        """Collect bytes until a request is whole."""
        self._buffer += data
        if not self._busy:
            self._next_request()

    def _next_request(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEADER_BYTES:
                self._refuse(431)
            return
        method, path, headers = _head(bytes(self._buffer[:end]))
        length = headers.get("content-length", "0")
        if not length.isdigit() or "transfer-encoding" in headers:
            return self._refuse(411)
        if int(length) > MAX_BODY_BYTES:
            return self._refuse(413)
        start, stop = end + 4, end + 4 + int(length)
        if len(self._buffer) < stop:
            return
        body = bytes(self._buffer[start:stop])
        del self._buffer[:stop]
        self._busy = True
        reply, delay, delivered = self._handle(HttpRequest(method, path, headers, body))
        if reply.ending != "hang":
            self._timer = asyncio.get_running_loop().call_later(delay, self._send, reply, delivered)

    def _send(self, reply: HttpReply, delivered: Delivered) -> None:
        if self._transport is None:
            return
        if reply.ending == "reset":
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            return self.close()
        data = _wire_bytes(reply)
        if reply.ending == "truncated":
            self._transport.write(data[: len(data) - len(reply.body) // 2])
            return self._transport.close()
        delivered()  # first: whoever reads the answer may look at the journal next
        self._transport.write(data)
        self._busy = False
        if self._buffer:
            self._next_request()

    def _refuse(self, status: int) -> None:
        """What can't be answered in a provider's shape: the request could not even be read."""
        if self._transport is not None:
            self._transport.write(f"HTTP/1.1 {status} Refused\r\ncontent-length: 0\r\n\r\n".encode())
            self._transport.close()


def _head(data: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = data.decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    pairs = (line.partition(":") for line in lines)
    return method, path, {name.strip().lower(): value.strip() for name, _, value in pairs}


def _wire_bytes(reply: HttpReply) -> bytes:
    headers = "".join(f"{name}: {value}\r\n" for name, value in reply.headers)
    head = (
        f"HTTP/1.1 {reply.status} Rehearsal\r\ncontent-type: application/json\r\n{headers}"
        f"content-length: {len(reply.body)}\r\n\r\n"
    )
    return head.encode("latin-1") + reply.body
