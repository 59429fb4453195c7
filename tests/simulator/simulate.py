"""One seed, one job: its lives with their disasters, the calm lives that finish it, and the last checks."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.simulator.audit import Audit
from tests.simulator.caps import first_records
from tests.simulator.clock import VirtualLoop, run_virtual
from tests.simulator.disk import SimulatedDisk
from tests.simulator.ending import check_ending, note_committed, unfinished
from tests.simulator.job import Job
from tests.simulator.ports import Record, Surroundings
from tests.simulator.run import one_run
from tests.simulator.segments import Shelf
from tests.simulator.shape import Shape, draw
from tests.simulator.sharing import Hints
from tests.simulator.store import Objects
from tests.simulator.vendor import Vendor
from tests.simulator.world import Disaster, ViolationError, World

CALM_LIVES = 8
"""Runs that a job may take once nothing goes wrong any more: each row's failure is retried in the next."""
_LONGEST_LIFE_S = 20_000.0
_FOLDER = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


@dataclass
class Ended:
    """What became of a seed."""

    world: World
    job: Job
    violation: ViolationError | None

    @property
    def story(self) -> str:
        return self.world.story()


def simulate(seed: int, shape: Shape | None = None) -> Ended:
    """Play a seed to its end. A broken promise is in the result, not raised."""
    source = Random(f"world {seed}")
    shape = shape or draw(seed)
    world = World(source)
    scratch = Path(tempfile.mkdtemp(prefix="simulator-", dir=_FOLDER))
    try:
        job = _job(world, shape, source, scratch)
        run_virtual(_lives(job), lambda stuck: world.violate("no row waits for ever", str(stuck)))
        return Ended(world, job, world.violation)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _job(world: World, shape: Shape, source: Random, scratch: Path) -> Job:
    disk = SimulatedDisk(world)
    vendor = Vendor(world, shape, source)
    audit = Audit(world, shape, disk, vendor)
    shape.scratch = scratch
    first = first_records()
    files = (file for cap in shape.every_cap() for file in (cap.file, *cap.part_files(shape.parts)))
    records = {file: Record(file, first.get(file)) for file in files}
    shelf = Shelf(disk, shape.window, shape.in_flight, audit.lost_records) if shape.window else None
    around = Surroundings(world, shape, disk, records, vendor, audit, Hints(disk), source, shelf)
    objects = Objects(world, str(scratch), on_commit=audit.committed)
    return Job(around, objects, shape.refs, scratch)


async def _lives(job: Job) -> None:
    world, shape = job.around.world, job.around.shape
    for _ in range(shape.lives):
        world.io_faults, world.pauses = shape.io_faults, shape.pauses
        world.lag_s, world.longest_stop_s = shape.lag_s, shape.longest_stop_s
        steps = 12 + 7 * shape.rows * shape.workers
        await _life(job, shape.strike(world.source, steps))
        if world.violation is not None:
            return
        job.question += shape.changes_question
    await _calm(job)


async def _calm(job: Job) -> None:
    """Nothing goes wrong any more: the same command must finish the job."""
    around = job.around
    around.world.io_faults = around.world.pauses = around.world.lag_s = 0.0
    around.vendor.healthy = job.healthy = True
    for life in range(CALM_LIVES):
        await _life(job, [])
        if around.world.violation is not None:
            return
        left = unfinished(job)
        if not left:
            break
        if life >= 1 and "budget_exhausted" in left.values():
            around.shape.approve()
            around.world.seen.add("cap raised")
    else:
        around.world.violate("the same command finishes the job", f"left: {unfinished(job)}")
        return
    around.vendor.finish()
    if around.world.violation is None:
        check_ending(job)


async def _life(job: Job, disasters: list[Disaster]) -> None:
    world, loop = job.around.world, asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.begin_life()
    world.begin_life(disasters)
    await one_run(job)
    note_committed(job)
    lasted = loop.time() - world.life_began
    if lasted > _LONGEST_LIFE_S:
        world.violate("no row waits for ever", f"a run took {lasted:.0f} s")
