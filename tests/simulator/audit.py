"""Looking over the shoulder of every call: is it recorded, in time, within the cap, and not paid for yet?"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from decimal import Decimal
from typing import Any

from tests.simulator.caps import Cap
from tests.simulator.disk import LedgerInode, SimulatedDisk
from tests.simulator.frames import LedgerView, SeenCall
from tests.simulator.shape import Shape, route_of
from tests.simulator.vendor import GOOD, PAID_BUT_BAD, Entry, Vendor
from tests.simulator.world import Process, World
from transforms.call.budget_parts import _SEARCH_S
from transforms.call.waits import KEPT_FIRST, SHORT_S

MOST_AMBIGUOUS = 2
"""Calls of a row to one backend, in one life, that may have been paid without an answer."""
_SLACK_S = 1e-6
_SHARED_WITHIN_S = 0.2  # an answer is shared once its ledger is synced
_ASK_AGAIN_S = 0.25  # after a refusal the budget record is left alone for so long


class Audit:
    """The checks that are made at every request, and what is known for those at the end."""

    def __init__(self, world: World, shape: Shape, disk: SimulatedDisk, vendor: Vendor) -> None:
        self.world, self.shape, self.disk, self.vendor = world, shape, disk, vendor
        self.views: dict[str, LedgerView] = {}
        self.finished: set[tuple[str, int]] = set()  # (batch, row) with a committed result
        self._closed_until: dict[tuple[Process, str], float] = defaultdict(float)
        self._told_until: dict[tuple[Process, str, int, str], float] = defaultdict(float)
        self._short_waits: dict[tuple[Process, str], int] = defaultdict(int)
        self._rightly_refused_at: dict[tuple[Process, str], float] = defaultdict(lambda: -1.0)
        self.flying: set[Entry] = set()
        self._answered_at: dict[Entry, float] = {}
        self._first_sent: dict[tuple[Process, str, int], float] = {}
        self._ended: set[tuple[Process, str, int, str, bytes]] = set()
        self._calls: dict[tuple[Process, str, int, str, bool], int] = defaultdict(int)
        self._ambiguous: dict[tuple[Process, str, int, str, bool], int] = defaultdict(int)
        self._in_flight: dict[tuple[Process, str], int] = defaultdict(int)
        world.on_power_cut.append(self._after_power_cut)

    def view(self, batch: str) -> dict[int, SeenCall]:
        """The calls in a batch's ledger as programs see it now."""
        if batch not in self.views:
            self.views[batch] = LedgerView(self.disk.inode(batch))
        return self.views[batch].update()

    # ---- a request goes out

    def sent(self, process: Process, entry: Entry, timeout_s: float) -> None:
        """All that must hold when a request leaves."""
        call = self._record_of(process, entry)
        if call is None:
            self.world.violate("no request leaves without a record", f"{entry.who} has none")
            return
        self._check_paid_once(entry, call)
        if (entry.batch, entry.row) in self.finished:
            self.world.violate("an answered row is never sent again", f"{entry.who} is a committed result")
        self.flying.add(entry)
        self._check_flow(process, entry, timeout_s)
        self._check_exposure(entry)

    def _record_of(self, process: Process, entry: Entry) -> SeenCall | None:
        """The open call in a ledger of the process's that is for this request and for no other."""
        linked = {(e.batch, e.call_id) for e in self.vendor.journal if not e.lost}
        for batch, inode in self.disk.ledgers.items():
            if process not in inode.users:
                continue
            for number, call in self.view(batch).items():
                told = call.intended
                same = (self.shape.text_of(batch, told["row"]), told["backend"]) == (
                    entry.text,
                    entry.backend,
                )
                if same and call.end is None and (batch, number) not in linked:
                    entry.batch, entry.row = batch, told["row"]
                    entry.call_id, entry.intended_at = number, told["at"]
                    return call
        return None

    def _check_paid_once(self, entry: Entry, call: SeenCall) -> None:
        for other in self.view(entry.batch).values():
            if other.kind == "answered" and other.key == call.key:
                self.world.violate(
                    "an answered row is never sent again", f"{entry.who}: the ledger has its answer"
                )
        if self.shape.share and not self.world.io_failed:
            self._check_shared(entry)

    def _check_shared(self, entry: Entry) -> None:
        """What a process was answered, and has synced, it does not ask again for a row that says the same."""
        for other, at in self._answered_at.items():
            same = other.process is entry.process and other.body == entry.body
            if not same or other.backend != entry.backend or at + _SHARED_WITHIN_S > entry.sent_at:
                continue
            told, inode = self.call_of(other), self.disk.inode(other.batch)
            if told is not None and told.kind == "answered" and inode.synced == len(inode.cache):
                self.world.violate("identical requests are paid once", f"{entry.who}, as {other.who}")

    def _check_flow(self, process: Process, entry: Entry, timeout_s: float) -> None:
        now, limits = entry.sent_at, self.shape.limits
        where = (process, entry.batch, entry.row, entry.backend)
        # a process whose ledger failed as it noted the answer may not have come to heeding it
        until = max(self._closed_until[where[::3]], self._told_until[where])
        if now < until - _SLACK_S and not (self.world.io_failed or process.ledger_failed):
            self.world.violate("a lane that was told to wait waits", entry.who)
        if (*where, entry.body) in self._ended:
            self.world.violate("what was refused for good is not asked again", entry.who)
        first = self._first_sent.setdefault(where[:3], now)
        if now > first + limits.document_deadline_s + _SLACK_S:
            self.world.violate("no row waits for ever", f"{entry.who} was sent after its deadline")
        if timeout_s > min(limits.request_timeout_s, first + limits.document_deadline_s - now) + _SLACK_S:
            self.world.violate("no row waits for ever", f"{entry.who} may take {timeout_s} s")
        question = (*where, entry.is_repair)
        self._calls[question] += 1
        if self._calls[question] > limits.max_calls:
            self.world.violate("calls of a row are bounded", f"{entry.who} is number {self._calls[question]}")
        self._in_flight[process, entry.backend] += 1
        total = sum(n for (p, _), n in self._in_flight.items() if p is process)
        if (
            total > self.shape.in_flight
            or self._in_flight[process, entry.backend] > self.shape.backend_in_flight
        ):
            self.world.violate("calls in flight are bounded", f"{total} with {entry.who}")

    def _check_exposure(self, entry: Entry) -> None:
        """Neither what the ledgers say nor what the bill can come to may pass the cap.

        They are two sums: after a power cut the ledgers may have forgotten what a call cost, and count
        it at its worst, and may have forgotten other calls altogether.
        """
        caps = self.shape.every_cap()
        if not caps:
            return
        in_flight = {e for e in self.flying if (call := self.call_of(e)) is not None and call.end is None}
        for cap in caps:
            bill = cap.taken_by_others
            for e in self.vendor.journal:
                if not cap.holds_for(route_of(e.row)):
                    continue
                call = self.call_of(e) if e in in_flight else None
                bill += cap.of_request(e) if call is None else cap.worst(call)
            if max(bill, self.recorded(cap)) > cap.limit:
                self.world.violate(
                    "spend never passes the cap",
                    f"with {entry.who} the bill can come to {bill}, the ledgers to {self.recorded(cap)}; "
                    f"the cap {cap.name!r} is {cap.limit}",
                )

    def recorded(self, cap: Cap) -> Decimal:
        """What the ledgers add up to for a cap, calls without a known end at their worst."""
        total = cap.taken_by_others
        for batch in self.disk.ledgers:
            for call in self.view(batch).values():
                if cap.holds_for(call.intended["route"]):
                    total += cap.of_call(call)
        return total

    def call_of(self, entry: Entry) -> SeenCall | None:
        """What the ledger has of a request; None when a power cut took it."""
        return None if entry.lost else self._found(entry)

    def _found(self, entry: Entry) -> SeenCall | None:
        if entry.call_id is None:
            return None
        call = self.view(entry.batch).get(entry.call_id)
        return call if call is not None and call.intended["at"] == entry.intended_at else None

    # ---- what comes back

    def left(self, process: Process, entry: Entry) -> None:
        """The request is no longer in flight for the process."""
        self._in_flight[process, entry.backend] -= 1
        self.flying.discard(entry)

    def arrived(self, process: Process, entry: Entry) -> None:
        """The response is in the process's hands: from now on it must heed it."""
        now = asyncio.get_running_loop().time()
        self._answered_at[entry] = now
        if entry.kind.startswith("429"):  # a rate limit fails no row, so it does not count
            self._calls[process, entry.batch, entry.row, entry.backend, entry.is_repair] -= 1
        self._heard(process, entry, now)
        if entry.kind in ("400", *_PAID_ENDS):
            self._ended.add((process, entry.batch, entry.row, entry.backend, entry.body))

    def _heard(self, process: Process, entry: Entry, now: float) -> None:
        """A row waits as long as it was told to, and its lane too, until short waits may be tested."""
        waits = {"429 wait": self.shape.retry_after_s, "429 long": 500.0, "401": float("inf")}
        lane, row = (process, entry.backend), (process, entry.batch, entry.row, entry.backend)
        if entry.kind not in waits:
            return
        until = now + waits[entry.kind]
        self._told_until[row] = max(self._told_until[row], until)
        if waits[entry.kind] <= SHORT_S:
            self._short_waits[lane] += now >= self._closed_until[lane]
            if self._short_waits[lane] > KEPT_FIRST:
                return
        self._closed_until[lane] = max(self._closed_until[lane], until)

    def may_be_paid(self, process: Process, entry: Entry) -> None:
        """The process can't know whether a request was paid."""
        where = (process, entry.batch, entry.row, entry.backend, entry.is_repair)
        self._ambiguous[where] += 1
        if self._ambiguous[where] > MOST_AMBIGUOUS:
            self.world.violate("calls that may have been paid are bounded", entry.who)

    # ---- a commit

    def committed(self, record: dict[str, Any]) -> None:
        """Every call of the attempt that has ended must be so on the platter."""
        inode = self.disk.inode(record["batch_id"])
        durable = LedgerView(LedgerInode(inode.batch_id, inode.cache[: inode.synced])).update()
        for number, call in self.view(inode.batch_id).items():
            kept = durable.get(number)
            if call.intended["attempt"] == record["attempt"] and (kept is None or kept.kind != call.kind):
                self.world.violate("what is committed is durable in the ledger", f"call {number} is not")

    def refused(self, process: Process, worst: Decimal, cap: Cap) -> None:
        """A cap said no: is it used up? Other workers' leases and faults of the record excuse it.

        And who asks soon after: the record is left alone for a while.
        """
        self.world.seen.add(f"{cap.name.partition(':')[0]} refused")
        excused = self.world.io_failed or self.world.power_cuts or self.world.lost_workers
        # where a crash can cost records, what was leased and never given back counts as spent
        excused = excused or (self.shape.window and self.world.mishaps)
        if excused:
            return
        now, where = asyncio.get_running_loop().time(), (process, cap.name)
        if self.world.working > 1 or self.recorded(cap) + worst > cap.limit:
            self._rightly_refused_at[where] = now
        elif now > self._rightly_refused_at[where] + max(_ASK_AGAIN_S, _SEARCH_S * self.shape.parts):
            self.world.violate(
                "the budget is refused only when it is used up",
                f"{self.recorded(cap)} of {cap.limit} is spent (cap {cap.name!r}), and {worst} was refused",
            )

    # ---- mishaps

    def lost_records(self, batch: str) -> None:
        """A ledger on object storage has lost what was not sealed."""
        for entry in self.vendor.journal:
            if entry.batch == batch and entry.call_id is not None:
                entry.lost = self._found(entry) is None

    def _after_power_cut(self) -> None:
        for entry in self.vendor.journal:
            if entry.call_id is not None and not entry.lost and self.call_of(entry) is None:
                entry.lost = True


_PAID_ENDS = (GOOD, *PAID_BUT_BAD)
