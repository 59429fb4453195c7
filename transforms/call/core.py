"""The engine's core on an event loop: batches, their workers, and an orderly end. No I/O of its own."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress

from schemas.errors import BatchClaimedError, BatchError, LedgerError, StoreError
from schemas.outcomes import Outcome
from transforms.call.book import BatchBook
from transforms.call.caching import by_shared_prefix
from transforms.call.cancelling import to_its_end
from transforms.call.desk import CANCELLED, Desk
from transforms.call.document import document_outcome
from transforms.call.ports import LedgerLog, LedgerStore
from transforms.call.request import CallBatch, CallBatchResult, CallRequest

_log = logging.getLogger(__name__)


class CallCore:
    """Works on batches; every method runs on the one event loop.

    A batch has at most as many workers per route and first backend as that backend takes calls at a
    time, so that memory does not grow with the number of rows; where a lane is waited for, routes
    share it, and of a route the earlier batches go first.
    """

    def __init__(self, desk: Desk, ledgers: LedgerStore, mode: str) -> None:
        self.desk = desk
        self._ledgers = ledgers
        self._mode = mode
        self._batches: set[asyncio.Task[CallBatchResult]] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._submitted = 0

    async def run(self, batch: CallBatch) -> CallBatchResult:
        """The batch's outcomes, once the ledger is durable.

        Raises:
            BatchError: claimed by another worker, or the engine is closing.
            LedgerError: the ledger can't be opened or written; calls that were in flight are in it as
                far as it could be written.
        """
        if self.desk.closing:
            raise BatchError(CANCELLED)
        self._submitted += 1
        priority = self._submitted
        task = asyncio.current_task()
        assert task is not None
        self._batches.add(task)
        try:
            return await self._run(batch, priority)
        finally:
            self._batches.discard(task)
            if not self._batches:
                await self._release_unused()

    async def _run(self, batch: CallBatch, priority: int) -> CallBatchResult:
        _check_distinct(batch)
        log = await self._ledgers.open(batch.batch_id)
        try:
            await self._refuse_committed(batch)
            book = BatchBook(log, batch, self._mode, self.desk.clock)
            if self.desk.outbox is not None:
                book.outbox = await asyncio.to_thread(self.desk.outbox.open, batch.batch_id)
            outcomes: list[Outcome | None] = [None] * len(batch.requests)
            await self._work(batch, book, priority, outcomes)
            book.end()
            await book.sync()
            if book.outbox is not None:  # only now: who was taken over leaves no request to be sent
                await asyncio.to_thread(book.outbox.seal)
        finally:
            # engines are closed with a grace; what a batch has recorded is sealed even when that is over
            await to_its_end(self._leave(batch, log))
        return CallBatchResult([outcome for outcome in outcomes if outcome is not None], book.ambiguous)

    async def _leave(self, batch: CallBatch, log: LedgerLog) -> None:
        """Let go of a batch's ledger once all that was recorded is durable."""
        with suppress(LedgerError):
            await log.sync()  # before others are waited for, who would do so in the ledger's own time
        if self.desk.shares is not None:
            await self.desk.shares.leave(log)
        await self.desk.settlements.leave(log)
        if self.desk.observer is not None:
            self.desk.observer.batch_ended(batch.batch_id, batch.attempt)
        await log.close()

    async def _refuse_committed(self, batch: CallBatch) -> None:
        """Another process may have committed the attempt before this one had the ledger."""
        is_committed = self.desk.is_committed
        if is_committed is not None and await asyncio.to_thread(is_committed, batch.batch_id, batch.attempt):
            raise BatchClaimedError(
                f"attempt {batch.attempt} of batch {batch.batch_id} was committed by another process"
            )

    async def _work(
        self, batch: CallBatch, book: BatchBook, priority: int, outcomes: list[Outcome | None]
    ) -> None:
        errors: list[BaseException] = []
        workers: list[asyncio.Task[None]] = []
        for (name, _), queue in _by_first_backend(batch).items():
            source = iter(_recorded_first(queue, book))
            for _ in range(min(len(queue), self.desk.sites[name].lane.limit)):
                worker = asyncio.create_task(self._worker(source, book, priority, outcomes, errors))
                self._workers.add(worker)
                worker.add_done_callback(self._workers.discard)
                workers.append(worker)
        try:
            await asyncio.gather(*workers, return_exceptions=True)
        except asyncio.CancelledError:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            raise
        if errors:
            raise errors[0]
        if self.desk.closing and None in outcomes:
            raise BatchError(CANCELLED)

    async def _worker(
        self,
        source: Iterator[tuple[int, CallRequest]],
        book: BatchBook,
        priority: int,
        outcomes: list[Outcome | None],
        errors: list[BaseException],
    ) -> None:
        for index, request in source:
            if book.stopped or self.desk.closing:
                return
            try:
                outcomes[index] = await document_outcome(self.desk, book, request, priority)
            except Exception as error:
                errors.append(error)
                book.stopped = (
                    True  # calls that others have in flight are paid: they end, and no new one starts
                )
                return

    async def close(self, grace_s: float) -> None:
        """Ends all batches: what waits is cancelled at once, what is in flight has `grace_s` to end.

        Calls that don't end in time are recorded as unknown (cause `cancelled`).
        """
        self.desk.closing = True
        for worker in self._workers - self.desk.sending:
            worker.cancel()
        batches = set(self._batches)
        if batches:
            _, late = await asyncio.wait(batches, timeout=grace_s)
            for batch in late:
                batch.cancel()
            await asyncio.gather(*batches, return_exceptions=True)
        await self._release_unused()

    async def _release_unused(self) -> None:
        try:
            await self.desk.budget.release_unused()
            await self.desk.caps.release_unused()
        except StoreError as error:  # what is held back is only unused; the batches are what counts
            _log.warning("unused budget was not given back: %s", error)


def _check_distinct(batch: CallBatch) -> None:
    keys = {(request.assignment.row, request.assignment.route) for request in batch.requests}
    if len(keys) != len(batch.requests):
        raise BatchError(f"batch {batch.batch_id} has a (row, route) pair twice: a defect of Switchgear")


def _recorded_first(queue: list[tuple[int, CallRequest]], book: BatchBook) -> list[tuple[int, CallRequest]]:
    """Replays before calls, so that identical requests find the answers that are there already."""
    return sorted(queue, key=lambda item: not book.recorded(item[1].assignment.row, item[1].assignment.route))


def _by_first_backend(batch: CallBatch) -> dict[tuple[str, str], list[tuple[int, CallRequest]]]:
    """Queues by backend and route."""
    queues: dict[tuple[str, str], list[tuple[int, CallRequest]]] = defaultdict(list)
    for index, request in enumerate(batch.requests):
        queues[request.assignment.chain[0], request.assignment.route].append((index, request))
    return {key: by_shared_prefix(queue) for key, queue in queues.items()}
