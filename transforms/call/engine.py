"""The call engine as a batch job sees it: an object that owns a thread, an event loop and its ledgers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import random
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal

import uvloop

from schemas.backends import HostedBackend
from schemas.errors import BatchError, OutputError
from schemas.run import RunContext
from schemas.workload import Workload
from transforms.batchmode.outbox import open_outbox
from transforms.call.address import AllowList
from transforms.call.budget import Budget, NoCap
from transforms.call.budget_file import lease_from, read_budget
from transforms.call.budget_record import BudgetState
from transforms.call.caps import FurtherCaps
from transforms.call.caps_file import PATIENCE_S, engine_caps
from transforms.call.codecs import base_url_of
from transforms.call.core import CallCore
from transforms.call.desk import CANCELLED, Desk
from transforms.call.ledgers import open_ledgers
from transforms.call.ports import LedgerStore, SystemClock, Transport
from transforms.call.request import CallBatch, CallBatchResult, EngineStats
from transforms.call.retry import RetryPolicies
from transforms.call.secret import Secret, read_key
from transforms.call.share import Shares
from transforms.call.share_index import SharedAnswers, open_answers
from transforms.call.site import Place, build_sites, check_parameters, place_of
from transforms.call.slots import Slots
from transforms.call.structured import SchemaBook
from transforms.call.telemetry import Telemetry, open_telemetry
from transforms.call.transport import HttpTransport
from transforms.call.vertex import TokenSource, google_tokens
from transforms.layout import commit_path
from transforms.price import PriceBook
from transforms.store import Store, is_remote, open_store

GRACE_S = 10.0
"""What calls in flight get to end when the engine is closed."""

_log = logging.getLogger(__name__)


class CallEngine:
    """Sends batches' calls from a thread of its own. Thread-safe.

    Made by `open_call_engine`. Must be closed: that settles what is in flight and lets go of ledgers.
    """

    def __init__(
        self, core: CallCore, transport: Transport, loop: asyncio.AbstractEventLoop, closers: ExitStack
    ):
        self._core = core
        self._transport = transport
        self._loop = loop
        self._closers = closers
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, batch: CallBatch) -> concurrent.futures.Future[CallBatchResult]:
        """The batch's result, to come. Batches run at the same time; earlier ones go first.

        The future raises BatchClaimedError (another process holds the batch's ledger), LedgerError
        (its ledger can't be used: nothing was sent without a record), StoreError (the budget record
        can't be used) or BatchError (the engine was closed first). Cancelling it records the calls in
        flight as unknown.
        """
        with self._lock:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(self._core.run(batch), self._loop)
        refused: concurrent.futures.Future[CallBatchResult] = concurrent.futures.Future()
        refused.set_exception(BatchError(CANCELLED))
        return refused

    def stats(self) -> EngineStats:
        """What was done so far."""
        counters = self._core.desk.counters
        return EngineStats(
            calls=counters.calls,
            in_flight=counters.in_flight,
            answered=counters.answered,
            replayed=counters.replayed,
            shared=counters.shared,
            repairs=counters.repairs,
            amount=counters.amount,
            list_amount=counters.list_amount,
            soft_passed=self._core.desk.soft_passed,
        )

    def close(self, grace_s: float = GRACE_S) -> None:
        """Cancels what waits, gives what is in flight `grace_s` to end, records the rest as unknown.

        Then ledgers, connections and thread are closed. A second call does nothing.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            asyncio.run_coroutine_threadsafe(self._end(grace_s), self._loop).result()
        finally:
            self._closers.close()

    async def _end(self, grace_s: float) -> None:
        try:
            await self._core.close(grace_s)
        finally:
            await self._transport.close()


def open_call_engine(
    workload: Workload,
    run: RunContext,
    *,
    budget_limit: Decimal | None,
    environ: Mapping[str, str] | None = None,
    vertex_tokens: Callable[[], TokenSource] = google_tokens,
) -> CallEngine:
    """An engine for the workload's hosted backends.

    Keys are read from `environ` (default: the process's) here and nowhere else; Vertex's tokens come
    from `vertex_tokens` (default: application default credentials). With a
    `budget_limit` the run's budget record must exist (`open_budget`). In a rehearsal the calls go to
    a loopback stand-in in this process, without keys.

    Raises:
        MissingSecretError: a key is not set, or there are no credentials for Vertex.
        ConfigurationError: a base_url, a generation parameter or a JSON Schema that can't be used.
        OutputError: the output has no budget record for this limit.
    """
    store = open_store(run.output.removeprefix("file://"))
    output = store.root
    backends = workload.hosted_backends()
    check_parameters(backends, [prompt.json_schema for prompt in workload.prompts.values()])
    schemas = SchemaBook()
    for prompt in workload.prompts.values():
        if prompt.json_schema is not None:
            schemas.validator(prompt.json_schema)
    state = None if budget_limit is None else _check_record(output, budget_limit)
    with ExitStack() as closers:
        if run.rehearsal:
            places = _rehearsal_places(workload, backends, closers)
        else:
            places = _live_places(backends, os.environ if environ is None else environ, vertex_tokens)
        ledgers = open_ledgers(store)
        closers.callback(ledgers.close)
        answers = open_answers(store) if workload.limits.share_identical else None
        if answers is not None:
            closers.callback(answers.close)
        loop = _start_loop(closers)

        clock, holder = SystemClock(), f"{os.getpid()}-{secrets.token_hex(4)}"
        budget: Budget = NoCap()
        if state is not None:
            budget = lease_from(output, state, holder, clock, PATIENCE_S)
        caps = engine_caps(workload, run, output, clock, holder)
        capped = budget_limit is not None or workload.budget.caps_money
        telemetry = open_telemetry(run, os.environ)
        if telemetry is not None:
            closers.callback(telemetry.close)
        parts = _Parts(
            workload,
            run,
            backends,
            places,
            store,
            ledgers,
            schemas,
            clock,
            budget,
            caps,
            capped,
            answers,
            telemetry,
        )
        core, transport = asyncio.run_coroutine_threadsafe(_assemble(parts), loop).result()
        return CallEngine(core, transport, loop, closers.pop_all())


@dataclass(frozen=True, slots=True)
class _Parts:
    workload: Workload
    run: RunContext
    backends: Mapping[str, HostedBackend]
    places: Mapping[str, Place]
    store: Store
    ledgers: LedgerStore
    schemas: SchemaBook
    clock: SystemClock
    budget: Budget
    caps: FurtherCaps
    capped: bool
    answers: SharedAnswers | None
    telemetry: Telemetry | None


async def _assemble(parts: _Parts) -> tuple[CallCore, Transport]:
    """The core with its real surroundings; on the event loop, to which connections belong."""
    clock, workload, run = parts.clock, parts.workload, parts.run
    named = {name for name, backend in parts.backends.items() if backend.base_url is not None}
    allowed = AllowList(
        frozenset(place.address for place in parts.places.values()),
        own=frozenset(place.address for name, place in parts.places.items() if name in named),
    )
    transport = HttpTransport(allowed)
    desk = Desk(
        sites=build_sites(
            parts.backends,
            parts.places,
            clock,
            PriceBook(),
            run.rehearsal,
            workload.shares(),
            run.processes,
        ),
        clock=clock,
        transport=transport,
        budget=parts.budget,
        caps=parts.caps,
        allowed_providers=workload.policy.allowed_providers,
        soft=workload.budget.soft,
        limits=workload.limits,
        policies=RetryPolicies(workload.limits, random.Random().uniform),  # noqa: S311 - jitter, no secret
        slots=Slots(run.max_in_flight),
        schemas=parts.schemas,
        refuse_unknown_price=parts.capped and workload.budget.on_unknown_price == "refuse",
        shares=None if parts.answers is None else Shares(clock, parts.answers),
        outbox=open_outbox(workload, run),
        observer=parts.telemetry,
        is_committed=_committed_in(parts.store) if is_remote(parts.store.root) else None,
    )
    return CallCore(desk, parts.ledgers, "rehearsal" if run.rehearsal else "live"), transport


def _committed_in(store: Store) -> Callable[[str, int], bool]:
    """Whether an attempt of a batch is committed."""
    return lambda batch_id, attempt: store.exists(commit_path(batch_id, attempt))


def _live_places(
    backends: Mapping[str, HostedBackend],
    environ: Mapping[str, str],
    vertex_tokens: Callable[[], TokenSource],
) -> dict[str, Place]:
    places: dict[str, Place] = {}
    tokens: TokenSource | None = None
    for name, backend in backends.items():
        if backend.platform == "vertex":
            tokens = tokens or vertex_tokens()
            places[name] = place_of(name, base_url_of(backend), None, tokens)
        else:
            places[name] = place_of(name, base_url_of(backend), read_key(name, backend, environ))
    return places


def _rehearsal_places(
    workload: Workload, backends: Mapping[str, HostedBackend], closers: ExitStack
) -> dict[str, Place]:
    from transforms.rehearsal import RehearsalServer

    server = RehearsalServer(workload.rehearsal)
    server.start()
    closers.callback(server.close)
    key = Secret("rehearsal")
    return {
        name: place_of(name, server.base_url(b.provider, b.platform), key) for name, b in backends.items()
    }


def _start_loop(closers: ExitStack) -> asyncio.AbstractEventLoop:
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="call-engine", daemon=True)
    thread.start()

    def stop() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    closers.callback(stop)
    return loop


def _check_record(output: str, limit: Decimal) -> BudgetState:
    state = read_budget(output)
    if state is None or state.cap != limit:
        found = "no budget record" if state is None else f"a budget record for {state.cap.normalize():f} USD"
        raise OutputError(
            f"{output} has {found}, and this run's limit is {limit.normalize():f} USD: the record is written "
            f"when a run starts; start the run again"
        )
    return state
