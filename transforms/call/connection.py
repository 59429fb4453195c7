"""One connection: a request goes out, its whole response comes in. Parsing is llhttp's, by httptools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import cast

import httptools

from transforms.call.wire import WireResponse

MOST_HEADER_BYTES = 64 << 10
_NO_BODY_LENGTH = -1


@lru_cache(maxsize=512)
def _lower(name: bytes) -> str:
    """The same few names come with every response."""
    return name.decode("latin-1").lower()


class BrokenError(Exception):
    """The exchange ended without a whole response. Says why in a few words, without any of its bytes."""


class Connection(asyncio.Protocol):
    """A connection that carries one exchange after the other.

    After an exchange that failed in whatever way (broken, out of time, cancelled) it is closed: what
    might still arrive would be taken for the answer to the next request.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, largest_body: int, on_lost: Callable[[Connection], None]
    ) -> None:
        self._loop = loop
        self._largest_body = largest_body
        self._on_lost = on_lost
        self._socket: asyncio.Transport | None = None
        self._response: asyncio.Future[WireResponse] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._keeps_alive = True
        self.idle_since = 0.0
        self._begin()

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent."""
        return self._keeps_alive and self._socket is not None and not self._socket.is_closing()

    async def exchange(self, request: bytes, deadline: float) -> WireResponse:
        """Sends a request and gives the whole response.

        Raises:
            TimeoutError: not before `deadline`, an instant of the event loop's clock.
            BrokenError: the connection broke, or what came is not HTTP, or larger than allowed.
        """
        response = self._response = self._loop.create_future()
        timer = self._loop.call_at(deadline, self._out_of_time)
        is_done = False
        try:
            if self._socket is None or self._socket.is_closing():
                raise BrokenError("the connection broke off")
            self._socket.write(request)
            result = await response
            is_done = True
            return result
        finally:
            timer.cancel()
            self._response = None
            if not is_done:
                self.abort()

    def abort(self) -> None:
        """Closes it at once."""
        self._keeps_alive = False
        if self._socket is not None:
            self._socket.abort()

    def _begin(self) -> None:
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._head_size = 0
        self._expected = _NO_BODY_LENGTH
        self._is_chunked = False
        self._has_head = False

    def _fail(self, why: str) -> None:
        self._keeps_alive = False
        if self._response is not None and not self._response.done():
            self._response.set_exception(BrokenError(why))
        if self._socket is not None:
            self._socket.abort()

    def _out_of_time(self) -> None:
        if self._response is not None and not self._response.done():
            self._response.set_exception(TimeoutError())

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._socket = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        """Feeds the parser."""
        if self._response is None or self._response.done():
            self._fail("the server spoke unasked")
            return
        if not self._has_head:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("the answer is not HTTP")
            return
        if not self._has_head and self._head_size > MOST_HEADER_BYTES:
            self._fail("the answer's headers are too long")

    def eof_received(self) -> None:
        """A body without a length ends with the connection."""
        ends = self._has_head and not self._is_chunked and self._expected == _NO_BODY_LENGTH
        if ends and self._response is not None and not self._response.done():
            self._keeps_alive = False
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits for an answer learns that none will come."""
        self._on_lost(self)
        why = "reset by the server" if isinstance(exc, ConnectionResetError) else "closed by the server"
        self._fail(f"the connection broke off ({why})")
        self._socket = None

    # httptools calls these

    def on_message_begin(self) -> None:
        """More than was asked for: whatever it is, it must not be taken for the next answer."""
        if self._response is None or self._response.done():
            self._keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers[_lower(name)] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Looks at what is to come."""
        self._has_head = True
        length = self._headers.get("content-length")
        self._is_chunked = "transfer-encoding" in self._headers
        if length is not None and not self._is_chunked:
            self._expected = int(length)
            if self._expected > self._largest_body:
                self._fail(f"the answer is larger than {self._largest_body} bytes")

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._size += len(data)
        if self._size > self._largest_body:
            self._fail(f"the answer is larger than {self._largest_body} bytes")
        else:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """The response is whole; interim ones (1xx) are passed over."""
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._begin()
            return
        self._keeps_alive = self._keeps_alive and self._parser.should_keep_alive()
        self._finish()

    def _finish(self) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        result = WireResponse(self._parser.get_status_code(), self._headers, body)
        self._begin()
        self.idle_since = self._loop.time()
        if self._response is not None and not self._response.done():
            self._response.set_result(result)
