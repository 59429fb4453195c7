"""A job, and how code of one of its processes is run."""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.batches import BatchRef
from schemas.errors import BatchError, LedgerError, StoreError
from schemas.run import RunContext
from tests.simulator.clock import CURRENT
from tests.simulator.ports import Surroundings
from tests.simulator.store import Objects
from tests.simulator.world import KilledError, Process

TROUBLES = (BatchError, LedgerError, StoreError, OSError)
"""What production code reports for a batch; anything else, ReconcileError too, is a defect."""


@dataclass
class Job:
    """What all runs of a job share."""

    around: Surroundings
    objects: Objects
    refs: tuple[BatchRef, ...]
    scratch: Path
    runs: int = 0
    question: int = 0  # changes when the prompts do
    healthy: bool = False
    claims: dict[str, Process] = field(default_factory=dict)  # the kernel's locks
    asked_in: dict[str, int] = field(default_factory=dict)  # run → question

    @property
    def context(self) -> RunContext:
        """The run that is going on."""
        shape = self.around.shape
        return RunContext(f"run-{self.runs:03d}", self.objects.root, "w" * 64, False, shape.in_flight)


async def run_as(process: Process, work: Any) -> Any:
    """The result of a process's code; None when it died or failed in a way that is allowed."""
    token = CURRENT.set(process)
    try:
        task = asyncio.create_task(work)
    finally:
        CURRENT.reset(token)
    world = process.world
    await asyncio.wait([task])
    if task.cancelled():
        return None
    error = task.exception()
    if error is None:
        return task.result()
    world.note(process, f"{type(error).__name__}: {error}")
    if not isinstance(error, (*TROUBLES, KilledError)):
        where = "".join(traceback.format_exception(error)[-3:])
        world.violate(
            "production code fails in foreseen ways only", f"{type(error).__name__}: {error}\n{where}"
        )
    process.end()
    return None
