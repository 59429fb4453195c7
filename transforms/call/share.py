"""Identical requests are paid once: who asks first calls, the others wait and take the same answer.

Only recorded and synced answers are handed on, so whoever shares one never depends on anything that a
power cut could take back. Failures are not answers: after one the next in line calls for itself.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

import orjson

from schemas.errors import LedgerError
from schemas.outcomes import SharedFrom
from transforms.call.ledger import Frame
from transforms.call.ports import BoundedLog, Clock, LedgerLog

MOST_REMEMBERED_BYTES = 16 << 20
"""Answers that are kept in memory; older ones are found through the index, and read from their ledger."""

_LOOK_AGAIN_S = 0.02  # while another process asks the same,
_LONGEST_LOOK_S = 1.0
_OF_THE_WAIT = 0.1  # and later a tenth of what was waited so far: thousands may wait for seconds
_ANSWER_BYTES = 512  # of a remembered answer besides its frame, roughly
_MOST_AT_A_TIME = 64


@dataclass(frozen=True, slots=True)
class Place:
    """Where a frame stands in the ledger of a batch, and its checksum."""

    batch_id: str
    offset: int
    checksum: int


@dataclass(frozen=True, slots=True)
class SharedAnswer:
    """A recorded answer that others may take: whose it is, and its `answered` frame as JSON.

    As bytes, because thousands are remembered and few are taken. `fresh` says that it came while this
    engine was open, and not from an earlier process.
    """

    origin: SharedFrom
    data: bytes
    fresh: bool

    @classmethod
    def of(cls, origin: SharedFrom, frame: Frame, *, fresh: bool) -> SharedAnswer:
        """The answer of a frame."""
        return cls(origin, orjson.dumps(frame), fresh)

    @property
    def frame(self) -> Frame:
        """The `answered` frame."""
        frame: Frame = orjson.loads(self.data)
        return frame


class AnswerIndex(Protocol):
    """What the processes that work on one output know of each other's answers. Hints: losing one is safe."""

    def claim(self, key: bytes) -> bool:
        """Takes the right to ask; False while another process has it, which it loses when it dies."""
        ...

    def release(self, key: bytes) -> None:
        """Gives it back."""
        ...

    def find(self, key: bytes) -> SharedAnswer | None:
        """An answer that was added, read from its ledger; None if there is none that still stands there."""
        ...

    def add(self, key: bytes, place: Place) -> None:
        """Notes where an answer is. It must be durable there."""
        ...


@dataclass(slots=True)
class Asking:
    """A request that is being asked; `leaders` of those who want to know are at it, others wait."""

    key: bytes
    leaders: int = 1
    failures: int = 0
    waiting: list[asyncio.Future[SharedAnswer | None]] = field(default_factory=list)
    closed: bool = False
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class _Due:
    """An answer that becomes visible once its ledger is synced."""

    asking: Asking
    place: Place
    answer: SharedAnswer


def share_key(backend: str, request_sha256: str) -> bytes:
    """16 bytes for one request to one backend: another backend may be another provider or region."""
    return blake2b(f"{backend}\0{request_sha256}".encode(), digest_size=16).digest()


class Shares:
    """Who asks what, and the answers that came. Used on one event loop."""

    def __init__(
        self, clock: Clock, index: AnswerIndex | None = None, most_bytes: int = MOST_REMEMBERED_BYTES
    ) -> None:
        self._clock = clock
        self._index = index
        self._most_bytes = most_bytes
        self._bytes = 0
        self._asking: dict[bytes, Asking] = {}
        self._known: OrderedDict[bytes, SharedAnswer] = OrderedDict()
        self._due: dict[LedgerLog, list[_Due]] = {}
        self._publishing: dict[LedgerLog, asyncio.Task[None]] = {}

    async def turn(
        self, key: bytes, fits: Callable[[SharedAnswer], bool], patience_s: float
    ) -> SharedAnswer | Asking:
        """An answer that `fits`, or the caller's turn to ask: it then has to call `answered` or `failed`.

        Waits while others ask the same.

        Raises:
            TimeoutError: nothing came of it within `patience_s`.
        """
        while True:
            known = self._known.get(key)
            if known is not None and fits(known):
                self._known.move_to_end(key)
                return known
            asking = self._asking.get(key)
            if asking is None:
                break
            told = await self._wait(asking, patience_s)
            if told is None:
                return asking
            if fits(told):
                return told
        asking = self._asking[key] = Asking(key)
        if self._index is None:
            return asking
        if not self._index.claim(key):
            await self._claimed(self._index, asking, patience_s)
        asking.claimed = True
        return self._found_elsewhere(self._index, asking, fits) or asking

    def known(self, key: bytes, fits: Callable[[SharedAnswer], bool]) -> SharedAnswer | None:
        """An answer that is there already and `fits`; nobody is waited for, and nobody's turn is taken."""
        found = self._known.get(key)
        if found is None and self._index is not None:
            found = self._index.find(key)
        return found if found is not None and fits(found) else None

    async def _wait(self, asking: Asking, patience_s: float) -> SharedAnswer | None:
        """What comes of it; None when it is the caller's turn."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[SharedAnswer | None] = loop.create_future()
        asking.waiting.append(turn)
        late = loop.call_later(patience_s, _give_up, turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and not turn.exception() and turn.result() is None:
                self.failed(asking)  # it was given the turn in the same moment
            raise
        finally:
            late.cancel()

    async def _claimed(self, index: AnswerIndex, asking: Asking, patience_s: float) -> None:
        """Returns when no other process asks the same any more, and this one has the right to."""
        began = self._clock.monotonic()
        try:
            while not index.claim(asking.key):
                waited_s = self._clock.monotonic() - began
                if waited_s >= patience_s:
                    raise TimeoutError
                pause_s = min(max(_LOOK_AGAIN_S, _OF_THE_WAIT * waited_s), _LONGEST_LOOK_S)
                await self._clock.sleep(min(pause_s, patience_s - waited_s))
        except BaseException:
            self.failed(asking)
            raise

    def _found_elsewhere(
        self, index: AnswerIndex, asking: Asking, fits: Callable[[SharedAnswer], bool]
    ) -> SharedAnswer | None:
        """What another process, or an earlier one, was answered."""
        try:
            found = index.find(asking.key)
            if found is None or not fits(found):
                return None
        except BaseException:
            self.failed(asking)
            raise
        self._show(asking, found)
        return found

    def failed(self, asking: Asking) -> None:
        """One who asked got no answer. The next in line may; after a second failure two at a time, then four.

        Were it one by one, a thousand identical documents would wait out a thousand times what the
        first has waited for.
        """
        asking.leaders -= 1
        if asking.closed:
            return
        asking.failures += 1
        allowed = min(1 << (asking.failures - 1), _MOST_AT_A_TIME)
        while asking.waiting and asking.leaders < allowed:
            turn = asking.waiting.pop(0)
            if not turn.done():
                asking.leaders += 1
                turn.set_result(None)
        if asking.leaders <= 0:
            self._close(asking)

    def offer(self, key: bytes, log: LedgerLog, place: Place, answer: SharedAnswer) -> None:
        """An answer that a ledger had from before: others get it too, as soon as it is surely durable."""
        if key not in self._known and key not in self._asking:
            asking = self._asking[key] = Asking(key)
            self.answered(asking, log, place, answer)

    def answered(self, asking: Asking, log: LedgerLog, place: Place, answer: SharedAnswer) -> None:
        """An answer was recorded in `log`: others get it as soon as that is durable."""
        self._due.setdefault(log, []).append(_Due(asking, place, answer))
        if log not in self._publishing:
            self._publishing[log] = asyncio.get_running_loop().create_task(self._publish(log))

    async def _publish(self, log: LedgerLog) -> None:
        """Makes what is due in a ledger visible, one sync for all that came meanwhile."""
        due: list[_Due] = []
        try:
            while log in self._due:
                due = self._due.pop(log)
                await (log.sealed() if isinstance(log, BoundedLog) else log.sync())
                for entry in due:
                    if self._index is not None:
                        self._index.add(entry.asking.key, entry.place)
                    self._show(entry.asking, entry.answer)
                due = []
        except LedgerError:
            pass  # the batch learns of it by its own sync; nobody shares what may be lost
        finally:
            del self._publishing[log]
            for entry in (*due, *self._due.pop(log, ())):
                self.failed(entry.asking)

    async def leave(self, log: LedgerLog) -> None:
        """Returns when nothing of a ledger is due any more; before it is closed."""
        task = self._publishing.get(log)
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    def _show(self, asking: Asking, answer: SharedAnswer) -> None:
        self._remember(asking.key, answer)
        if asking.closed:
            return
        self._close(asking)
        for turn in asking.waiting:
            if not turn.done():
                turn.set_result(answer)
        asking.waiting.clear()

    def _close(self, asking: Asking) -> None:
        asking.closed = True
        if self._asking.get(asking.key) is asking:
            del self._asking[asking.key]
        if asking.claimed and self._index is not None:
            asking.claimed = False
            self._index.release(asking.key)

    def _remember(self, key: bytes, answer: SharedAnswer) -> None:
        before = self._known.pop(key, None)
        self._bytes += _size(answer) - (0 if before is None else _size(before))
        self._known[key] = answer
        while self._bytes > self._most_bytes:
            _, oldest = self._known.popitem(last=False)
            self._bytes -= _size(oldest)


def _give_up(turn: asyncio.Future[SharedAnswer | None]) -> None:
    if not turn.done():
        turn.set_exception(TimeoutError())


def _size(answer: SharedAnswer) -> int:
    return _ANSWER_BYTES + len(answer.data)
