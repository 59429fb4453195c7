"""The embedder host: the one process of a machine that has the devices while several workers need them.

    python -m transforms.embed.shared_host LOCK ADDRESS STARTING

Started by the first worker that needs it (`shared_place`). Each connection is for one embedder and carries
one request at a time; requests of all connections go through the same embedder, whose steps share the
devices. It ends when no worker has been connected for a while. It keeps nothing: a worker whose request
was lost with it asks the next one again.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from schemas.backends import EmbedderBackend
from schemas.lengths import TextLengths
from transforms.embed.embedder import Embedder, open_embedder
from transforms.embed.embeddings import EmbedStats
from transforms.embed.shared_messages import (
    Opening,
    pack_answer,
    pack_error,
    pack_progress,
    pack_space,
    unpack_texts,
)
from transforms.embed.shared_place import SOCKET_FOLDER, HostPlace

LINGER_S = 20.0
"""How long a host without a worker waits for the next one: groups of a run follow each other so fast."""
HEARTBEAT_S = 1.0
_LONGEST_ADDRESS = 100  # bytes of a socket's path that every system takes (108 on Linux, 104 on macOS)
_LOG = logging.getLogger(__name__)


class GoneError(Exception):
    """The worker that asked is not there any more."""


class EmbedderHost:
    """Answers workers until none is left."""

    def __init__(
        self,
        open_: Callable[[Opening], Embedder],
        linger: float = LINGER_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = open_
        self._linger = linger
        self._now = now
        self._lock = threading.Lock()
        self.users = 0
        self._left_at = now()
        self._told: dict[int, EmbedStats] = {}

    def serve(self, listener: socket.socket, look: float = 0.5) -> None:
        """Accept workers; returns when none has been connected for a while."""
        listener.settimeout(look)
        while True:
            try:
                accepted, _ = listener.accept()
            except TimeoutError:
                with self._lock:
                    if not self.users and self._now() - self._left_at >= self._linger:
                        return
                continue
            with self._lock:
                self.users += 1
            link: Connection[Any, Any] = Connection(accepted.detach())
            threading.Thread(target=self._attend, args=(link,), daemon=True).start()

    def _attend(self, link: Connection[Any, Any]) -> None:
        """One worker's connection, to its end."""
        own = ThreadPoolExecutor(1, thread_name_prefix="switchgear-host")
        try:
            embedder = self._opened(link, own)
            while embedder is not None:
                request = link.recv_bytes()
                progress = Progress()
                link.send_bytes(
                    awaited(link, own.submit(self._answer, embedder, request, progress), progress)
                )
        except (EOFError, OSError, GoneError):
            pass  # the worker has ended
        finally:
            link.close()
            own.shutdown(wait=False)
            with self._lock:
                self.users -= 1
                self._left_at = self._now()

    def _opened(self, link: Connection[Any, Any], own: ThreadPoolExecutor) -> Embedder | None:
        opening = Opening.from_bytes(link.recv_bytes())
        found: list[Embedder] = []

        def open_() -> bytes:
            try:
                found.append(self._open(opening))
            except Exception as error:
                _LOG.exception("the embedder could not be opened")
                return pack_error(error)
            return pack_space(found[0].space, found[0].device_kind)

        link.send_bytes(awaited(link, own.submit(open_), Progress()))
        return found[0] if found else None

    def _answer(self, embedder: Embedder, request: bytes, progress: Progress) -> bytes:
        try:
            made, own = embedder.embed_counted(unpack_texts(request), progress.advance)
            return pack_answer(made, own.plus(self._untold(embedder)))
        except GoneError:
            raise
        except Exception as error:
            _LOG.exception("a request failed")
            return pack_error(error)

    def _untold(self, embedder: Embedder) -> EmbedStats:
        """What belongs to no request: compilation and idle time, each second told to one worker only."""
        with self._lock:
            now = embedder.stats().shared()
            before = self._told.get(id(embedder), EmbedStats())
            self._told[id(embedder)] = now
            return now.plus(before, -1)


class Progress:
    """How many texts of a request are through, and whether anybody still wants to know."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.texts = 0
        self.gone = False

    def advance(self, texts: int) -> None:
        """Called after each step."""
        if self.gone:
            raise GoneError
        with self._lock:
            self.texts += texts


def awaited(link: Connection[Any, Any], work: Future[bytes], progress: Progress) -> bytes:
    """The work's frame; as long as it takes, the worker is told every second that it goes on."""
    while not wait([work], HEARTBEAT_S).done:
        try:
            link.send_bytes(pack_progress(progress.texts))
        except OSError:
            progress.gone = True
            raise
    return work.result()


def open_asked(opening: Opening) -> Embedder:
    """The embedder that a worker asks for, the same one for all that ask for the same."""
    return open_embedder(
        EmbedderBackend(**opening.backend),
        base_dir=Path(opening.base_dir),
        cache_dir=None if opening.cache_dir is None else Path(opening.cache_dir),
        lengths=None if opening.lengths is None else TextLengths.from_dict(opening.lengths),
    )


def free_address() -> str:
    """Where to listen: in a new folder that only this user may enter. Paths of sockets are short."""
    address = os.path.join(tempfile.mkdtemp(prefix=SOCKET_FOLDER), "socket")
    if len(os.fsencode(address)) <= _LONGEST_ADDRESS:
        return address
    os.rmdir(os.path.dirname(address))
    return os.path.join(tempfile.mkdtemp(prefix=SOCKET_FOLDER, dir="/tmp"), "socket")


def main(argv: Sequence[str]) -> int:
    """Serve; 0 when no worker is left, 3 when this machine has a host already."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    place = HostPlace(*map(Path, argv))
    lock = place.own()
    if lock is None:
        return 3
    with lock, socket.socket(socket.AF_UNIX) as listener:
        address = free_address()
        listener.bind(address)
        listener.listen(128)
        place.announce(address)
        with suppress(OSError):  # who started it may be gone; others come
            os.write(sys.stdout.fileno(), b"listening\n")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        EmbedderHost(open_asked).serve(listener)
        place.withdraw()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
