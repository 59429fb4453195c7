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
from tests.simulator.clock import VirtualClock
from tests.simulator.disk import SimulatedDisk, SimulatedLedgers
from tests.simulator.shape import Shape
from tests.simulator.sharing import Hints, ProcessHints
from tests.simulator.vendor import Entry, Vendor
from tests.simulator.world import Process, World
from transforms.call.budget import Budget, BudgetState, LeasedBudget, NoCap
from transforms.call.caps_file import PATIENCE_S
from transforms.call.core import CallCore
from transforms.call.desk import Desk
from transforms.call.lane import Slots
from transforms.call.ports import LostError, NotSentError
from transforms.call.retry import RetryPolicies
from transforms.call.secret import Secret
from transforms.call.share import Shares
from transforms.call.site import CODECS, build_sites, place_of
from transforms.call.structured import SchemaBook
from transforms.call.wire import WireRequest, WireResponse
from transforms.price import PriceBook

T = TypeVar("T")
_KEY = Secret("sk-simulated-key")
_PRICES = PriceBook()
_SCHEMAS = SchemaBook()


@dataclass
class Record:
    """The budget record of the output; durable whenever it is written."""

    world: World
    data: bytes | None = None
    counted_twice: bool = (
        False  # a worker that heard no answer reports again what it has settled: more, never less
    )


class ProcessRecord:
    """The record as one process uses it; the production code's `BudgetRecordStore`."""

    def __init__(self, record: Record, process: Process) -> None:
        self._record, self._process = record, process

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
            self._check(BudgetState.from_json(data))
        return value

    def _check(self, state: BudgetState) -> None:
        leased = state.spent + sum(state.leases.values(), Decimal(0))
        if leased > max(state.cap, state.spent) and not self._record.counted_twice:
            self._process.world.violate("leases never pass the cap", f"{leased} of {state.cap}")


class WatchedBudget(LeasedBudget):
    """The production budget; a refusal is looked at."""

    audit: Audit
    process: Process

    async def reserve(self, worst: Decimal) -> bool:
        allowed = await super().reserve(worst)
        self.process.check()
        if not allowed:
            self.audit.refused(self.process, worst)
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
    record: Record
    vendor: Vendor
    audit: Audit
    hints: Hints
    source: Random

    def core(self, process: Process) -> CallCore:
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
            limits=workload.limits,
            policies=RetryPolicies(workload.limits, self.source.uniform),
            slots=Slots(shape.in_flight),
            schemas=_SCHEMAS,
            refuse_unknown_price=shape.cap is not None,
            shares=Shares(clock, ProcessHints(self.hints, process)) if shape.share else None,
        )
        return CallCore(desk, SimulatedLedgers(self.disk, process), "live")

    def _budget(self, process: Process, clock: VirtualClock) -> Budget:
        if self.shape.cap is None:
            return NoCap()
        record = ProcessRecord(self.record, process)
        budget = WatchedBudget(record, process.name, clock, self.shape.cap, patience_s=PATIENCE_S)
        budget.audit, budget.process = self.audit, process
        return budget
