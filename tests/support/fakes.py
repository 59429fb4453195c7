"""Fakes of the parts that cost money or seconds, to be handed to a worker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from schemas.backends import EmbedderBackend
from schemas.outcomes import Charge, Outcome, Usage, money
from schemas.run import RunContext
from schemas.workload import Workload
from transforms.call.request import CallBatch, CallBatchResult, CallRequest, EngineStats
from transforms.embed.embedder import Embeddings, EmbedStats
from transforms.embed.space import VectorSpace
from transforms.openers import Openers

Answer = Callable[[CallRequest], Outcome]
DIM = 4


def answer_plainly(request: CallRequest) -> Outcome:
    """A result for one cent that repeats the prompt."""
    return Outcome(
        assignment=request.assignment,
        answer=f"answer: {request.prompt}",
        operation="chat",
        backend=request.assignment.chain[0],
        provider="openai",
        request_model="m",
        response_model="m",
        finish_reasons=("stop",),
        usage=Usage(10, 5),
        charge=Charge(money("0.01"), money("0.01"), "tokens", "exact"),
        calls=1,
        chain_tried=request.assignment.chain[:1],
        document_sha256=request.document_sha256,
        prompt_sha256=request.prompt_sha256,
    )


@dataclass
class FakeEngine:
    """Answers at once, or, with `hold_back`, only when so many requests wait; keeps what it was asked."""

    answer: Answer = answer_plainly
    fail: Callable[[CallBatch], BaseException | None] = lambda _: None
    hold_back: int = 0
    asked: list[CallBatch] = field(default_factory=list)
    most_waiting: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    _held: list[tuple[CallBatch, Future[CallBatchResult]]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def submit(self, batch: CallBatch) -> Future[CallBatchResult]:
        future = _Lazy(self)
        with self._lock:
            self.asked.append(batch)
            self._held.append((batch, future))
            self.most_waiting = max(self.most_waiting, sum(len(b.requests) for b, _ in self._held))
        if self.hold_back == 0:
            self.release()
        return future

    def release(self) -> None:
        """Answer everything that waits, the last batch first."""
        with self._lock:
            held, self._held = self._held[::-1], []
        for batch, future in held:
            error = self.fail(batch)
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(CallBatchResult([self.answer(r) for r in batch.requests], []))

    @property
    def requests(self) -> list[CallRequest]:
        """Every request of every batch, in the order of asking."""
        return [request for batch in self.asked for request in batch.requests]

    def stats(self) -> EngineStats:
        count = len(self.requests)
        return EngineStats(calls=count, answered=count, amount=money("0.01") * count)

    def close(self) -> None:
        self.ended.set()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.ended.is_set()


class _Lazy(Future[CallBatchResult]):
    """A future that is answered, if nothing else did it before, when somebody waits for it."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__()
        self._engine = engine

    def result(self, timeout: float | None = None) -> CallBatchResult:
        self._engine.release()
        return super().result(timeout)


@dataclass
class FakeEmbedder:
    """The vector of a text is its length, its first two characters' numbers, and one."""

    dtype: Any = np.float32
    groups: list[list[list[str]]] = field(default_factory=list)
    fingerprint_salt: str = ""
    closed: int = 0
    device_kind: str = "cpu"

    @property
    def space(self) -> VectorSpace:
        return VectorSpace("tiny", self.fingerprint_salt, "", "", "mean", False, 8, DIM, "float32", "float32")

    def embed_groups(self, groups: Sequence[Sequence[str]]) -> list[Embeddings]:
        self.groups.append([list(group) for group in groups])
        return [self._embed(group) for group in groups]

    def stats(self) -> EmbedStats:
        texts = sum(len(group) for call in self.groups for group in call)
        return EmbedStats(
            texts=texts,
            tokens=texts,
            slots=texts,
            steps=1,
            compilations=0,
            compile_seconds=0.0,
            device_seconds=0.0,
        )

    def close(self) -> None:
        self.closed += 1

    def _embed(self, texts: Sequence[str]) -> Embeddings:
        vectors = [[len(t), ord(t[0]), ord(t[-1]), 1] for t in texts]
        return Embeddings(
            vectors=np.array(vectors, self.dtype).reshape(len(texts), DIM),
            token_counts=np.array([len(t.split()) for t in texts], np.int32),
            truncated=np.array([len(t) > 50 for t in texts], bool),
            device_seconds=np.full(len(texts), 0.5),
            errors={i: "no tokens" for i, t in enumerate(texts) if t.startswith("!")},
        )


@dataclass
class FakeOpeners(Openers):
    """Opens the fakes, and counts how often."""

    fake_engine: FakeEngine = field(default_factory=FakeEngine)
    fake_embedder: FakeEmbedder = field(default_factory=FakeEmbedder)
    opened: list[str] = field(default_factory=list)

    def engine(self, workload: Workload, run: RunContext, budget_limit: Decimal | None) -> Any:
        self.opened.append("engine")
        return self.fake_engine

    def embedder(self, backend: EmbedderBackend, base_dir: Path, lengths: Any = None) -> Any:
        self.opened.append("embedder")
        return self.fake_embedder


def failing(answer: Answer, is_bad: Callable[[CallRequest], bool], **changes: Any) -> Answer:
    """An answer that is changed for some requests."""
    return lambda request: replace(answer(request), **changes) if is_bad(request) else answer(request)
