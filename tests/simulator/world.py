"""The world of one simulated job: processes that die, steps at which they do, and what went wrong."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

_TRACED = 400


class KilledError(BaseException):
    """This process is dead: whatever its code still tries has no effect."""


class ViolationError(AssertionError):
    """A promise was broken. `invariant` names it."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant


@dataclass(frozen=True, slots=True)
class Disaster:
    """What happens at a step, counted from the start of a life.

    `kill` ends the process at the step, `kill run` all of them, `power` the machine; `stop` stops the
    process for a while, as SIGSTOP does; `ENOSPC` and `EIO` fail the step, and all later ones of its kind
    in that life if `lasting`. A failing step has no effect, unless `applied`: then it has it all the same.
    """

    step: int
    kind: str
    lasting: bool = False
    applied: bool = False


@dataclass(eq=False)
class Process:
    """One operating-system process."""

    world: World
    name: str
    alive: bool = True
    stopped_until: float = 0.0
    ledger_failed: bool = False  # one of its ledgers can't be written any more
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    at_exit: list[Callable[[], None]] = field(default_factory=list)

    def check(self) -> None:
        """KilledError if this process is dead."""
        if not self.alive:
            raise KilledError

    async def thaw(self) -> None:
        """Wait while the process is stopped."""
        self.check()
        while (left := self.stopped_until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)
        self.check()

    def end(self) -> None:
        """The kernel lets go of what the process held."""
        self.alive = False
        for release in self.at_exit:
            release()
        self.at_exit.clear()

    def kill(self) -> None:
        """kill -9: nothing that it would still have done is done."""
        if not self.alive:
            return
        self.world.note(self, "killed")
        self.world.mishaps += 1
        self.end()
        running = asyncio.current_task()
        for task in self.tasks:
            if task is not running:
                task.cancel()

    async def gone(self) -> None:
        """Wait until no code of a dead process runs any more."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class World:
    """Steps, disasters, the trace. One seed has one world over all lives of its job."""

    def __init__(self, source: Random) -> None:
        self.source = source
        self.steps = 0  # in this life
        self.lives = 0
        self.life_began = 0.0
        self.disasters: list[Disaster] = []
        self.failing: dict[str, int] = {}  # kind of step → errno, while a lasting fault lasts
        self.io_faults = 0.0  # share of the steps that can fail which do
        self.pauses = 0.0  # share of the store's steps before which others go first
        self.processes: list[Process] = []
        self.on_power_cut: list[Callable[[], None]] = []
        self.violation: ViolationError | None = None
        self.trace: list[tuple[float, str, str]] = []
        self.seen: set[str] = set()  # what this world went through, for the test of the tests
        self.io_failed = False  # in this life
        self.power_cuts = 0
        self.mishaps = 0  # processes that were killed or stood still and steps that failed, in all lives
        self.longest_stop_s = 20.0
        self.lag_s = 0.0  # what is newer may be missing in listings of the store
        self.working = 0  # workers that are alive
        self.lost_workers = 0  # in this life

    def spawn(self, name: str) -> Process:
        """A new process."""
        process = Process(self, f"{self.lives}.{name}")
        self.processes.append(process)
        return process

    def begin_life(self, disasters: list[Disaster]) -> None:
        """A new run begins: steps are counted anew."""
        self.steps = 0
        self.lives += 1
        self.disasters = sorted(disasters, key=lambda d: d.step)
        self.failing.clear()
        self.io_failed = False
        self.working = self.lost_workers = 0
        self.processes.clear()
        self.life_began = asyncio.get_running_loop().time()

    def note(self, process: Process | None, what: str) -> None:
        """Put a line into the trace."""
        now = asyncio.get_running_loop().time()
        self.trace.append((now, process.name if process else "-", what))

    def violate(self, invariant: str, detail: str) -> None:
        """A promise is broken. The first one counts, and ends the world: later ones may follow from it."""
        if self.violation is None:
            self.violation = ViolationError(invariant, detail)
            self.note(None, f"VIOLATION {self.violation}")
        for process in self.processes:
            process.kill()

    def step(self, process: Process, kind: str, what: str = "") -> int:
        """Take a step: die there, or give the errno with which it fails (0: it does not).

        A negative errno is a step that had its effect and failed all the same.
        """
        process.check()
        self.steps += 1
        self.trace.append((asyncio.get_running_loop().time(), process.name, f"{self.steps} {kind} {what}"))
        while self.disasters and self.disasters[0].step <= self.steps:
            if self.disasters[0].kind in FAULTS and kind not in _CAN_FAIL:
                break  # it waits for a step that can fail
            code = self._strike(self.disasters.pop(0), process, kind)
            process.check()
            if code:
                return code
        if kind in self.failing:
            return self.failing[kind]
        if self.io_faults and kind in _CAN_FAIL and self.source.random() < self.io_faults:
            self.io_failed = True
            self.mishaps += 1
            code = self.source.choice((errno.EIO, errno.ENOSPC))
            applied = kind in CAN_BE_APPLIED and self.source.random() < 0.5
            self.seen.add("lost acknowledgement" if applied else os.strerror(code))
            self.note(process, f"{'lost acknowledgement of' if applied else os.strerror(code)} {kind}")
            return -code if applied else code
        return 0

    def _strike(self, disaster: Disaster, process: Process, kind: str) -> int:
        self.seen.add(disaster.kind)
        self.note(process, f"disaster: {disaster.kind}")
        match disaster.kind:
            case "kill":
                process.kill()
            case "kill run":
                self.kill_all()
            case "power":
                self.cut_power()
            case "stop":
                self.mishaps += 1
                lasts = self.source.uniform(0.1, self.longest_stop_s)
                process.stopped_until = asyncio.get_running_loop().time() + lasts
            case code:
                return self._fail(disaster, kind, getattr(errno, code))
        return 0

    def _fail(self, disaster: Disaster, kind: str, code: int) -> int:
        self.io_failed = True
        self.mishaps += 1
        if disaster.lasting:
            self.failing[kind] = code
        return -code if disaster.applied and kind in CAN_BE_APPLIED else code

    def kill_all(self) -> None:
        """The run and all its workers are killed; the machine stays up."""
        for process in self.processes:
            process.kill()

    def cut_power(self) -> None:
        """Everything dies, and what was not synced is lost or torn."""
        self.kill_all()
        self.power_cuts += 1
        for happen in self.on_power_cut:
            happen()

    def story(self) -> str:
        """The end of the trace, for people."""
        lines = [f"{at:10.4f} {who:>10} {what}" for at, who, what in self.trace[-_TRACED:]]
        return "\n".join(lines)


FAULTS = ("ENOSPC", "EIO")
CAN_FAIL = frozenset(
    {
        "ledger open",
        "ledger append",
        "ledger cut",
        "ledger sync",
        "budget",
        "stage",
        "write part",
        "finish part",
        "create",
        "publish",
        "delete",
    }
)
"""Steps that a full or failing disk can refuse."""

OF_SEGMENTS = frozenset({"claim", "seal", "lease"})
"""Steps of a ledger on object storage, which can refuse them too."""

_CAN_FAIL = CAN_FAIL | OF_SEGMENTS
CAN_BE_APPLIED = frozenset({"budget", "create", "publish", "delete", "finish part"}) | OF_SEGMENTS
"""Of them those whose effect can be there although they failed: the acknowledgement was lost."""
