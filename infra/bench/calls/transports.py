"""CPU per call of HTTP clients, nothing else around them: `python -m infra.bench.calls.transports`.

The same POST to the same loopback provider, so many at a time; clients that are not installed are left
out. These are the figures of .github/adr/006-transport.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import uvloop

from infra.bench.calls.bench import provider
from transforms.call.address import Address, AllowList
from transforms.call.secret import Secret
from transforms.call.transport import HttpTransport
from transforms.call.wire import JSON_HEADERS, WireRequest

TEXT = "The quarterly report said that revenue rose while the costs of energy fell across the region. " * 6
BODY = orjson.dumps(
    {"model": "stub-1", "max_tokens": 32, "messages": [{"role": "user", "content": TEXT[:500]}]}
)
Call = Callable[[], Awaitable[bytes]]
Client = tuple[Call, Callable[[], Awaitable[Any]]]  # ... and how it is closed


async def ours(port: int) -> Client:
    """The transport of this checkout."""
    transport = HttpTransport(AllowList(frozenset({Address("http", "127.0.0.1", port)})))
    url, key = f"http://127.0.0.1:{port}/v1/chat/completions", Secret("none")

    async def call() -> bytes:
        request = WireRequest(url, JSON_HEADERS, "bearer", BODY)
        return (await transport.send(request, key, 60)).body

    return call, transport.close


async def aiohttp(port: int) -> Client:
    """Aiohttp with ready-made bytes."""
    import aiohttp as library
    from yarl import URL

    session: Any = library.ClientSession(
        connector=library.TCPConnector(limit=0), cookie_jar=library.DummyCookieJar(), auto_decompress=False
    )
    url = URL(f"http://127.0.0.1:{port}/v1/chat/completions")
    headers = {**JSON_HEADERS, "authorization": "Bearer none"}

    async def call() -> bytes:
        async with asyncio.timeout(60):
            async with session.post(url, data=BODY, headers=headers, allow_redirects=False) as response:
                return await response.read()

    return call, session.close


async def pyreqwest(port: int) -> Client:
    """A client in Rust."""
    from pyreqwest.client import ClientBuilder

    client: Any = ClientBuilder().build()
    url = f"http://127.0.0.1:{port}/v1/chat/completions"

    async def call() -> bytes:
        request = client.post(url).header("authorization", "Bearer none")
        request = request.header("content-type", "application/json").body_bytes(BODY).build()
        return bytes(await (await request.send()).bytes())

    return call, client.close


async def drive(make: Callable[[int], Awaitable[Client]], port: int, calls: int, in_flight: int) -> str:
    """CPU per call, all threads of this process included."""
    call, close = await make(port)
    await asyncio.gather(*(call() for _ in range(in_flight)))  # every connection is open
    left = iter(range(calls))

    async def work() -> None:
        for _ in left:
            assert orjson.loads(await call())["choices"]

    before, started = _cpu_s(), asyncio.get_running_loop().time()
    await asyncio.gather(*(work() for _ in range(in_flight)))
    wall, cpu = asyncio.get_running_loop().time() - started, _cpu_s() - before
    await close()
    return f"{cpu / calls * 1e6:6.0f} µs a call, {calls / wall:7,.0f} calls/s"


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measures each client on each loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--latency", type=float, default=50.0, help="milliseconds")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    for loop in (asyncio.new_event_loop, uvloop.new_event_loop):
        for make in (ours, aiohttp, pyreqwest):
            with provider(options.latency) as port, asyncio.Runner(loop_factory=loop) as runner:
                try:
                    told = runner.run(drive(make, port, options.calls, options.in_flight))
                except ImportError as missing:
                    told = f"not installed ({missing.name})"
            print(f"{make.__name__:10} {loop.__module__:18} {told}", flush=True)


if __name__ == "__main__":
    main()
