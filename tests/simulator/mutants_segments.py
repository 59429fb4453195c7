"""Defects of ledgers and records on object storage."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from schemas.errors import LedgerError
from tests.simulator.planting import defect, swap
from transforms import lease as leases
from transforms.call import core
from transforms.call.segments import SegmentLedgers, SegmentLog
from transforms.call.stored_record import StoredRecord
from transforms.lease import Lease

ONE = "one process at a time works on a batch"
DURABLE = "what is committed is durable in the ledger"
WINDOW = "a crash loses at most the window"
SHARED = "only durable answers are shared"
SPENT = "spend never passes the cap"
PAID_ONCE = "an answered row is never sent again"
SUMS = "the cost column adds up"
CHARGES = "every charge is in the ledger"


@defect("segments", ONE, SUMS, PAID_ONCE, CHARGES)
def a_batch_is_taken_from_a_holder_that_lives(replaced: ExitStack) -> None:
    swap(replaced, leases, "has_ended", lambda *_: True)


@defect("segments", WINDOW)
def calls_are_sent_whatever_is_unsealed(replaced: ExitStack) -> None:
    async def room(self: SegmentLog) -> None:
        pass

    def due(self: SegmentLedgers) -> list[SegmentLog]:
        late = self._monotonic() - self._seal_s
        return [log for log in before(self) if log.is_urgent or log.pending_since <= late]

    swap(replaced, SegmentLog, "room", room)
    before = swap(replaced, SegmentLedgers, "_due", due)


@defect("segments", DURABLE, SUMS, CHARGES)
def a_batch_does_not_wait_until_it_is_sealed(replaced: ExitStack) -> None:
    async def sync(self: SegmentLog) -> None:
        pass

    swap(replaced, SegmentLog, "sync", sync)


@defect("segments", SHARED)
def answers_are_shared_before_they_are_sealed(replaced: ExitStack) -> None:
    async def sealed(self: SegmentLog) -> None:
        pass

    swap(replaced, SegmentLog, "sealed", sealed)


@defect("segments", ONE, DURABLE, SHARED, CHARGES)
def a_name_that_is_taken_counts_as_sealed(replaced: ExitStack) -> None:
    """The fence is ignored: who was taken over believes that what it seals is there."""

    def sealed(self: SegmentLedgers, log: SegmentLog, finished: Any, *rest: Any) -> None:
        before(self, log, finished if finished.exception() else _Created(), *rest)

    before = swap(replaced, SegmentLedgers, "_sealed", sealed)
    swap(replaced, Lease, "is_lost", property(lambda self: False))


class _Created:
    """An upload that went well."""

    def exception(self) -> None:
        return None

    def result(self) -> bool:
        return True


@defect("segments", DURABLE, PAID_ONCE, SUMS, CHARGES, SHARED, WINDOW)
def a_segment_that_could_not_be_sealed_is_forgotten(replaced: ExitStack) -> None:
    """The ledger goes on behind it."""

    def fail(self: SegmentLedgers, log: SegmentLog, why: str) -> LedgerError:
        log.is_sealing = False
        log.sealed_records = log.appended
        self._tell(log)
        return LedgerError(why)

    swap(replaced, SegmentLedgers, "fail", fail)


@defect("segments", "an orderly end loses nothing")
def a_closing_engine_does_not_wait_for_what_it_seals(replaced: ExitStack) -> None:
    """Found by the simulator: a cancellation struck where a batch let go of its ledger."""

    async def leave(work: Any) -> None:
        await work

    swap(replaced, core, "to_its_end", leave)


@defect("segments", "a change that was made is in the record", SPENT)
def a_record_that_others_have_changed_counts_as_replaced(replaced: ExitStack) -> None:
    def replace_now(self: StoredRecord, content: bytes, generation: str | None) -> bool:
        before(self, content, generation)
        return True

    before = swap(replaced, StoredRecord, "_replace", replace_now)
