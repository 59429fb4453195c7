"""What a worker process holds for its run: store, rules, call engine, embedders, and who listens.

Its parts are opened when they are first needed, shared by all Beam threads, and closed together. Where
the process is the launcher's own, that hears of every batch at once. Elsewhere (Beam's worker pools on a
cluster) the output is the only thing between the two: commit records say what was done, a report left
there says why a batch was not committed, and a file that the launcher leaves there stops the worker.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from schemas.backends import EmbedderBackend, HostedBackend
from schemas.batches import BatchReport
from schemas.errors import BatchClaimedError, BatchError
from schemas.lengths import TextLengths
from schemas.run import DeviceUse, RunContext
from schemas.workload import Workload
from transforms.claim import Claims, open_claims
from transforms.device_use import device_use, leave_use
from transforms.layout import report_path, stop_path
from transforms.openers import Openers
from transforms.prompt import CompiledPrompt, compile_prompt
from transforms.route import Rules, compile_rules
from transforms.space_guard import guard_space
from transforms.store import Store, open_store
from transforms.write import PartWriter, VectorType

if TYPE_CHECKING:
    from transforms.call.engine import CallEngine
    from transforms.call.request import EngineStats
    from transforms.embed.embeddings import TextEmbedder

STOPPED = "the run was stopped before this batch was through; run again"
_LOOK_FOR_STOP_S = 2.0


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What travels to the workers in the pipeline's graph. Carries no secret and no document."""

    workload: Workload
    base_dir: str
    run: RunContext
    input_schema: bytes

    def schema(self) -> pa.Schema:
        """The columns that are read, and the types they are read as."""
        return pa.ipc.read_schema(pa.py_buffer(self.input_schema))


@dataclass(slots=True)
class Counters:
    """How far this process is; only ever grows."""

    documents: int = 0
    hosted: int = 0
    embedded: int = 0
    batches: int = 0


@dataclass(slots=True)
class Worker:
    """The parts that a process holds for its run."""

    config: WorkerConfig
    openers: Openers = field(default_factory=Openers)
    counters: Counters = field(default_factory=Counters)
    on_report: Callable[[BatchReport], None] | None = None
    is_owned: bool = False  # closed by its owner, not by its last user: see `process_workers`
    users: int = 0
    stopping: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _closing: threading.Lock = field(default_factory=threading.Lock)
    _rules: Rules | None = None
    _prompts: dict[str, CompiledPrompt] = field(default_factory=dict)
    _claims: Claims | None = None
    _claimed: dict[str, object] = field(default_factory=dict)
    _engine: CallEngine | None = None
    _engine_stats: EngineStats | None = None  # of the engine that was closed
    _embedders: dict[str, TextEmbedder] = field(default_factory=dict)
    _used_before: dict[str, DeviceUse] = field(default_factory=dict)
    _hosted_spaces: dict[str, VectorType] = field(default_factory=dict)

    def store(self) -> Store:
        """The output's store."""
        return open_store(self.config.run.output)

    def claim(self, batch_id: str, by: object) -> None:
        """Claim a batch for one user of this worker; granted again to the same one.

        A worker pool outlives a task manager that was killed, and with it the thread that was at work
        for that one: another thread of the same process must not take its batches.

        Raises:
            BatchClaimedError: another user, or another process, is at work on it.
        """
        with self._lock:
            if self._claimed.setdefault(batch_id, by) is not by:
                raise BatchClaimedError(
                    f"batch {batch_id} is being worked on by another thread of this process: run again"
                )
            if self._claims is None:
                self._claims = open_claims(self.config.run.output)
            try:
                self._claims.take(batch_id)
            except BatchClaimedError:
                del self._claimed[batch_id]
                raise

    def give_back(self, batch_id: str) -> None:
        """End the claim on a batch."""
        with self._lock:
            self._claimed.pop(batch_id, None)
            if self._claims is not None:
                self._claims.give_back(batch_id)

    def give_back_all(self, by: object) -> None:
        """End the claims that one user still has."""
        with self._lock:
            left = [batch_id for batch_id, user in self._claimed.items() if user is by]
        for batch_id in left:
            self.give_back(batch_id)

    def rules(self) -> Rules:
        """The workload's compiled expressions."""
        with self._lock:
            if self._rules is None:
                self._rules = compile_rules(self.config.workload)
            return self._rules

    def prompt(self, route: str) -> CompiledPrompt:
        """The compiled prompt of a hosted route."""
        with self._lock:
            if route not in self._prompts:
                name = str(self.config.workload.route(route).prompt)
                self._prompts[route] = compile_prompt(name, self.config.workload.prompts[name])
            return self._prompts[route]

    def engine(self) -> CallEngine:
        """The call engine; opened by the first batch that has something to send.

        Raises:
            BatchError: the run was stopped.
        """
        with self._lock:
            if self.stopping:
                raise BatchError(STOPPED)
            if self._engine is None:
                workload, run = self.config.workload, self.config.run
                self._engine = self.openers.engine(workload, run, workload.budget.amount)
            return self._engine

    def engine_stats(self) -> EngineStats | None:
        """What the call engine has done, also after it was closed; None if none was opened."""
        engine = self._engine
        return self._engine_stats if engine is None else engine.stats()

    def embedder(self, route: str) -> TextEmbedder:
        """The embedder of an embed route; weights are loaded by the first batch that needs them.

        Raises:
            OutputError: its vectors would not live in the space of those that the output has.
        """
        with self._lock:
            if route not in self._embedders:
                backend, base = self.embedder_backend(route), Path(self.config.base_dir)
                embedder = self.openers.embedder(backend, base, self._lengths(route))
                guard_space(self.store(), route, embedder.space.fingerprint, embedder.space.describe())
                self._embedders[route] = embedder
                before = embedder.stats()  # with no step yet it was opened for this run: all is this run's
                self._used_before[route] = device_use(before) if before.steps else DeviceUse()
            return self._embedders[route]

    def _lengths(self, route: str) -> TextLengths | None:
        """What the run knows of the lengths of the texts that go to the route's backend."""
        found = self.config.run.lengths.get(self._embedder_name(route))
        return None if found is None else TextLengths.from_dict(found)

    def _embedder_name(self, route: str) -> str:
        return self.config.workload.route(route).chains[0].backends[0]

    def under_way(self) -> int:
        """About how many documents of batches that are still worked on have been through already."""
        stats = self.engine_stats()
        texts = sum(use.texts for use in self._device_use().values()) - self.counters.embedded
        if stats is None:
            return max(0, texts)
        answered = stats.answered + stats.replayed + stats.shared - stats.repairs
        return max(0, texts) + max(0, answered - self.counters.hosted)

    def embedder_backend(self, route: str) -> EmbedderBackend:
        """The configuration of an embed route's backend."""
        backend = self.config.workload.backends[self._embedder_name(route)]
        assert isinstance(backend, EmbedderBackend)
        return backend

    def vector_type(self, route: str) -> VectorType:
        """What the vectors of an embed route are.

        Raises:
            OutputError: they would not live in the space of those that the output has.
        """
        hosted = self.config.workload.hosted_embeddings(self.config.workload.route(route))
        if hosted is not None:
            return self._hosted_vector_type(route, hosted)
        space = self.embedder(route).space
        element = pa.float32() if self.embedder_backend(route).output_dtype == "float32" else pa.float16()
        return VectorType(space.dim, element, space.fingerprint)

    def _hosted_vector_type(self, route: str, backend: HostedBackend) -> VectorType:
        from transforms.call.codecs import base_url_of
        from transforms.call.vectors import vector_space

        with self._lock:
            if route not in self._hosted_spaces:
                rehearsal = self.config.run.rehearsal
                space = vector_space(backend, base_url_of(backend), rehearsal=rehearsal)
                kind = "rehearsed " if rehearsal else ""
                description = f"{kind}{backend.provider} {backend.model}, {backend.dimensions} dimensions"
                guard_space(self.store(), route, space, f"{description} ({space})")
                assert backend.dimensions is not None
                self._hosted_spaces[route] = VectorType(backend.dimensions, pa.float32(), space)
            return self._hosted_spaces[route]

    def part_writer(self) -> PartWriter:
        """The writer of this run's parts."""
        config = self.config
        return PartWriter(config.workload, config.run, self.store(), config.schema(), self.vector_type)

    def report(self, report: BatchReport) -> None:
        """Tell the launcher about a batch; the commit record is the truth."""
        self.counters.batches += 1
        if self.on_report is not None:
            self.on_report(report)
        elif report.record is None and not self.is_owned:
            data = json.dumps(report.to_dict()).encode()
            path = report_path(self.config.run.run_id, report.batch_id, report.attempt)
            self.store().create(path, data)

    def watch_for_stop(self) -> None:
        """Close the engine as soon as the launcher, somewhere else, wants this run to stop."""
        path, store = stop_path(self.config.run.run_id), self.store()

        def watch() -> None:
            while not self._ended.wait(_LOOK_FOR_STOP_S):
                if store.exists(path):
                    self.stopping = True
                    self._close_engine()
                    return

        threading.Thread(target=watch, name="watch-for-stop", daemon=True).start()

    def stop(self) -> None:
        """Send nothing more and settle what is in flight; batches that have all their answers go on.

        The others fail, and a rerun does them: what they have paid for is in the ledger.
        """
        self.stopping = True
        self._close_engine()

    def close(self) -> None:
        """Close the engine: what is in flight is settled in the ledger first. Then claims end."""
        self._ended.set()
        self._close_engine()
        with self._lock:
            claims, self._claims = self._claims, None
            uses, self._used_before = self._device_use(), {}
        for embedder in self._embedders.values():
            embedder.close()
        leave_use(self.store(), self.config.run.run_id, uses)
        if claims is not None:
            claims.close()

    def _device_use(self) -> dict[str, DeviceUse]:
        """What this run's embedders did, by route; by the first route of those that share one."""
        used_before = self._used_before.copy()  # another thread may open one meanwhile
        first = {id(self._embedders[route]): route for route in reversed(used_before)}
        return {
            route: device_use(self._embedders[route].stats()).plus(before, -1)
            for route, before in used_before.items()
            if first[id(self._embedders[route])] == route
        }

    def _close_engine(self) -> None:
        with self._closing:  # who comes second waits too: the process may end with it
            with self._lock:
                engine = self._engine
                if engine is not None:
                    self._engine_stats = engine.stats()
                self._engine = None
            if engine is not None:
                engine.close()
                self._engine_stats = engine.stats()
