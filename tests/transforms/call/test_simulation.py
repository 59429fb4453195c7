"""Whole jobs under crashes, power cuts with torn tails, provider faults and a cap, in virtual time.

One seed is one job: the production core with everything around it simulated, killed at random
instants, started again as a driver would, until it ends. The provider keeps the bill.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import orjson
import pytest

from schemas.failures import FailureClass
from schemas.outcomes import ZERO, Outcome, money
from schemas.workload import HostedBackend, Limits, TokenPrice
from tests.transforms.call.fakes import (
    MemoryLedgers,
    MemoryLog,
    VirtualClock,
    error,
    make_batch,
    make_core,
    make_workload,
    openai_answer,
    run_virtual,
)
from tests.transforms.call.test_budget import MemoryRecord
from transforms.call.budget import BudgetState, LeasedBudget
from transforms.call.ledger import LedgerTotals, fold, scan
from transforms.call.ports import LostError, NotSentError
from transforms.call.request import CallBatchResult
from transforms.call.secret import Secret
from transforms.call.wire import WireRequest, WireResponse

ONE = TokenPrice(input_per_million=Decimal(0), output_per_million=Decimal(1_000_000))
BACKEND = HostedBackend(provider="openai", model="m", price=ONE, max_output_tokens=10, max_in_flight=8)
WORKLOAD = make_workload({"one": BACKEND}, Limits(max_calls=50, request_timeout_s=5))
PAID = ("answer", "lost", "garbled", "refused", "cut off")
FREE = ("rate limit", "server error", "not sent")


class Provider:
    """Bills on arrival, 1 to 10 USD a call, and then does what the dice say with the answer."""

    def __init__(self, source: random.Random, cap: Decimal) -> None:
        self.source = source
        self.cap = cap
        self.billed: Counter[str] = Counter()
        self.spent = ZERO
        self.faults = {kind: source.random() * 0.1 for kind in (*PAID[1:], *FREE)}

    async def send(self, request: WireRequest, key: Secret | None, timeout_s: float) -> WireResponse:
        kind = self._kind()
        cost = self.source.randint(1, 10)
        if kind in PAID:
            self.billed[orjson.loads(request.body)["messages"][-1]["content"]] += 1
            self.spent += cost
            assert self.spent <= self.cap, "the bill passed the cap"
        await asyncio.sleep(self.source.random() * 0.2)
        usage = {"prompt_tokens": 1, "completion_tokens": cost, "total_tokens": 1 + cost}
        replies: dict[str, Any] = {
            "answer": openai_answer("fine", usage=usage),
            "refused": openai_answer("no", "content_filter", usage=usage),
            "cut off": openai_answer("ha", "length", usage=usage),
            "lost": LostError("connection", "reset"),
            "garbled": WireResponse(200, {}, b"<html>"),
            "rate limit": error(429, "rate_limit_error", retry_after="1"),
            "server error": error(500, "api_error"),
            "not sent": NotSentError("refused"),
        }
        reply = replies[kind]
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _kind(self) -> str:
        dice = self.source.random()
        for kind, share in self.faults.items():
            dice -= share
            if dice < 0:
                return kind
        return "answer"

    async def close(self) -> None:
        pass


class SyncingLedgers(MemoryLedgers):
    """Ledgers that are durable only as far as they were synced."""

    async def open(self, batch_id: str) -> MemoryLog:
        log = await super().open(batch_id)
        self.synced.setdefault(batch_id, len(self.files[batch_id]))
        return log


@dataclass
class Job:
    """What one seed went through."""

    provider: Provider
    ledgers: SyncingLedgers = field(default_factory=SyncingLedgers)
    crashes: int = 0
    lost_frames: int = 0  # that a power cut took
    boots: int = 1
    record: MemoryRecord = field(default_factory=lambda: MemoryRecord("0"))

    @property
    def boot_id(self) -> str:
        return f"boot {self.boots}"


def simulate(seed: int) -> tuple[Job, list[Outcome], CallBatchResult, int]:
    source = random.Random(seed)
    rows = source.choice([1, 5, 30])
    cap = money(source.choice([10**6, 10**6, rows * 4 + 10]))
    job = Job(Provider(source, cap))
    lives = source.choice([0, 1, 3, 6])
    while True:
        dies = job.crashes < lives
        result = run_virtual(one_life(job, source, rows, cap, dies))
        if result is not None:
            return job, result.outcomes, result, rows
        job.crashes += 1
        if source.random() < 0.4:
            cut_power(job, source)


async def one_life(
    job: Job, source: random.Random, rows: int, cap: Decimal, dies: bool
) -> CallBatchResult | None:
    """One process: the driver counts what was spent, a worker works, and perhaps dies."""
    record = job.record
    before = None if job.crashes == 0 else record.state
    spent = totals(job.ledgers).spent
    record.data = BudgetState.opened(before, cap, spent, f"epoch {job.crashes}", job.boot_id).to_json()
    budget = LeasedBudget(record, "w", VirtualClock(), cap)
    core = make_core(job.provider, job.ledgers, WORKLOAD, budget=budget, capped=True)
    work = asyncio.create_task(core.run(make_batch(rows, ("one",))))
    done, _ = await asyncio.wait({work}, timeout=source.random() * 3 if dies else None)
    state = record.state
    assert state.spent + sum(state.leases.values(), ZERO) <= cap
    if done:
        return work.result()
    # kill -9: what the process would still write while it is taken down here never happens
    job.ledgers, abandoned = (
        SyncingLedgers(
            {name: bytearray(data) for name, data in job.ledgers.files.items()}, dict(job.ledgers.synced)
        ),
        job.ledgers,
    )
    abandoned.fails_after = 0
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    return None


def cut_power(job: Job, source: random.Random) -> None:
    """What was not synced survives in part, perhaps torn in the middle of a frame."""
    job.boots += 1
    for name, data in job.ledgers.files.items():
        synced = job.ledgers.synced.get(name, 0)
        kept = source.randint(min(synced, len(data)), len(data))
        job.lost_frames += len(scan(bytes(data))[0]) - len(scan(bytes(data[:kept]))[0])
        del data[kept:]


def totals(ledgers: MemoryLedgers) -> LedgerTotals:
    added = LedgerTotals()
    for name, data in ledgers.files.items():
        for call in fold(scan(bytes(data))[0], name).calls.values():
            added.add(call)
    return added


@pytest.mark.parametrize("block", range(8))
def test_no_seed_breaks_a_promise(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        try:
            check(seed)
        except AssertionError as failed:
            raise AssertionError(f"seed {seed}: {failed}") from failed


def check(seed: int) -> None:
    job, outcomes, result, rows = simulate(seed)
    provider, ledger = job.provider, totals(job.ledgers)
    assert [outcome.assignment.row for outcome in outcomes] == list(range(rows)), "a row is missing"
    for outcome in outcomes:
        prompt = f"row-{outcome.assignment.row}"
        answered = outcome.answered_at is not None
        paid_more = provider.billed[prompt] - answered - outcome.ambiguous_calls
        assert paid_more <= job.lost_frames, f"{prompt} was paid again"
        assert answered or outcome.failure is not None
        assert outcome.is_result == (outcome.answer == "fine"), "what is no result became one"
    assert len(result.ambiguous) == sum(outcome.ambiguous_calls for outcome in outcomes) == ledger.ambiguous
    charged = sum((outcome.charge.amount or ZERO for outcome in outcomes), ZERO)
    assert charged == ledger.amount, "rows and ledger don't add up"
    at_stake = sum((outcome.ambiguous_amount for outcome in outcomes), ZERO)
    assert at_stake == ledger.ambiguous_amount
    assert sum(outcome.calls for outcome in outcomes) == ledger.calls
    if not job.lost_frames:
        assert provider.spent <= ledger.spent <= provider.cap, "the ledger knows less than the bill"


def test_the_seeds_go_through_what_they_are_meant_to() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(60):
        job, outcomes, _, _ = simulate(seed)
        kinds["crashed"] += job.crashes > 0
        kinds["power cut"] += job.lost_frames > 0
        kinds["ambiguous"] += any(outcome.ambiguous_calls for outcome in outcomes)
        kinds["replayed"] += any(outcome.replayed_calls for outcome in outcomes)
        kinds["at the cap"] += any(o.failure is FailureClass.BUDGET_EXHAUSTED for o in outcomes)
        kinds["refused"] += any(o.failure is FailureClass.REFUSED for o in outcomes)
    assert min(kinds.values()) >= 5
    assert len(kinds) == 6


class _Mutants:
    """Defects that the seeds must catch: the checks are worth nothing otherwise."""

    @staticmethod
    def forget_the_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(LedgerTotals, "spent", property(lambda self: self.list_amount))

    @staticmethod
    def ignore_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("transforms.call.book.BatchBook.recorded", lambda self, row, route: [])

    @staticmethod
    def use_answers_unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
        def skip(self: Any, call: Any, *rest: Any) -> None:
            call.end, call.final = "answered", {"at": "t"}

        monkeypatch.setattr("transforms.call.book.BatchBook.answered", skip)

    @staticmethod
    def do_not_cut_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MemoryLog, "start", lambda self, length: None)

    @staticmethod
    def check_then_act(monkeypatch: pytest.MonkeyPatch) -> None:
        async def reserve(self: Any, worst: Decimal) -> bool:
            return bool(self._settled < self._cap)

        monkeypatch.setattr(LeasedBudget, "reserve", reserve)

    @staticmethod
    def settle_lost_calls_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
        settle = LeasedBudget.settle
        monkeypatch.setattr(
            LeasedBudget,
            "settle",
            lambda self, worst, actual: settle(self, worst, ZERO if actual == worst else actual),
        )

    @staticmethod
    def take_a_cut_answer_for_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("transforms.call.openai._COMPLETE", frozenset({"stop", "length"}))
        real = openai_answer

        def relabel(text: Any, reason: str = "stop", **more: Any) -> WireResponse:
            return real(text, "stop" if reason == "length" else reason, **more)

        monkeypatch.setattr("tests.transforms.call.test_simulation.openai_answer", relabel)

    @staticmethod
    def forget_leases_after_a_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
        real = BudgetState.opened
        monkeypatch.setattr(BudgetState, "opened", lambda before, *rest: real(None, *rest))

    @staticmethod
    def end_crashed_calls_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("transforms.call.ledger.LedgerState.open_calls", lambda self: [])


@pytest.mark.parametrize("mutant", [name for name in vars(_Mutants) if not name.startswith("_")])
def test_a_seeded_defect_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    getattr(_Mutants, mutant)(monkeypatch)

    def check_many() -> None:
        for seed in range(400):
            check(seed)

    with pytest.raises(Exception):  # noqa: B017, PT011 - however it shows, it must show
        check_many()
