"""One run of the job, as the driver does it: plan over what is there, start workers, wait for them."""

from __future__ import annotations

import asyncio
import shutil

import orjson

from schemas.batches import BatchRef, CommitRecord
from schemas.errors import StoreError
from tests.simulator.clock import in_steps
from tests.simulator.job import Job, run_as
from tests.simulator.store import ProcessStore
from tests.simulator.worker import Worker
from tests.simulator.world import Process
from transforms import commit as commits
from transforms import plan, spend
from transforms.layout import newest_commits, read_commit


async def one_run(job: Job) -> bool:
    """A run from its plan to its last commit; whether it got to its end without a trouble."""
    job.runs += 1
    job.asked_in[job.context.run_id] = job.question
    driver = job.around.world.spawn("driver")
    due = await run_as(driver, in_steps(driver, lambda: plan_run(job, ProcessStore(job.objects, driver))))
    if due is None:
        await driver.gone()
        return False
    ended = await _work_off(job, due)
    driver.end()
    await driver.gone()
    return ended


# ---- the driver


def plan_run(job: Job, store: ProcessStore) -> list[BatchRef]:
    """Recover, see what is due, and start the budget."""
    commits.recover(store)
    records = {b: read_commit(store, b, attempt) for b, attempt in newest_commits(store).items()}
    found = [plan._due(ref, records.get(ref.batch_id), ()) for ref in job.refs]
    due = [ref for ref in found if ref is not None]
    if job.around.shape.cap is not None:
        _start_budget(job, store, records, due)
    return due


def _start_budget(
    job: Job, store: ProcessStore, records: dict[str, CommitRecord], due: list[BatchRef]
) -> None:
    """The production code's, on real files: it reads ledgers and writes the record."""
    code = store._process.world.step(store._process, "budget", "opened")
    if code:
        raise StoreError("the budget record can't be written")
    shutil.rmtree(job.scratch, ignore_errors=True)
    for name, inode in job.around.disk.ledgers.items():
        path = job.scratch / "ledger" / name / "calls.ledger"
        path.parent.mkdir(parents=True)
        path.write_bytes(inode.cache)
    record = job.scratch / "budget" / "record.json"
    record.parent.mkdir(parents=True)
    if job.around.record.data is not None:
        before = orjson.loads(job.around.record.data)
        if job.around.world.power_cuts > job.booted:
            before["boot_id"] = "the boot before"
        record.write_bytes(orjson.dumps(before))
    spend.start_budget(job.around.shape.workload(), store, records, due)
    job.booted = job.around.world.power_cuts
    job.around.record.data = record.read_bytes()
    job.around.record.counted_twice = False


# ---- the workers


async def _work_off(job: Job, due: list[BatchRef]) -> bool:
    shape, world = job.around.shape, job.around.world
    groups: list[list[BatchRef]] = [[] for _ in range(shape.workers)]
    for index, ref in enumerate(due):
        groups[index % shape.workers].append(ref)
        if shape.overlap and shape.workers > 1:
            groups[(index + 1) % shape.workers].append(ref)
    running = []
    ended = []
    for number, group in enumerate(groups):
        if not group:
            continue
        process = world.spawn(f"worker{number}")
        world.working += 1
        work = asyncio.ensure_future(_worker(job, process, group))
        running.append(work)
        if not shape.side_by_side:
            await asyncio.wait([work])
    for work in running:
        ended.append(await work)
    return all(ended)


async def _worker(job: Job, process: Process, refs: list[BatchRef]) -> bool:
    """A worker process from its start to its end."""
    try:
        done = await run_as(process, Worker(job, process).work(refs))
        if done is None:
            job.around.world.lost_workers += 1
        return bool(done)
    finally:
        job.around.world.working -= 1
        process.end()
        await process.gone()
