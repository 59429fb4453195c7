"""An embedder that lives in another process: this machine's embedder host.

Several worker processes of a machine hand their texts to one process, which has the model and the devices.
Embedding changes nothing, so what is lost with a host is asked of the next one again: a batch belongs to
the worker that claimed it, whatever becomes of the host.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from schemas.backends import EmbedderBackend
from schemas.errors import BatchError, OutputError
from schemas.lengths import TextLengths
from transforms.cache import cache_folder
from transforms.embed.embedder import open_embedder
from transforms.embed.embeddings import Embeddings, EmbedStats, TextEmbedder, in_groups
from transforms.embed.shared_messages import (
    ERROR,
    PROGRESS,
    Opening,
    pack_texts,
    unpack_answer,
    unpack_error,
    unpack_progress,
    unpack_space,
)
from transforms.embed.space import VectorSpace

MOST_DEATHS = 3
"""Hosts that may die of a request, or beside it, before it is given up."""
SILENCE_S = 600.0
"""A host says every second that it is at work; one that is silent for so long has been stopped."""
_LOG = logging.getLogger(__name__)

Reach = Callable[[], "Connection[Any, Any]"]


class SharedEmbedder:
    """Embeds through the embedder host, with a connection for each thread that calls."""

    def __init__(self, opening: Opening, reach: Reach, silence: float = SILENCE_S) -> None:
        self._opening = opening
        self._reach = reach
        self._silence = silence
        self._lock = threading.Lock()
        self._idle: list[Connection[Any, Any]] = []
        self._done = EmbedStats()
        self._under_way: dict[int, int] = {}
        self._space: VectorSpace | None = None
        self.device_kind = ""
        self._with_link(lambda _: b"")

    @property
    def space(self) -> VectorSpace:
        """The space of its vectors."""
        assert self._space is not None
        return self._space

    def embed_groups(self, groups: Sequence[Sequence[str]]) -> list[Embeddings]:
        """The vectors of several batches, handed back per batch, in order.

        Raises:
            BatchError: hosts died of it, or the one there is stopped answering.
        """
        request = pack_texts([text for group in groups for text in group])
        answer = self._with_link(lambda link: self._ask(link, request))
        whole, stats = unpack_answer(answer)
        with self._lock:
            self._done = self._done.plus(stats)
        return in_groups(whole, groups)

    def stats(self) -> EmbedStats:
        """What was done for this process; compilation and idle time are told to one process only."""
        with self._lock:
            return self._done.plus(EmbedStats(texts=sum(self._under_way.values())))

    def close(self) -> None:
        """Hang up, so that the host can end; a later call connects again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()

    def _with_link(self, talk: Callable[[Connection[Any, Any]], bytes]) -> bytes:
        """What is said over a connection, over another one if the host dies meanwhile."""
        last = ""
        for _ in range(MOST_DEATHS):
            try:
                link = self._take()
                with _closed_on_error(link):
                    answer = talk(link)
            except (EOFError, OSError) as error:
                last = str(error) or "it hung up"
                _LOG.warning("the embedder host is gone (%s): the next one is asked", last)
                self.close()
                continue
            with self._lock:
                self._idle.append(link)
            return answer
        raise BatchError(
            f"{MOST_DEATHS} embedder hosts ended one after the other while they were asked for the same "
            f"vectors ({last}): this machine may lack the memory for the model. The worker's log has what "
            "they said; run again for what is missing"
        )

    def _ask(self, link: Connection[Any, Any], request: bytes) -> bytes:
        link.send_bytes(request)
        try:
            return self._heard(link)
        finally:
            with self._lock:
                self._under_way.pop(id(link), None)

    def _take(self) -> Connection[Any, Any]:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        link = self._reach()
        with _closed_on_error(link):
            link.send_bytes(self._opening.to_bytes())
            space, device_kind = unpack_space(self._heard(link))
        with self._lock:
            if self._space is None:
                self._space, self.device_kind = space, device_kind
        if space.fingerprint != self.space.fingerprint:
            raise OutputError(
                f"the embedder host has died, and the new one makes vectors of {space.describe()} instead of "
                f"{self.space.describe()}: the model's files have changed"
            )
        return link

    def _heard(self, link: Connection[Any, Any]) -> bytes:
        """The next frame that is no progress, without its first byte."""
        while True:
            if not link.poll(self._silence):
                raise BatchError(
                    f"the embedder host has said nothing for {self._silence:.0f} s: it has been stopped. "
                    "Let it go on or end it, and run again"
                )
            frame = link.recv_bytes()
            kind, data = frame[:1], frame[1:]
            if kind == PROGRESS:
                with self._lock:
                    self._under_way[id(link)] = unpack_progress(data)
            elif kind == ERROR:
                raise unpack_error(data)
            else:
                return data


@contextmanager
def _closed_on_error(link: Connection[Any, Any]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        link.close()
        raise


def share_embedder(
    backend: EmbedderBackend,
    *,
    base_dir: Path,
    cache_dir: Path | None = None,
    lengths: TextLengths | None = None,
) -> TextEmbedder:
    """The embedder of a backend in this machine's embedder host, which is started if there is none.

    Where there are no local sockets (Windows) or the cache folder can't be written, the process opens
    its own.

    Raises:
        ModelError: the model can't be used.
        BatchError: no host could be reached.
    """
    opening = Opening(
        backend.model_dump(mode="json"),
        str(base_dir.resolve()),
        None if cache_dir is None else str(cache_dir),
        None if lengths is None else lengths.to_dict(),
    )
    try:
        from transforms.embed.shared_place import HostPlace, reach_host

        place = HostPlace.under(cache_dir or cache_folder())
        place.lock.parent.mkdir(parents=True, exist_ok=True)
    except (ImportError, OSError) as error:
        _LOG.warning("%s; this process opens an embedder of its own", error)
        return open_embedder(backend, base_dir=base_dir, cache_dir=cache_dir, lengths=lengths)
    return SharedEmbedder(opening, lambda: reach_host(place))
