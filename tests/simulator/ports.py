"""What one worker process's call engine has around it, and the engine itself: the production core."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import TypeVar

from schemas.errors import StoreError
from tests.simulator.audit import Audit
from tests.simulator.caps import CENTRE_RECORD, ME, Cap, read_record, run_cap
from tests.simulator.clock import VirtualClock
from tests.simulator.disk import SimulatedDisk, SimulatedLedgers
from tests.simulator.segments import ProcessShelf, Shelf, SimulatedRecord, SimulatedSegments
from tests.simulator.shape import Shape
from tests.simulator.sharing import Hints, ProcessHints
from tests.simulator.vendor import Entry, Vendor
from tests.simulator.world import Process, World
from transforms.call import budget_file
from transforms.call.budget import Budget, LeasedBudget, NoCap
from transforms.call.budget_parts import PartState, PartSupply, part_of
from transforms.call.budget_record import BudgetState
from transforms.call.caps import Caps, CapSpec, cap_specs
from transforms.call.caps_file import PATIENCE_S
from transforms.call.centre import reader
from transforms.call.core import CallCore
from transforms.call.desk import Desk
from transforms.call.ports import LostError, NotSentError
from transforms.call.retry import RetryPolicies
from transforms.call.secret import Secret
from transforms.call.share import Shares
from transforms.call.site import CODECS, build_sites, place_of
from transforms.call.slots import Slots
from transforms.call.structured import SchemaBook
from transforms.call.wire import WireRequest, WireResponse
from transforms.price import PriceBook

T = TypeVar("T")
_KEY = Secret("sk-simulated-key")
_PRICES = PriceBook()
_SCHEMAS = SchemaBook()


@dataclass
class Record:
    """The record of a cap; durable whenever it is written."""

    file: str
    data: bytes | None = None
    booted: int = 0  # power cuts before it was last written at the start of a run
    counted_twice: bool = (
        False  # a worker that heard no answer reports again what it has settled: more, never less
    )


@dataclass
class CapRecords:
    """All records of a cap: that of the whole, and those of its parts."""

    cap: Cap
    whole: Record
    parts: list[Record]

    @property
    def counted_twice(self) -> bool:
        return self.whole.counted_twice or any(part.counted_twice for part in self.parts)

    def check(self, world: World) -> None:
        """What is spent and what is leased of a cap stays below it, and no part of it is there twice."""
        assert self.whole.data is not None
        state = read_record(self.whole.file, self.whole.data, self.cap.limit)
        leased = state.spent + sum(state.leases.values(), Decimal(0))
        if isinstance(state, BudgetState) and state.parts:
            world.seen.add("in parts")
            leased += self._check_parts(state, world)
        if leased > max(state.cap, state.spent) and not self.counted_twice:
            world.violate("leases never pass the cap", f"{leased} of {state.cap} ({self.cap.name})")

    def _check_parts(self, state: BudgetState, world: World) -> Decimal:
        """What is spent and leased in parts."""
        used = Decimal(0)
        held = sum((given.held for given in state.parts), Decimal(0))
        sound = state.spent + held <= max(state.cap, state.spent)
        for record, given in zip(self.parts, state.parts, strict=False):
            part = PartState(state.epoch) if record.data is None else PartState.from_json(record.data)
            if part.opened_in != state.epoch:
                continue  # of a run before, whose spending the whole has counted
            used += part.used
            sound = sound and part.granted <= given.granted and given.returned <= part.returned
            sound = sound and (record.counted_twice or part.used <= part.granted - part.returned)
            if given.returned:
                world.seen.add("taken back from a part")
        if not sound:
            world.violate("no part of a cap is there twice", f"{self.cap.name}: {state}")
        return used


class ProcessRecord:
    """The record as one process uses it; the production code's `BudgetRecordStore`."""

    def __init__(self, records: CapRecords, process: Process) -> None:
        self._record, self._process, self._records = records.whole, process, records

    async def update(self, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        world = self._process.world
        try:
            await asyncio.sleep(world.source.choice((0.0, 0.001)))  # in production: another thread's work
            await self._process.thaw()
        except asyncio.CancelledError:
            if self._process.alive and world.source.random() < 0.5:
                self._apply(change)  # the thread goes on although nobody waits for it
            raise
        if world.source.random() < 0.2:  # another worker is faster: what was computed is thrown away
            change(self._record.data)
            await asyncio.sleep(0.001)
        code = world.step(self._process, "budget")
        if code > 0:
            raise StoreError("the budget record can't be used")
        value = self._apply(change)
        if code < 0:
            self._record.counted_twice = True
            raise StoreError("the answer of the budget record was lost")
        await asyncio.sleep(0.0)
        self._process.check()
        return value

    def _apply(self, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        data, value = change(self._record.data)
        if data is not None:
            self._record.data = data
            self._records.check(self._process.world)
        return value


class RecordShelf(ProcessShelf):
    """The one object of a record on object storage, as one process uses it."""

    def __init__(self, record: Record, records: CapRecords, process: Process) -> None:
        super().__init__({} if record.data is None else {record.file: record.data}, self._keep, process)
        self._record, self._records = record, records

    def read(self, path: str) -> bytes:
        self._refresh()
        return super().read(path)

    def _step(self, path: str, data: bytes) -> int:
        code = super()._step(path, data)
        self._refresh()
        return code

    def _refresh(self) -> None:
        if self._record.data is not None:
            self._objects[self._record.file] = self._record.data

    def _keep(self, path: str, data: bytes) -> None:
        self._objects[path] = self._record.data = data
        if self._records.whole.data is not None:  # the first run closes parts that it has yet to make
            self._records.check(self._process.world)

    def _answer(self, code: int, path: str) -> None:
        try:
            super()._answer(code, path)
        except StoreError:
            self._record.counted_twice = True
            raise


class WatchedBudget(LeasedBudget):
    """The production budget; a refusal is looked at."""

    audit: Audit
    process: Process
    watched: Cap
    records: CapRecords

    async def reserve(self, worst: Decimal) -> bool:
        allowed = await super().reserve(worst)
        self.process.check()
        if not allowed and not self.records.counted_twice:
            self.audit.refused(self.process, worst, self.watched)
        return allowed


class SimulatedTransport:
    """The network between one process and the vendor; the production code's `Transport`."""

    def __init__(self, process: Process, vendor: Vendor, audit: Audit) -> None:
        self._process, self._vendor, self._audit = process, vendor, audit

    async def send(self, request: WireRequest, key: Secret | None, timeout_s: float) -> WireResponse:
        self._process.world.step(self._process, "send")
        entry = self._vendor.receive(self._process, request)
        self._audit.sent(self._process, entry, timeout_s)
        self._process.check()
        try:
            return await self._answer(entry, timeout_s)
        finally:
            self._audit.left(self._process, entry)

    async def _answer(self, entry: Entry, timeout_s: float) -> WireResponse:
        latency = entry.ends_at - entry.sent_at
        await asyncio.sleep(min(latency, timeout_s))
        await self._process.thaw()
        self._process.world.step(self._process, "response", entry.who)
        if latency > timeout_s or entry.kind in ("reset", "lost", "broken body", "garbled"):
            self._audit.may_be_paid(self._process, entry)
        if latency > timeout_s:
            raise LostError("timeout", f"no whole answer within {timeout_s:g} s")
        if entry.kind == "not sent":
            raise NotSentError("the connection was refused; nothing was sent")
        if entry.kind in ("reset", "lost", "broken body"):
            raise LostError("connection", "the connection broke off")
        self._audit.arrived(self._process, entry)
        return self._vendor.response(entry)

    async def close(self) -> None:
        pass


@dataclass
class Surroundings:
    """What outlives processes: disk, record, vendor, and who watches."""

    world: World
    shape: Shape
    disk: SimulatedDisk
    records: dict[str, Record]
    vendor: Vendor
    audit: Audit
    hints: Hints
    source: Random
    shelf: Shelf | None = None  # where ledgers are on object storage
    run_id: str = ""

    def core(self, process: Process, is_committed: Callable[[str, int], bool]) -> CallCore:
        """A call engine's core for one process, as `open_call_engine` makes it."""
        clock, shape = VirtualClock(process), self.shape
        workload = shape.workload()
        backends = workload.hosted_backends()
        places = {
            name: place_of(name, CODECS[b.provider].default_base_url, _KEY) for name, b in backends.items()
        }
        desk = Desk(
            sites=build_sites(backends, places, clock, _PRICES, rehearsal=False),
            clock=clock,
            transport=SimulatedTransport(process, self.vendor, self.audit),
            budget=self._budget(process, clock),
            caps=Caps([(self._spec(cap), self._leased(cap, process, clock)) for cap in shape.caps]),
            limits=workload.limits,
            policies=RetryPolicies(workload.limits, self.source.uniform),
            slots=Slots(shape.in_flight),
            schemas=_SCHEMAS,
            refuse_unknown_price=workload.budget.caps_money,
            shares=Shares(clock, ProcessHints(self.hints, process)) if shape.share else None,
            is_committed=None if self.shelf is None else is_committed,
        )
        if self.shelf is not None:
            return CallCore(desk, SimulatedSegments(self.shelf, process), "live")
        return CallCore(desk, SimulatedLedgers(self.disk, process), "live")

    def _budget(self, process: Process, clock: VirtualClock) -> Budget:
        own = run_cap(self.shape.cap)
        return self._leased(own[0], process, clock) if own else NoCap()

    def _spec(self, cap: Cap) -> CapSpec:
        """As the workload says it; a cost centre's stands in no specification of an output's own caps."""
        known = {spec.name: spec for spec in cap_specs(self.shape.workload())}
        return known.get(cap.name) or CapSpec(cap.name, cap.file, "amount", cap.limit)

    def records_of(self, cap: Cap) -> CapRecords:
        """The records of a cap."""
        parts = [self.records[file] for file in cap.part_files(self.shape.parts)]
        return CapRecords(cap, self.records[cap.file], parts)

    def stored(self, file: str, process: Process) -> SimulatedRecord:
        """A record on object storage, as a process uses it."""
        (cap,) = (c for c in self.shape.every_cap() if file in (c.file, *c.part_files(self.shape.parts)))
        shelf = RecordShelf(self.records[file], self.records_of(cap), process)
        return SimulatedRecord(shelf, file, process)

    def _record(self, file: str, cap: Cap, process: Process) -> ProcessRecord | SimulatedRecord:
        if self.shelf is None:
            return ProcessRecord(self.records_of(cap), process)
        return self.stored(file, process)

    def _leased(self, cap: Cap, process: Process, clock: VirtualClock) -> WatchedBudget:
        """As `engine_caps` makes it, with the record replaced."""
        file, records = cap.file, self.records_of(cap)
        holder, more = process.name, {}
        if cap.file == CENTRE_RECORD:
            run_id = self.run_id
            read = reader(ME, cap.limit, run_id, budget_file.boot_id(""))
            holder, more = f"{ME}/{holder}", {"read": read, "epoch": run_id}
        elif records.parts:
            state = BudgetState.from_json(records.whole.data)
            mine = part_of(holder, len(records.parts))
            pieces = [self._record(part.file, cap, process) for part in records.parts]
            supply = PartSupply(self._record(file, cap, process), pieces, mine, state, clock)
            file, more = (
                records.parts[mine].file,
                {"read": supply.read, "epoch": state.epoch, "supply": supply},
            )
        record = self._record(file, cap, process)
        budget = WatchedBudget(record, holder, clock, cap.limit, patience_s=PATIENCE_S, **more)
        budget.audit, budget.process = self.audit, process
        budget.watched, budget.records = cap, records
        return budget
