"""A proxy in front of a stand-in for Cloud Storage that fails as the service and the network do.

Every request draws one fate from a seeded source: `refused` (429) and `down` (503) before it is passed on,
`lost` (503 although it was done), `garbled` (a bit of what is uploaded has changed), `unchecked` (so it has,
and the service isn't told what it was), `flipped` (a bit of what is downloaded has), `cut` (the connection
ends before), `gone` (410: the session of an upload has ended), `forbidden` and `kept` (403: for want of a
right, by a retention policy) and `swallowed` (it was done, and nothing comes back until the client has given
up). Listings lag: what was made in the last few requests is not in them yet.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Fate = str
STORM: dict[Fate, float] = {
    "down": 0.025,
    "lost": 0.025,
    "refused": 0.01,
    "cut": 0.005,
    "swallowed": 0.002,
    "flipped": 0.002,
    "garbled": 0.002,
}
LAG = 15
_ANSWERED = {
    "refused": (429, "try again"),
    "down": (503, "try again"),
    "gone": (410, "try again"),
    "forbidden": (403, "worker@example does not have this access to the Google Cloud Storage object."),
    "kept": (
        403,
        "Object 'b/a' is subject to bucket's retention policy and cannot be deleted or overwritten.",
    ),
}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


class Weather:
    """What becomes of each request: by shares that a seed deals out, or by a list for a test's own order."""

    def __init__(self, seed: int, shares: dict[Fate, float], lag: int = 0) -> None:
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()  # fates
        self.writes: list[tuple[str, str]] = []  # successful inserts, copies and deletes, with the name
        self.calm = False
        self._random = random.Random(seed)
        self._shares = shares
        self._lag = lag
        self._requests = 0
        self._made: dict[str, int] = {}
        self.choose: Callable[[str, str], Fate | None] = lambda method, path: None

    def fate(self, method: str, path: str) -> Fate:
        with self.lock:
            self._requests += 1
            chosen = self.choose(method, path)
            if chosen is None:
                names, weights = list(self._shares), list(self._shares.values())
                drawn = self._random.choices([*names, "fine"], [*weights, 1 - sum(weights)])[0]
                chosen = "fine" if self.calm else drawn
            self.counts[chosen] += 1
            return chosen

    def made(self, names: list[str]) -> None:
        with self.lock:
            for name in names:
                self._made[name] = self._requests

    def wrote(self, kind: str, name: str) -> None:
        with self.lock:
            self.writes.append((kind, name))

    def listing(self, body: bytes) -> bytes:
        """A listing as it was a few requests ago."""
        if self.calm or not self._lag:
            return body
        found = json.loads(body)
        with self.lock:
            fresh = {name for name, at in self._made.items() if self._requests - at < self._lag}
            self._requests += 1
        found["items"] = [item for item in found.get("items") or () if item["name"] not in fresh]
        return json.dumps(found).encode()


def only(fate: Fate, kind: str, times: int = 1) -> Callable[[str, str], Fate]:
    """The first requests of a method, or with such a path, have a fate; the others are fine."""
    left = [times]

    def choose(method: str, path: str) -> Fate:
        if (method == kind or kind in path) and left[0]:
            left[0] -= 1
            return fate
        return "fine"

    return choose


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    weather: Weather
    upstream: str
    released: threading.Event

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fate = self.weather.fate(self.command, self.path)
        if fate in _ANSWERED:
            code, said = _ANSWERED[fate]
            self._answer(code, {}, json.dumps({"error": {"code": code, "message": said}}).encode())
            return
        if fate == "cut":
            self._hang_up()
            return
        if fate in ("garbled", "unchecked"):
            body = _garbled(self.headers.get("Content-Type") or "", body)
        if fate == "unchecked":
            body = body.replace(b'"crc32c"', b'"nobody"', 1)
        status, headers, answer = self._ask(body)
        if fate == "lost":
            self._answer(503, {}, b'{"error": {"message": "lost on the way back"}}')
        elif fate == "flipped":
            self._answer(status, headers, bytes([answer[0] ^ 1]) + answer[1:])
        elif fate == "swallowed":
            self.released.wait(30)
            self._hang_up()
        else:
            self._answer(status, headers, answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _pass_on

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        there = urlsplit(self.upstream)
        connection = http.client.HTTPConnection(str(there.hostname), there.port, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        kept = {k: v for k, v in response.getheaders() if k.lower() not in _HOP_BY_HOP}
        if "Location" in kept:
            here = f"http://{self.headers['Host']}"
            kept["Location"] = kept["Location"].replace(self.upstream, here)
        if response.status == 200 or response.status == 204:
            answer = self._note(answer)
        return response.status, kept, answer

    def _note(self, answer: bytes) -> bytes:
        path = urlsplit(self.path).path
        if self.command == "DELETE":
            self.weather.wrote("delete", unquote(path.rpartition("/o/")[2]))
        elif self.command in ("POST", "PUT") and "/o" in path:
            found: dict[str, Any] = json.loads(answer) if answer.startswith(b"{") else {}
            found = found.get("resource", found)
            if "name" in found:
                self.weather.wrote("copy" if "rewriteTo" in path else "insert", found["name"])
                self.weather.made([found["name"]])
        elif self.command == "GET" and path.endswith("/o"):
            return self.weather.listing(answer)
        return answer

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _garbled(kind: str, body: bytes) -> bytes:
    """A request whose content, if it has any, has changed by a bit; what says whose it is has not."""
    if kind.startswith("multipart/"):
        at = body.rstrip(b"\r\n").rfind(b"\r\n") - 1  # the content's last byte, before the closing mark
    elif kind.startswith("application/octet-stream"):
        at = len(body) - 1
    else:
        return body
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Clients that went away are part of the weather."""


@contextmanager
def flaky(upstream: str, weather: Weather) -> Iterator[str]:
    """The address of the proxy, until the block ends."""
    released = threading.Event()
    handler = type("Handler", (_Handler,), {"weather": weather, "upstream": upstream, "released": released})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        released.set()
        server.shutdown()
        server.server_close()
        thread.join()
