"""One batch's ledger while the batch is worked on: what is known already, and what is added."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from decimal import Decimal

from schemas.batches import AmbiguousCall
from schemas.errors import LedgerError
from schemas.outcomes import ZERO, Charge
from transforms.call.ledger import (
    Frame,
    LedgerState,
    RecordedCall,
    charge_to,
    checksum_of,
    encode_frame,
    fold,
    header,
    places,
    scan,
    usage_to,
)
from transforms.call.ports import BoundedLog, Clock, HeldRequest, LedgerLog, OutboxBatch
from transforms.call.request import CallBatch
from transforms.call.share import Place, SharedAnswer
from transforms.call.site import Site
from transforms.call.wire import Answer, CallFailure, EncodedRequest, WireResponse

_LONGEST_GARBLED = 1 << 16  # of a body that is not JSON, to look at; nothing is parsed from it again


class BatchBook:
    """Records the calls of one batch and attempt.

    Opening it cuts a torn tail, refuses a ledger of the other mode, and ends every call that was in
    flight when its process died as `unknown` (cause `crash`), so that each is counted once.
    With `behind_ended` calls are recorded for the first attempt from the batch's on that has not ended.

    Raises:
        LedgerError: the ledger can't be read or written, or belongs to a rehearsal (or to a real run).
    """

    def __init__(
        self, log: LedgerLog, batch: CallBatch, mode: str, clock: Clock, *, behind_ended: bool = False
    ) -> None:
        self._log = log
        self.bounded = log if isinstance(log, BoundedLog) else None
        self._clock = clock
        self._batch_id = batch.batch_id
        self._attempt = batch.attempt
        self._rehearsal = mode == "rehearsal"
        self.ambiguous: list[AmbiguousCall] = []
        self.outbox: OutboxBatch | None = None  # None: no backend of the workload is in batch mode
        self.stopped = False  # set when the batch can't go on: nothing new is sent for it
        frames, length = scan(log.content)
        state = fold(frames, batch.batch_id)
        if state.mode not in (None, mode):
            raise LedgerError(
                f"batch {batch.batch_id} has a ledger of a {_NAMES[state.mode or '']}, and this is a "
                f"{_NAMES[mode]}: the two don't mix; use another output folder, or delete this one"
            )
        for call, place in _places_of_ends(state, log.content, frames):
            call.place = place
        log.start(length)
        self._position = length
        if state.mode is None:
            self._append(header(batch.batch_id, mode))
        while behind_ended and self._attempt in state.ended:
            self._attempt += 1
        self.has_ended = self._attempt in state.ended
        self._next_id = state.next_id
        for call in state.open_calls():
            call.end, call.final = "unknown", self._unknown_frame(call.id, "crash", "the process died first")
            self._append(call.final)
        self._recorded: dict[tuple[int, str], list[RecordedCall]] = defaultdict(list)
        self.collected = {(c.via, c.row, c.route): c for c in state.calls.values() if c.via is not None}
        for call in state.calls.values():
            if call.attempt == self._attempt:
                self._recorded[call.row, call.route].append(call)
                if call.end == "unknown":
                    self._note_ambiguous(call)

    def recorded(self, row: int, route: str) -> list[RecordedCall]:
        """The calls of this attempt that the ledger had for an assignment when it was opened."""
        return self._recorded.get((row, route), [])

    def amount_at_stake(self, worst: Decimal | None) -> Decimal:
        """What an ambiguous call may have cost: its worst case, and nothing in a rehearsal."""
        return ZERO if self._rehearsal or worst is None else worst

    def intend(
        self, row: int, route: str, site: Site, encoded: EncodedRequest, call: int, worst: Decimal | None
    ) -> RecordedCall:
        """Records that a call is about to be sent; LedgerError when that is not possible: then don't."""
        record = RecordedCall(
            id=self._next_id,
            attempt=self._attempt,
            row=row,
            route=route,
            backend=site.name,
            call=call,
            request_sha256=encoded.sha256,
            worst=worst,
            sent_at=self._now(),
            worst_tokens=site.worst_tokens(encoded),
        )
        self._append_intended(record)
        return record

    def collect(self, via: str, request: HeldRequest, sent_at: str) -> RecordedCall:
        """The call of a request that went out with a provider batch, for its end to be recorded.

        `collected` has it from here on, so that collecting twice records nothing twice. `sent_at` is when
        the provider's batch was submitted; `request.body` is not looked at.
        """
        record = self.collected.get((via, request.row, request.route))
        if record is None:
            record = RecordedCall(
                id=self._next_id,
                attempt=self._attempt,
                row=request.row,
                route=request.route,
                backend=request.backend,
                call=1,
                request_sha256=request.request_sha256,
                worst=request.worst,
                worst_tokens=request.worst_tokens,
                sent_at=sent_at,
                via=via,
            )
            self._append_intended(record)
            self.collected[via, request.row, request.route] = record
        return record

    def _append_intended(self, record: RecordedCall) -> None:
        self._next_id += 1
        frame: Frame = {
            "kind": "intended",
            "id": record.id,
            "attempt": record.attempt,
            "row": record.row,
            "route": record.route,
            "backend": record.backend,
            "call": record.call,
            "request": record.request_sha256,
            "worst": None if record.worst is None else str(record.worst),
            "tokens": record.worst_tokens,
            "at": record.sent_at,
        }
        if record.via is not None:
            frame["via"] = record.via
        self._append(frame)

    @property
    def log(self) -> LedgerLog:
        """The ledger itself."""
        return self._log

    @property
    def batch_id(self) -> str:
        """The batch that is worked on."""
        return self._batch_id

    @property
    def attempt(self) -> int:
        """The attempt that is worked on."""
        return self._attempt

    def place(self, call: RecordedCall) -> Place:
        """Where the end of a call stands."""
        return Place(self._batch_id, *call.place)

    def shared(
        self, row: int, route: str, site: Site, request_sha256: str, told: SharedAnswer
    ) -> RecordedCall:
        """Records that a row takes over another row's answer to the same request; nothing was sent."""
        answered = told.frame
        frame: Frame = {name: answered[name] for name in _OF_AN_ANSWER}
        frame.update(
            {
                "kind": "shared",
                "id": self._next_id,
                "attempt": self._attempt,
                "row": row,
                "route": route,
                "backend": site.name,
                "call": 0,
                "request": request_sha256,
                "worst": None,
                "from": asdict(told.origin),
            }
        )
        self._next_id += 1
        self._append(frame)
        return RecordedCall(
            id=frame["id"],
            attempt=self._attempt,
            row=row,
            route=route,
            backend=site.name,
            call=0,
            request_sha256=request_sha256,
            worst=None,
            sent_at=frame["at"],
            end="shared",
            final=frame,
        )

    def answered(
        self,
        call: RecordedCall,
        response: WireResponse,
        answer: Answer,
        charge: Charge,
        latency_ms: float,
        document_id: str | None = None,
    ) -> None:
        """Records answer and settlement in one frame."""
        call.end = "answered"
        call.final = {
            "kind": "answered",
            "id": call.id,
            "status": response.status,
            "headers": {name: _printable(value) for name, value in response.headers.items()},
            "body": response.body.decode(),  # it was parsed as JSON, so it is UTF-8
            "usage": usage_to(answer.usage),
            "charge": charge_to(charge),
            "latency_ms": latency_ms,
            "of": [call.row, call.route, document_id],
            "at": self._now(),
        }
        call.place = self._append(call.final)

    def failed(self, call: RecordedCall, failure: CallFailure) -> None:
        """Records a definite end for which nothing is billed."""
        call.end = "failed"
        self._append(
            {
                "kind": "failed",
                "id": call.id,
                "class": failure.failure.value,
                "message": failure.message,
                "at": self._now(),
            }
        )

    def unknown(self, call: RecordedCall, cause: str, message: str, body: bytes = b"") -> None:
        """Records that nobody knows whether the call was billed."""
        call.end = "unknown"
        frame = self._unknown_frame(call.id, cause, message)
        if body:
            frame["body"] = body[:_LONGEST_GARBLED].decode(errors="replace")
        call.final = frame
        self._note_ambiguous(call)
        self._append(frame)

    def end(self) -> None:
        """Records that no further call of this attempt is made, by whoever has the batch from here on.

        Once this is durable the attempt may be committed, even by a process that stands still first and is
        taken over: who takes over makes no call that the commit record would not know of. And who was taken
        over before can't record this, and does not commit. A local ledger is held until the commit.
        """
        if self.bounded is not None and not self.has_ended:
            self.has_ended = True
            self._append({"kind": "ended", "attempt": self._attempt})

    async def sync(self) -> None:
        """Returns when all of it is durable."""
        await self._log.sync()

    async def close(self) -> None:
        """Lets go of the ledger."""
        await self._log.close()

    def _unknown_frame(self, call_id: int, cause: str, message: str) -> Frame:
        return {"kind": "unknown", "id": call_id, "cause": cause, "message": message, "at": self._now()}

    def _note_ambiguous(self, call: RecordedCall) -> None:
        worst = None if call.worst is None else str(self.amount_at_stake(call.worst))
        self.ambiguous.append(
            AmbiguousCall(
                batch_id=self._batch_id,
                attempt=self._attempt,
                row=call.row,
                route=call.route,
                backend=call.backend,
                cause=call.final["cause"],
                worst_amount=worst,
                sent_at=call.sent_at,
                worst_tokens=call.worst_tokens,
            )
        )

    def _append(self, frame: Frame) -> tuple[int, int]:
        """Writes a frame; where it stands, and its checksum."""
        data = encode_frame(frame)
        self._log.append(data)
        offset = self._position
        self._position += len(data)
        return offset, checksum_of(data)

    def _now(self) -> str:
        return self._clock.now().isoformat()


def _places_of_ends(
    state: LedgerState, content: bytes, frames: Sequence[Frame]
) -> Iterator[tuple[RecordedCall, tuple[int, int]]]:
    for frame, place in zip(frames, places(content, len(frames)), strict=True):
        if frame["kind"] == "answered":
            yield state.calls[frame["id"]], place


def _printable(value: str) -> str:
    return value if value.isascii() else value.encode("ascii", "replace").decode()


_OF_AN_ANSWER = ("status", "headers", "body", "usage", "latency_ms", "at")
_NAMES = {"live": "real run", "rehearsal": "rehearsal"}
