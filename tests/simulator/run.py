"""One run of the job, as the driver does it: plan over what is there, start workers, wait for them."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pyarrow as pa

from schemas.batches import BatchRef
from schemas.errors import StoreError
from schemas.load import LoadedWorkload
from schemas.run import Manifest
from tests.simulator.caps import CENTRE_RECORD, ME, after_power_cut
from tests.simulator.clock import EPOCH, in_steps
from tests.simulator.ending import check_manifest
from tests.simulator.job import Job, run_as
from tests.simulator.ports import Record
from tests.simulator.store import ProcessStore
from tests.simulator.worker import Worker
from tests.simulator.world import Process
from transforms import commit as commits
from transforms import spend
from transforms.batch_refs import BatchRefs
from transforms.commit_index import CommitIndex
from transforms.compaction import take_stock
from transforms.due import find_due_batches
from transforms.failure_files import add_failures, forget_written
from transforms.layout import commit_path, plan_path
from transforms.plan import Plan
from transforms.plan_file import plan_bytes
from transforms.settle import settle_run


async def one_run(job: Job) -> bool:
    """A run from its plan to its last commit; whether it got to its end without a trouble."""
    job.runs += 1
    job.around.run_id = job.context.run_id
    job.asked_in[job.context.run_id] = job.question
    driver = job.around.world.spawn("driver")
    forget_written(job.objects.root)  # it is another process
    due = await run_as(driver, in_steps(driver, lambda: plan_run(job, ProcessStore(job.objects, driver))))
    if due is None:
        await driver.gone()
        return False
    ended = await _work_off(job, due)
    if job.around.shape.settles:
        store = ProcessStore(job.objects, driver)
        manifest = await run_as(driver, in_steps(driver, lambda: settle(job, store, due)))
        if manifest is not None:
            check_manifest(job, manifest)
    driver.end()
    await driver.gone()
    return ended


# ---- the driver


def plan_run(job: Job, store: ProcessStore) -> list[BatchRef]:
    """Recover, see what is due, and start the budget."""
    commits.recover(store)
    index = take_stock(store, few_files=1)
    due = find_due_batches(BatchRefs.of(job.refs), index.committed).refs
    if job.around.shape.every_cap():
        _start_caps(job, store, index)
    store.create(plan_path(job.context.run_id), plan_bytes(due, pa.schema([])))
    return list(due)


def _start_caps(job: Job, store: ProcessStore, index: CommitIndex) -> None:
    """The production code's, on real files: it reads ledgers and writes the records, one after the other.

    Records in parts are written to the objects themselves: what is between one and the next counts there.
    """
    shutil.rmtree(job.scratch, ignore_errors=True)
    for name, inode in job.around.disk.ledgers.items():
        path = job.scratch / "ledger" / name / "calls.ledger"
        path.parent.mkdir(parents=True)
        path.write_bytes(inode.cache)
    (job.scratch / "budget").mkdir(parents=True)
    (job.scratch / "budget" / "output_id").write_text(ME, encoding="ascii")
    shape, driver, more = job.around.shape, store._process, {}
    copied = job.around.records
    if shape.parts > 1:
        copied = {file: record for file, record in copied.items() if file == CENTRE_RECORD}
        _forget_the_boot(job)
        more = {
            "parts": shape.parts,
            "records": lambda _, name: job.around.stored(f"budget/{name}.json", driver),
        }
    _copy_records(job, copied)
    spend.start_caps(shape.workload(), store, index, job.context.run_id, EPOCH, **more)
    if job.around.shelf is None:  # it makes durable what it counts (test_replay.py)
        for inode in job.around.disk.ledgers.values():
            inode.synced = len(inode.cache)
    for file, record in copied.items():
        if driver.world.step(driver, "budget", f"opened {file}"):
            raise StoreError("the budget record can't be written")
        record.data = (job.scratch / file).read_bytes()
        record.booted = job.around.world.power_cuts
        if file != CENTRE_RECORD:  # whose spending is never taken back, lest a lost ledger be forgotten
            record.counted_twice = False
    for file in job.around.records.keys() - copied.keys():
        job.around.records[file].counted_twice = False


def _copy_records(job: Job, records: dict[str, Record]) -> None:
    """As the next run finds them."""
    for file, record in records.items():
        if record.data is not None:
            path = job.scratch / file
            path.parent.mkdir(parents=True, exist_ok=True)
            booted = record.booted == job.around.world.power_cuts and job.around.shelf is None
            path.write_bytes(record.data if booted else after_power_cut(file, record.data))


def _forget_the_boot(job: Job) -> None:
    """On object storage nobody knows whether a machine went down: what was leased counts as spent."""
    for cap in job.around.shape.every_cap():
        record = job.around.records[cap.file]
        if cap.file != CENTRE_RECORD and record.data is not None:
            record.data = after_power_cut(cap.file, record.data)


def settle(job: Job, store: ProcessStore, due: list[BatchRef]) -> Manifest:
    """Show what failed at a first attempt, as a run does meanwhile; add up, and write the manifest last."""
    add_failures(store, [(ref.batch_id, 1) for ref in due if ref.attempt == 1 and _failed(job, ref)])
    loaded = LoadedWorkload(job.around.shape.workload(), Path("w.toml"), b"", "in", "out")
    settled = Plan(
        run_id=job.context.run_id,
        refs=BatchRefs.of(due),
        rows_due=sum(ref.row_count for ref in due),
        rows_total=job.around.shape.rows,
        batches_total=len(job.refs),
        batches_committed=len(job.refs) - len(due),
        files=1,
        skipped_files=(),
        plan_uri="",
    )
    return settle_run(loaded, job.context, settled, (), EPOCH, now=EPOCH, store=store)


def _failed(job: Job, ref: BatchRef) -> bool:
    record = job.objects.commits.get(commit_path(ref.batch_id, ref.attempt))
    return record is not None and record["failures"] > 0


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
