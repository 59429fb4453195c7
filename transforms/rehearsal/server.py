"""The rehearsal's stand-in for hosted providers: a server on loopback, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from types import TracebackType

from schemas.rehearsal import Rehearsal
from transforms.rehearsal.asks import HttpReply, HttpRequest
from transforms.rehearsal.draws import request_key
from transforms.rehearsal.faults import any_fault
from transforms.rehearsal.http import Connection, Delivered
from transforms.rehearsal.replies import latency_s, reply_to

_REMEMBERED_REQUESTS = 65_536
_START_TIMEOUT_S = 30.0
_PATHS = {
    ("anthropic", "direct"): "",
    ("anthropic", "vertex"): "/v1",
    ("openai", "direct"): "/v1",
    ("gemini", "direct"): "/v1beta",
    ("gemini", "vertex"): "/v1beta1",
}


@dataclass(slots=True)
class Journal:
    """What the stand-in has seen and what it would have charged for.

    `billed` counts answers that a provider charges for, whether or not the client was still there;
    `delivered` those that were handed to the socket whole. By request digest only when asked for,
    because a long run would fill the memory.
    """

    requests: int = 0
    billed: int = 0
    delivered: int = 0
    billed_by_digest: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)


class RehearsalServer:
    """Answers Anthropic Messages, OpenAI chat completions and embeddings, and Gemini, on 127.0.0.1.

    At a random port, on the paths of the providers and of Vertex.

    Deterministic: the answer, its usage, its latency and, by the number of times the request was seen
    before, its fault depend on the settings' seed and the request alone. How often a request was seen
    is remembered for the last 65,536 different ones.

    Args:
        settings: seed, latency and shares of faults.
        by_digest: whether the journal counts what was billed for each request digest.
    """

    def __init__(self, settings: Rehearsal, *, by_digest: bool = False) -> None:
        self.journal = Journal()
        self._settings = settings
        self._by_digest = by_digest
        self._counts_requests = any_fault(settings.faults)
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self._connections: set[Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._problem: OSError | None = None
        self._port = 0

    def start(self) -> RehearsalServer:
        """Listen; returns when requests are answered. OSError where no port can be opened."""
        if self._thread is not None:
            raise RuntimeError("this rehearsal server was started before; make another one")
        self._thread = threading.Thread(target=self._run, name="rehearsal", daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_TIMEOUT_S):
            raise OSError(f"the rehearsal server did not start within {_START_TIMEOUT_S:.0f} s")
        if self._problem is not None:
            raise self._problem
        return self

    def base_url(self, provider: str, platform: str = "direct") -> str:
        """The address for a provider, in the form of the SDKs' defaults: OpenAI's ends in `/v1`."""
        if not self._port:
            raise RuntimeError("the rehearsal server is not started; call start() first")
        if (provider, platform) not in _PATHS:
            known = ", ".join(sorted({name for name, _ in _PATHS}))
            raise ValueError(f"the rehearsal has no provider {provider!r} ({platform}); known: {known}")
        return f"http://127.0.0.1:{self._port}{_PATHS[provider, platform]}"

    def close(self) -> None:
        """Stop listening and drop every connection; a second call does nothing."""
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def __enter__(self) -> RehearsalServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        loop = asyncio.new_event_loop()
        self._loop = loop
        try:
            server = loop.run_until_complete(
                loop.create_server(lambda: Connection(self._handle, self._connections), "127.0.0.1", 0)
            )
            self._port = server.sockets[0].getsockname()[1]
            self._ready.set()
            loop.run_forever()
            server.close()
            for connection in tuple(self._connections):
                connection.close()
            loop.run_until_complete(_closed(server))
        except OSError as problem:
            self._problem = problem
        finally:
            self._ready.set()
            loop.close()

    def _handle(self, request: HttpRequest) -> tuple[HttpReply, float, Delivered]:
        key = request_key(self._settings.seed, request.path, request.body)
        reply = reply_to(request, self._settings, key, self._nth(key))
        journal = self.journal
        journal.requests += 1
        journal.statuses[reply.status] += 1
        if reply.billed:
            journal.billed += 1
            if self._by_digest:
                journal.billed_by_digest[key.hex()] += 1
        return reply, latency_s(self._settings, key), self._delivered if reply.billed else _nothing

    def _delivered(self) -> None:
        self.journal.delivered += 1

    def _nth(self, key: bytes) -> int:
        """How often the request was seen before; always 0 where nothing depends on it."""
        if not self._counts_requests:
            return 0
        nth = self._seen.pop(key, -1) + 1
        self._seen[key] = nth
        if len(self._seen) > _REMEMBERED_REQUESTS:
            self._seen.popitem(last=False)
        return nth


async def _closed(server: asyncio.Server) -> None:
    """Wait until listener and connections are closed."""
    await server.wait_closed()
    await asyncio.sleep(0)  # one turn of the loop, in which aborted connections let go of their sockets


def _nothing() -> None:
    pass
