"""Virtual time: an event loop that never waits, and synchronous code cut into steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    from tests.simulator.world import Process

T = TypeVar("T")
_SHORTEST_S = 2e-9
_MOST_ROUNDS = 20_000  # of the loop in one instant,
_MOST_ROUNDS_OF_A_LIFE = 100_000  # and in all; some 15,000 are the most that lives without a defect take
EPOCH = datetime(2026, 11, 22, 9, tzinfo=UTC)
CURRENT: ContextVar[Process | None] = ContextVar("process", default=None)


class StuckError(BaseException):
    """Nothing moves any more; says in which way."""


class _NumberedTask(asyncio.Task[Any]):
    """A task whose hash does not depend on where it lies in memory, so that sets of tasks have an order."""

    def __init__(self, coro: Any, loop: asyncio.AbstractEventLoop, number: int) -> None:
        self.number = number
        super().__init__(coro, loop=loop)

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without I/O, whose time passes only when nothing else is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual_now = 0.0
        self._tasks = 0
        self._since_time_passed = 0
        self._rounds = 0  # in this life
        self._selector = self
        self.set_task_factory(self._make_task)

    def _make_task(self, _loop: Any, coro: Any, **_: Any) -> _NumberedTask:
        self._tasks += 1
        task = _NumberedTask(coro, self, self._tasks)
        process = CURRENT.get()
        if process is not None:
            process.tasks.append(task)
        return task

    def time(self) -> float:
        return self._virtual_now

    def begin_life(self) -> None:
        """From here on it may go round as often as one run may take."""
        self._rounds = 0

    def select(self, timeout: float | None) -> tuple[()]:
        """Instead of waiting for sockets: jump to the next timer."""
        if timeout is None:
            raise StuckError("everything waits, and nothing would ever wake it")
        self._rounds += 1
        if self._rounds > _MOST_ROUNDS_OF_A_LIFE:
            raise StuckError(f"time passes, and nothing comes of it: it is {self._virtual_now:.0f} s by now")
        self._since_time_passed = 0 if timeout else self._since_time_passed + 1
        if self._since_time_passed > _MOST_ROUNDS:
            raise StuckError("it goes round and round, and no time passes")
        self._virtual_now += timeout
        return ()

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        """No real clock stands still, however little is waited for."""
        return super().call_at(max(when, self._virtual_now + _SHORTEST_S), callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        """There are no threads here: what would run in one is done at once."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except BaseException as error:
            done.set_exception(error)
        return done

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def run_virtual(
    main: Coroutine[Any, Any, None], when_stuck: Callable[[StuckError], None] | None = None
) -> None:
    """Run to the end in virtual time. When nothing moves any more, say so and end all that is left."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(main)
    except StuckError as stuck:
        if when_stuck is None:
            raise
        loop.begin_life()
        loop.run_until_complete(_give_up(stuck, when_stuck))
    finally:
        loop.close()


async def _give_up(stuck: StuckError, when_stuck: Callable[[StuckError], None]) -> None:
    when_stuck(stuck)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


class VirtualClock:
    """The loop's time, for one process: a dead one never wakes, a stopped one wakes late."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.monotonic())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._process.thaw()


def pause(seconds: float) -> None:
    """Let others go first; for synchronous code that runs under `in_steps`."""
    parent = getcurrent().parent
    if parent is not None:
        parent.switch(seconds)


async def in_steps(process: Process, act: Callable[[], T]) -> T:
    """Run synchronous code that others may interrupt wherever it calls `pause`."""
    steps = greenlet(act)
    value = steps.switch()
    while not steps.dead:
        try:
            await asyncio.sleep(value)
            await process.thaw()
        except BaseException as error:
            steps.throw(type(error))  # the code dies where it stands
            raise
        value = steps.switch()
    return value
