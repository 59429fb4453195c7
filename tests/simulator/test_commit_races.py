"""Two publishers, a zombie and the next attempt's writer over one store, in ten thousand orders.

A reader looks after every single change. Steps fail (503), have their effect and fail all the same (a lost
acknowledgement), or find that somebody was there before (412); `SWITCHGEAR_RACES` sets how many orders.
"""

from __future__ import annotations

import asyncio
import os
from hashlib import sha256
from random import Random

import pytest

from schemas.batches import CommitRecord, PartRef
from schemas.errors import StoreError
from tests.simulator.clock import in_steps, run_virtual
from tests.simulator.shape import make_refs
from tests.simulator.store import Objects, ProcessStore
from tests.simulator.world import KilledError, World
from transforms import commit as commits
from transforms.commit_file import packed_in, parse_commit
from transforms.layout import commit_path, results_path, staging_folder

RACES = int(os.environ.get("SWITCHGEAR_RACES", "10000"))
BLOCKS = 10
ROUTES = ("ask", "sum")
(REF,) = make_refs([4])


def stage(store: ProcessStore, attempt: int, writer: str) -> commits.Draft:
    """Results of two routes, and of a first attempt failures, as this writer made them: all are different."""
    folder = staging_folder(REF.batch_id, attempt, writer)
    parts = []
    for route in ROUTES:
        data = f"{route} of {writer}".encode()
        stream = store.stage(f"{folder}/{route}.parquet")
        stream.write(data)
        store.finish(stream)
        final = results_path(route, REF.batch_id, attempt)
        parts.append(PartRef("results", route, stream.name, final, 1, len(data), sha256(data).hexdigest()))
    failures = f"failures of {writer}".encode() if attempt == 1 else b""
    if failures:
        parts.append(PartRef("failures", "", "", "", 2, len(failures), sha256(failures).hexdigest()))
    record = CommitRecord(
        batch_id=REF.batch_id,
        attempt=attempt,
        run_id="r",
        writer=writer,
        workload_sha256="w",
        committed_at="now",
        ref=REF,
        rows_in=4,
        rows_skipped=0,
        assignments=4 if attempt == 1 else 2,
        results=2,
        failures=4 - 2 * attempt,
        retryable=0,
        key_sum="0",
        parts=tuple(parts),
    )
    return commits.Draft(record, failures)


class Race:
    """One order of events."""

    def __init__(self, seed: int) -> None:
        self.world = World(Random(f"race {seed}"))
        self.objects = Objects(self.world, "/nowhere")
        self.won: list[tuple[int, str]] = []

    async def writer(self, name: str, attempt: int, after_s: float) -> None:
        """Stages, and commits after a while: what is late by then is a zombie."""
        process = self.world.spawn(name)
        store = ProcessStore(self.objects, process)
        source = self.world.source

        def work() -> commits.Commit:
            return commits.commit(store, draft)

        try:
            while attempt > 1 and commit_path(REF.batch_id, attempt - 1) not in self.objects.objects:
                await asyncio.sleep(0.01)
            draft = await in_steps(process, lambda: stage(store, attempt, name))
            await asyncio.sleep(source.uniform(0.0, after_s))
            done = await in_steps(process, work)
            if done.won:
                self.won.append((attempt, name))
        except (StoreError, OSError, KilledError):
            self.world.seen.add("failed")

    async def main(self) -> None:
        source = self.world.source
        self.world.begin_life([])
        self.world.pauses = source.choice((0.2, 0.8))
        self.world.io_faults = source.choice((0.0, 0.0, 0.05))
        work = [self.writer("first", 1, 0.3), self.writer("second", 1, 0.3), self.writer("zombie", 1, 3.0)]
        tasks = [asyncio.create_task(one) for one in work]
        further = asyncio.create_task(self.writer("third", 2, 0.3))
        await asyncio.gather(*tasks)
        if commit_path(REF.batch_id, 1) not in self.objects.objects:
            further.cancel()  # nothing was committed that it could go on from
        await asyncio.gather(further, return_exceptions=True)
        self.world.pauses = self.world.io_faults = 0.0
        if self.world.violation is not None:
            return
        last = self.world.spawn("recovery")
        await in_steps(last, lambda: commits.recover(ProcessStore(self.objects, last)))

    def hold(self) -> None:
        """What must be there when all is over."""
        objects = self.objects.objects
        assert self.world.violation is None, f"{self.world.violation}\n{self.world.story()}"
        assert len({attempt for attempt, _ in self.won}) == len(self.won), f"two winners: {self.won}"
        committed = {record["attempt"]: record for record in self.objects.commits.values()}
        visible = {path: objects[path].data.decode() for path in objects if path.startswith("results/")}
        assert visible == {
            results_path(route, REF.batch_id, attempt): f"{route} of {record['writer']}"
            for attempt, record in committed.items()
            for route in ROUTES
        }
        if 1 in committed:
            _, tail = parse_commit(objects[commit_path(REF.batch_id, 1)].data)
            assert packed_in(tail) == f"failures of {committed[1]['writer']}".encode()
        assert not [path for path in objects if path.startswith("_staging/")]
        self.world.seen |= {f"committed {attempt} by {r['writer']}" for attempt, r in committed.items()}


@pytest.mark.parametrize("block", range(BLOCKS))
def test_in_every_order_one_writer_wins_and_readers_see_its_parts_alone(block: int) -> None:
    seen: set[str] = set()
    for seed in range(block * RACES // BLOCKS, (block + 1) * RACES // BLOCKS):
        race = Race(seed)
        run_virtual(race.main())
        try:
            race.hold()
        except AssertionError as failed:
            raise AssertionError(f"race {seed}: {failed}") from failed
        seen |= race.world.seen
    winners = {f"committed 1 by {name}" for name in ("first", "second", "zombie")}
    assert seen >= winners | {"committed 2 by third", "failed", "lost acknowledgement"}
