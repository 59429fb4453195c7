"""A loopback provider for benchmarks: `python stub.py PORT LATENCY_MS`, in a process of its own.

Answers every chat completion after the latency with the same body, and counts. `GET /count` gives what it
has counted as JSON: requests, connections, most in flight, first and last instant, its own CPU seconds.
It does as little as it can, so that it is never what is measured.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from typing import cast

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "stub-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "science", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 120, "completion_tokens": 3, "total_tokens": 123},
    }
).encode()


def http(body: bytes) -> bytes:
    """A response."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"x-request-id: req_1\r\n\r\n" + body


class Count:
    """What the stub has seen."""

    def __init__(self) -> None:
        self.requests = self.connections = self.in_flight = self.most_in_flight = 0
        self.first_at = self.last_at = 0.0

    def to_json(self) -> bytes:
        """As JSON."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return json.dumps({**vars(self), "cpu_s": used.ru_utime + used.ru_stime}).encode()


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, count: Count, latency_s: float) -> None:
        self.count = count
        self.latency_s = latency_s
        self.response = http(ANSWER)
        self.data = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self.count.connections += 1

    def data_received(self, data: bytes) -> None:
        """Answers every whole request."""
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            total = end + 4 + body_length(head, self.data[end + 4 :])
            if len(self.data) < total:
                return
            self.data = self.data[total:]
            self.serve(head)

    def serve(self, head: bytes) -> None:
        """One request."""
        assert self.transport is not None
        if head.startswith(b"get /count"):
            self.transport.write(http(self.count.to_json()))
        elif not head.startswith(b"post"):
            self.transport.write(http(b'{"object":"list","data":[]}'))
        else:
            self.count.requests += 1
            self.count.first_at = self.count.first_at or time.monotonic()
            self.count.in_flight += 1
            self.count.most_in_flight = max(self.count.most_in_flight, self.count.in_flight)
            if self.latency_s:
                asyncio.get_running_loop().call_later(self.latency_s, self.answer)
            else:
                self.answer()

    def answer(self) -> None:
        """Sends the answer."""
        self.count.in_flight -= 1
        self.count.last_at = time.monotonic()
        assert self.transport is not None
        if not self.transport.is_closing():
            self.transport.write(self.response)


def body_length(head: bytes, rest: bytes) -> int:
    """Bytes of the body, by its length or its chunks."""
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        return int(head[at + 17 :].split(b"\r\n", 1)[0])
    if b"transfer-encoding: chunked" in head:
        end = rest.find(b"0\r\n\r\n")
        return end + 5 if end >= 0 else len(rest) + 1
    return 0


async def main(port: int, latency_ms: float) -> None:
    """Serves until it is killed."""
    count = Count()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(count, latency_ms / 1000), "127.0.0.1", port, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop  # where it is installed the stub takes half the CPU

        uvloop.install()
    except ImportError:
        pass
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
