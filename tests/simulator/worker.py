"""A worker process: the stages of a batch's way, over the production code's functions, without Beam."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import lru_cache
from hashlib import sha256
from typing import Any

import pyarrow as pa

from schemas.batches import BatchRef, PartRef
from schemas.errors import BatchClaimedError, BatchError
from schemas.failures import FailureClass
from schemas.outcomes import Assignment, Outcome
from tests.simulator.clock import EPOCH, in_steps
from tests.simulator.job import TROUBLES, Job
from tests.simulator.shape import SCHEMA, TYPED, route_of
from tests.simulator.store import ProcessStore
from tests.simulator.world import Process
from transforms import commit as commits
from transforms import previous
from transforms.act import finish_calls
from transforms.call.core import CallCore
from transforms.call.request import CallBatch, CallBatchResult, CallRequest
from transforms.layout import commit_path
from transforms.work import WorkBatch
from transforms.write import PartWriter

_HANDED_OUT = 3
_INPUT = pa.schema([("id", pa.large_string()), ("text", pa.large_string())])


class Worker:
    """What a worker process does with its batches: the stages of the Beam chain, without Beam."""

    def __init__(self, job: Job, process: Process) -> None:
        self.job, self.process = job, process
        self.store = ProcessStore(job.objects, process)
        shape, run = job.around.shape, job.context
        kind = PartWriter if shape.parquet else StreamWriter
        self.writer = kind(shape.workload(), run, self.store, _INPUT, _no_vectors)

    async def work(self, refs: list[BatchRef]) -> bool:
        """All batches, their calls at the same time; whether each was committed by anybody."""
        core = self.job.around.core(self.process, self._is_committed)
        if self.job.around.shape.one_by_one:
            tasks = [asyncio.create_task(self._one_by_one(core, refs))]
        else:
            tasks = [asyncio.create_task(self._guarded(core, ref)) for ref in refs]
        if self.job.around.shape.cancels and not self.job.healthy:
            tasks.append(asyncio.create_task(self._cancel(core)))
        done = await asyncio.gather(*tasks)
        await core.close(1.0)
        core._ledgers.close()
        return all(done)

    def _is_committed(self, batch_id: str, attempt: int) -> bool:
        return self.store.exists(commit_path(batch_id, attempt))

    async def _one_by_one(self, core: CallCore, refs: list[BatchRef]) -> bool:
        return all([await self._guarded(core, ref) for ref in refs])

    async def _cancel(self, core: CallCore) -> bool:
        source = self.job.around.source
        await asyncio.sleep(source.uniform(0.0, 2.0))
        self.process.world.seen.add("cancelled")
        self.process.world.note(self.process, "is cancelled")
        await core.close(source.choice((0.0, 0.05, 5.0)))
        return True

    async def _guarded(self, core: CallCore, ref: BatchRef) -> bool:
        try:
            return await self._retried_while_claimed(core, ref)
        except TROUBLES as error:
            self.process.world.note(
                self.process, f"batch {ref.batch_id[:6]}: {type(error).__name__}: {error}"
            )
            return False

    async def _retried_while_claimed(self, core: CallCore, ref: BatchRef) -> bool:
        """An engine that hands a batch out twice does so again and again."""
        for _ in range(_HANDED_OUT):
            try:
                return await self._claimed(core, ref)
            except BatchClaimedError:
                await asyncio.sleep(self.job.around.source.uniform(0.0, 2.0))
                await self.process.thaw()
        return await self._claimed(core, ref)

    async def _claimed(self, core: CallCore, ref: BatchRef) -> bool:
        """Keep the batch for this process from before it is looked at until it is committed or given up."""
        if self.job.around.shelf is not None:
            return await self._batch(core, ref)  # the claim stands in the ledger
        claims = self.job.claims
        holder = claims.get(ref.batch_id)
        if self.job.around.shape.claims and holder is not None and holder.alive:
            self.process.world.seen.add("claimed")
            raise BatchClaimedError(f"batch {ref.batch_id[:6]} is {holder.name}'s")
        claims[ref.batch_id] = self.process
        try:
            return await self._batch(core, ref)
        finally:
            if claims.get(ref.batch_id) is self.process:
                del claims[ref.batch_id]

    async def _batch(self, core: CallCore, ref: BatchRef) -> bool:
        batch = await in_steps(self.process, lambda: self._read(ref))
        if batch is None:
            return True
        asked = self._ask(batch)
        if asked.requests:
            finish_calls(batch, asked, await _of_its_own(core.run(asked)))
        if not self.job.around.shape.claims and self.job.around.source.random() < 0.6:
            await asyncio.sleep(self.job.around.source.uniform(0.0, 5.0))  # a zombie in the making
        await self.process.thaw()
        return await in_steps(self.process, lambda: self._commit(batch))

    def _read(self, ref: BatchRef) -> WorkBatch | None:
        if self.store.exists(commit_path(ref.batch_id, ref.attempt)):
            return None
        before = previous.load_previous(self.store, ref)
        pairs = {(row, route_of(row)) for row in range(ref.first_row, ref.first_row + ref.row_count)}
        if before is not None:
            pairs = set(before.retry)
        return WorkBatch(
            ref=ref,
            table=_table(ref.first_row, ref.row_count),
            digests=[None] * ref.row_count,
            rows_skipped=0,
            todo=[],
            outcomes=[
                self._without_text(ref, row, route) for row, route in sorted(pairs) if self._mute(ref, row)
            ],
            carried=None if before is None else before.carried,
            prior={} if before is None else before.retry,
            expected=frozenset(pairs),
        )

    def _mute(self, ref: BatchRef, row: int) -> bool:
        return (ref.batch_id, row) in self.job.around.shape.no_text

    def _without_text(self, ref: BatchRef, row: int, route: str) -> Outcome:
        return Outcome(self._assignment(ref, row, route), FailureClass.NULL_TEXT, "the text is null")

    def _assignment(self, ref: BatchRef, row: int, route: str) -> Assignment:
        return Assignment(row, route, "TRUE", self.job.around.shape.chain, f"doc-{row}")

    def _ask(self, batch: WorkBatch) -> CallBatch:
        done = {(o.assignment.row, o.assignment.route) for o in batch.outcomes}
        shape = self.job.around.shape
        requests = [
            CallRequest(
                assignment=self._assignment(batch.ref, row, route),
                system="be brief",
                prompt=f"{shape.text_of(batch.ref.batch_id, row)}; question {self.job.question}",
                json_schema=SCHEMA if route == TYPED else None,
                repair=shape.repairs,
                document_sha256="d" * 64,
                prompt_sha256="p" * 64,
            )
            for row, route in sorted(batch.expected - done)
        ]
        return CallBatch(batch.ref.batch_id, batch.ref.attempt, tuple(requests))

    def _commit(self, batch: WorkBatch) -> bool:
        name = f"{self.job.around.source.getrandbits(64):016x}"
        written = self.writer.write(batch, name)
        now = EPOCH.replace(microsecond=self.job.runs)
        record = commits.make_record(batch, written.parts, self.job.context, name, now)
        done = commits.commit(self.store, commits.Draft(record, written.failures))
        self.process.world.seen.add("committed" if done.won else "lost the race")
        self.process.check()
        return True


async def _of_its_own(work: Coroutine[Any, Any, CallBatchResult]) -> CallBatchResult:
    """The result of a task that the engine may cancel without cancelling who waits for it."""
    task = asyncio.create_task(work)
    try:
        return await task
    except asyncio.CancelledError:
        if task.cancelled():
            raise BatchError("the engine was closed") from None
        raise


@lru_cache(1000)
def _table(first: int, count: int) -> pa.Table:
    rows = range(first, first + count)
    return pa.table({"id": [f"doc-{r}" for r in rows], "text": [f"text {r}" for r in rows]}, schema=_INPUT)


def _no_vectors(route: str) -> Any:
    raise AssertionError(f"route {route!r} is no embed route")


class StreamWriter(PartWriter):
    """Writes parts in Arrow's stream format: the same rows in a quarter of the time."""

    __slots__ = ()

    def _stage(self, table: pa.Table, route: str, staged: str, final: str) -> PartRef:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        data = sink.getvalue().to_pybytes()
        stream = self.store.stage(staged)
        stream.write(data)
        self.store.finish(stream)
        return PartRef("results", route, staged, final, table.num_rows, len(data), sha256(data).hexdigest())
