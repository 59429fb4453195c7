"""Defects of sharing one answer among rows that ask the same."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from tests.simulator.planting import defect, swap
from transforms.call import identical
from transforms.call.share import Asking, Shares

DURABLE = "only durable answers are shared"
ONCE = "identical requests are paid once"
ANSWERS = "only whole, valid answers are results"


@defect("share", DURABLE)
def answers_are_shared_before_they_are_durable(replaced: ExitStack) -> None:
    async def publish(self: Shares, log: Any) -> None:
        for entry in self._due.pop(log, ()):
            if self._index is not None:
                self._index.add(entry.asking.key, entry.place)
            self._show(entry.asking, entry.answer)
        del self._publishing[log]

    swap(replaced, Shares, "_publish", publish)


@defect("share", ANSWERS, "an answer belongs to its question", "a failure says what happened")
def an_answer_is_shared_whatever_was_asked(replaced: ExitStack) -> None:
    before = swap(replaced, identical, "share_key", lambda backend, request: before(backend, ""))


@defect("share", ONCE)
def who_asks_the_same_asks_for_itself(replaced: ExitStack) -> None:
    async def turn(self: Shares, key: bytes, *rest: Any) -> Any:
        return self._asking.setdefault(key, Asking(key))

    swap(replaced, Shares, "turn", turn)
