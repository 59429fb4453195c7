"""Defects of the ledger: what is recorded, when, and what is made of it after a crash."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import orjson

from tests.simulator.disk import SimulatedLedgers
from tests.simulator.planting import defect, swap
from transforms.call import book as book_module
from transforms.call import ledger, replay
from transforms.call.book import BatchBook
from transforms.call.ledger_file import LocalLedgerFile, LocalLedgers
from transforms.call.question import Question

PAID_ONCE = "an answered row is never sent again"
RECORDED = "no request leaves without a record"
CHARGES = "every charge is in the ledger"
LISTED = "every ambiguous call is listed"
SUMS = "the cost column adds up"
FINISHES = "the same command finishes the job"
DURABLE = "what is committed is durable in the ledger"
CAP = "spend never passes the cap"


@defect("ledger", RECORDED)
def a_call_is_recorded_after_it_was_sent(replaced: ExitStack) -> None:
    def late(self: BatchBook, frame: dict[str, Any]) -> Any:
        if frame["kind"] == "intended":
            asyncio.get_running_loop().call_later(0.001, _append_if_open, before, self, frame)
            return 0, 0
        return before(self, frame)

    before = swap(replaced, BatchBook, "_append", late)


def _append_if_open(append: Any, book: BatchBook, frame: dict[str, Any]) -> None:
    with suppress(BaseException):  # the process or the ledger is gone
        append(book, frame)


@defect("ledger", CHARGES, CAP)
def an_answer_is_used_and_never_written(replaced: ExitStack) -> None:
    def append(self: BatchBook, frame: dict[str, Any]) -> Any:
        return (0, 0) if frame["kind"] == "answered" else before(self, frame)

    before = swap(replaced, BatchBook, "_append", append)


@defect("ledger", PAID_ONCE, CHARGES, CAP)
def the_settlement_is_written_before_the_answer(replaced: ExitStack) -> None:
    """Two frames instead of one: between them a call is settled whose answer nobody has."""

    def append(self: BatchBook, frame: dict[str, Any]) -> Any:
        if frame["kind"] == "answered":
            before(self, {**frame, "body": ""})
            return before(self, {"kind": "answer", "id": frame["id"], "body": frame["body"]})
        return before(self, frame)

    def apply(state: Any, frame: dict[str, Any], batch_id: str) -> None:
        if frame["kind"] == "answer":
            state.calls[frame["id"]].final["body"] = frame["body"]
        else:
            apply_before(state, frame, batch_id)

    before = swap(replaced, BatchBook, "_append", append)
    apply_before = swap(replaced, ledger, "_apply", apply)
    swap(replaced, book_module, "_places_of_ends", lambda *_: ())


@defect("ledger", PAID_ONCE, FINISHES, CHARGES, RECORDED, DURABLE)
def a_torn_tail_is_not_cut(replaced: ExitStack) -> None:
    swap(replaced, LocalLedgerFile, "start", lambda self, length: None)


@defect("ledger", FINISHES, CHARGES, PAID_ONCE, SUMS, RECORDED, DURABLE)
def damaged_frames_are_believed(replaced: ExitStack) -> None:
    """Checksums are not looked at, and what can't be parsed is passed over."""

    def scan(data: bytes) -> tuple[list[dict[str, Any]], int]:
        frames, position = [], 0
        while position + 8 <= len(data):
            end = position + 8 + int.from_bytes(data[position : position + 4], "little")
            if end > len(data):
                break
            with suppress(orjson.JSONDecodeError):
                frames.append(orjson.loads(data[position + 8 : end]))
            position = end
        return frames, position

    swap(replaced, book_module, "scan", scan)


@defect("ledger", CHARGES, FINISHES, PAID_ONCE, RECORDED)
def a_frame_that_was_written_in_part_counts_as_written(replaced: ExitStack) -> None:
    def append(self: LocalLedgerFile, data: bytes) -> None:
        self._group.disk.write(self._fd, data)
        self.written += 1
        self._group.touched(self)

    swap(replaced, LocalLedgerFile, "append", append)


@defect("ledger", LISTED, SUMS, CHARGES)
def calls_that_were_open_at_a_crash_are_forgotten(replaced: ExitStack) -> None:
    swap(replaced, ledger.LedgerState, "open_calls", lambda self: [])


@defect("ledger", LISTED)
def ambiguous_calls_are_dropped_from_the_list(replaced: ExitStack) -> None:
    swap(replaced, BatchBook, "_note_ambiguous", lambda self, call: None)


@defect("ledger", CHARGES, SUMS, "the budget is refused only when it is used up")
def a_call_without_a_known_end_is_recorded_as_free(replaced: ExitStack) -> None:
    def unknown(self: BatchBook, call: Any, cause: str, message: str, body: bytes = b"") -> None:
        call.end = "failed"
        self._append(
            {"kind": "failed", "id": call.id, "class": "connection", "message": message, "at": self._now()}
        )

    swap(replaced, BatchBook, "unknown", unknown)


@defect("ledger", DURABLE)
def answers_are_handed_out_before_they_are_durable(replaced: ExitStack) -> None:
    async def sync(self: BatchBook) -> None:
        pass

    swap(replaced, BatchBook, "sync", sync)


@defect("ledger", DURABLE)
def a_sync_is_acknowledged_before_it_is_done(replaced: ExitStack) -> None:
    def wait_for(self: SimulatedLedgers, file: Any, loop: Any, done: Any) -> bool:
        self.touched(file)
        return False

    swap(replaced, SimulatedLedgers, "wait_for", wait_for)
    swap(replaced, LocalLedgers, "wait_for", wait_for)


@defect("ledger", DURABLE, "only durable answers are shared")
def what_a_killed_process_left_unsynced_is_relied_on(replaced: ExitStack) -> None:
    """Found by the simulator."""

    def opened(self: LocalLedgerFile, *arguments: Any) -> None:
        before(self, *arguments)
        self.written = 0

    before = swap(replaced, LocalLedgerFile, "__init__", opened)


@defect("claim", "one process at a time works on a batch", PAID_ONCE, RECORDED, FINISHES, CHARGES)
def a_claim_does_not_keep_others_out(replaced: ExitStack) -> None:
    swap(replaced, SimulatedLedgers, "may_hold", staticmethod(lambda inode: True))


@defect("replay", PAID_ONCE, CAP)
def a_replay_ignores_what_the_ledger_has(replaced: ExitStack) -> None:
    swap(replaced, BatchBook, "recorded", lambda self, row, route: [])


@defect("replay", SUMS, LISTED, FINISHES)
def a_replay_counts_calls_of_earlier_attempts_again(replaced: ExitStack) -> None:
    def opened(self: BatchBook, log: Any, batch: Any, *rest: Any) -> None:
        before(self, _Rewritten(log, batch.attempt), batch, *rest)

    before = swap(replaced, BatchBook, "__init__", opened)


class _Rewritten:
    """A ledger whose calls all seem to be of one attempt."""

    def __init__(self, log: Any, attempt: int) -> None:
        self._log, self._attempt = log, attempt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    @property
    def content(self) -> bytes:
        frames, _ = ledger.scan(self._log.content)
        for frame in frames:
            if frame["kind"] == "intended":
                frame["attempt"] = self._attempt
        return b"".join(map(ledger.encode_frame, frames))


@defect("replay", "an answer belongs to its question")
def a_replay_ignores_what_was_asked(replaced: ExitStack) -> None:
    """The answer to an earlier question is taken for that to the present one."""

    def recorded_answer(question: Question, call: Any) -> Any:
        site = question.desk.sites[call.backend]
        encoded = question.encode(site)
        kept = replace(encoded, sha256=call.request_sha256)  # type: ignore[type-var]
        question._encoded = (site, question.request, kept)
        try:
            return before(question, call)
        finally:
            question._encoded = None

    before = swap(replaced, replay, "_recorded_answer", recorded_answer)


@defect("ledger", FINISHES, CHARGES, PAID_ONCE, RECORDED)
def ids_of_calls_start_anew_in_every_process(replaced: ExitStack) -> None:
    swap(replaced, ledger.LedgerState, "next_id", property(lambda self: 1))
