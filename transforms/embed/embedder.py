"""Texts in, vectors out: the embedder that batches are handed to. JAX is imported when one is opened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from schemas.ids import canonical_json
from schemas.workload import EmbedderBackend
from transforms.embed.charge import device_charge
from transforms.embed.chunks import pool_chunks
from transforms.embed.model_files import ModelDescription, describe_model
from transforms.embed.packing import ShapeSet, plan_steps
from transforms.embed.space import VectorSpace
from transforms.embed.tokenization import TextTokenizer, TokenizedTexts

if TYPE_CHECKING:
    from transforms.embed.runner import StepResult, StepRunner

__all__ = [
    "COMPANY_TOLERANCE",
    "EmbedStats",
    "Embedder",
    "Embeddings",
    "ModelDescription",
    "VectorSpace",
    "describe_model",
    "device_charge",
    "open_embedder",
]

SAMPLE = 256
"""From so many texts on, a call's lengths are taken for those of the run."""
COMPANY_TOLERANCE = {"float32": 2e-6, "bfloat16": 5e-3}
"""By how much a component of a normalised vector may depend on the texts embedded with it. Measured over
all-MiniLM-L6-v2 and 364 texts, shuffled, dropped, doubled and alone: 1.4e-7 and 1.1e-3 at most."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of one batch of texts; row i is text i, whatever happened to its neighbours.

    `vectors` is float32, or float16 when the output dtype is float16 or bfloat16 (bfloat16 is
    rounded to bfloat16 first). A row in `errors` has zeros for a vector, which must not be used.
    `device_seconds` are the rows' shares, by tokens, of the time measured for their steps; empty
    slots are in the shares.
    """

    vectors: np.ndarray  # [texts, dim]
    token_counts: np.ndarray  # [texts] int32, tokens that were embedded, special ones included
    truncated: np.ndarray  # [texts] bool
    device_seconds: np.ndarray  # [texts] float64
    errors: dict[int, str]  # row → reason
    chunks: np.ndarray | None = None  # [texts] int32, pieces that a text was embedded in; None: one each


@dataclass(frozen=True, slots=True)
class EmbedStats:
    """What an embedder has done since it was opened. `tokens / slots` is how full the steps were.

    `texts` grows with every step, the other counters of a call when it is through. `compile_seconds` are
    those of all programs, `warm_up_seconds` those that texts waited for them, and neither is device time;
    `late_compilations` are those after the first step, which a run of one kind of documents has at its
    beginning only, and `steady_compilations` those of them after many steps. `idle_seconds` are device
    seconds without work between the first step and the last.
    """

    texts: int
    tokens: int
    slots: int
    steps: int
    compilations: int
    compile_seconds: float
    device_seconds: float
    late_compilations: int = 0
    warm_up_seconds: float = 0.0
    idle_seconds: float = 0.0
    steady_compilations: int = 0

    @property
    def padding_seconds(self) -> float:
        """Device seconds that were spent on empty slots, by their share of all slots."""
        return self.device_seconds * (1 - self.filled)

    @property
    def filled(self) -> float:
        """Share of the slots that held a token; 1 before the first step."""
        return self.tokens / self.slots if self.slots else 1.0


class Embedder:
    """A model on this process's devices. Every method may be called from any thread.

    A vector depends on its own text alone, up to `COMPANY_TOLERANCE`.
    """

    def __init__(
        self,
        space: VectorSpace,
        tokenizer: TextTokenizer,
        query_tokenizer: TextTokenizer,
        runner: StepRunner,
        shapes: ShapeSet,
        choose: Callable[[np.ndarray], ShapeSet],
    ) -> None:
        self.space = space
        self._tokenizer = tokenizer
        self._query_tokenizer = query_tokenizer
        self._runner = runner
        self._shapes = shapes
        self._choose: Callable[[np.ndarray], ShapeSet] | None = choose
        self._choosing = threading.Lock()
        self._lock = threading.Lock()
        self._tokens = 0

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.space.dim

    @property
    def dtype(self) -> np.dtype:
        """Dtype of `Embeddings.vectors`."""
        return np.dtype(np.float32 if self.space.dtype == "float32" else np.float16)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """The texts' vectors. Never raises because of a text: see `Embeddings.errors`."""
        return self.embed_groups([texts])[0]

    def embed_groups(self, groups: Sequence[Sequence[str]]) -> list[Embeddings]:
        """The vectors of several batches, which share steps; handed back per batch, in order."""
        tokens = self._tokenizer.encode([text for group in groups for text in group])
        self._settle_shapes(tokens.lengths)
        whole = self._embed(tokens)
        ends = np.cumsum([len(group) for group in groups]).tolist()
        return [_slice(whole, end - len(group), end) for group, end in zip(groups, ends, strict=True)]

    def for_queries(self) -> QueryEmbedder:
        """The same embedder for what is searched for: its texts get the query's prompt."""
        return QueryEmbedder(self.space, lambda texts: self._embed(self._query_tokenizer.encode(texts)))

    def stats(self) -> EmbedStats:
        """A snapshot of the counters."""
        done = self._runner.stats()
        with self._lock:
            return EmbedStats(
                texts=done.texts,
                tokens=self._tokens,
                slots=done.slots,
                steps=done.steps,
                compilations=done.compilations,
                compile_seconds=done.compile_seconds,
                device_seconds=done.device_seconds,
                late_compilations=done.late_compilations,
                warm_up_seconds=done.warm_up_seconds,
                idle_seconds=done.idle_seconds,
                steady_compilations=done.steady_compilations,
            )

    def _settle_shapes(self, lengths: np.ndarray) -> None:
        """Chooses the shapes by the first sample that is large enough, and compiles them all."""
        with self._choosing:
            if self._choose is not None and np.count_nonzero(lengths) >= SAMPLE:
                self._shapes, self._choose = self._choose(lengths), None
                self._runner.warm_up(self._shapes.every)

    def _embed(self, tokens: TokenizedTexts) -> Embeddings:
        results = self._runner.run(tokens, plan_steps(tokens.lengths, self._shapes))
        with self._lock:
            self._tokens += len(tokens.ids)
        return self._collect(tokens, results)

    def _collect(self, tokens: TokenizedTexts, results: Sequence[StepResult]) -> Embeddings:
        lengths = tokens.lengths
        vectors = np.zeros((len(lengths), self.dim), np.float32)
        seconds = np.zeros(len(lengths), np.float64)
        for step in results:
            vectors[step.pieces] = step.vectors
            own = lengths[step.pieces]
            seconds[step.pieces] = step.device_seconds * own / own.sum()
        if len(lengths) != len(tokens.truncated):
            vectors = pool_chunks(vectors, tokens, self.space.normalize)
            seconds = np.bincount(tokens.owners, seconds, len(tokens.truncated)).astype(np.float64)
        rounded = self._rounded(vectors)
        errors = dict(tokens.errors)
        for row in np.flatnonzero(~np.isfinite(rounded).all(axis=1)).tolist():
            errors[row] = (
                f"the vector is not finite in {self.space.compute_dtype} stored as {self.space.dtype}"
            )
            rounded[row] = 0
        counts, chunks = tokens.token_counts.astype(np.int32), tokens.pieces.astype(np.int32)
        return Embeddings(rounded, counts, tokens.truncated, seconds, errors, chunks)

    def _rounded(self, vectors: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows becomes an error of its row
            if self.space.dtype == "bfloat16":
                vectors = vectors.astype(ml_dtypes.bfloat16).astype(np.float32)
            return vectors.astype(self.dtype, copy=False)


def _slice(whole: Embeddings, start: int, end: int) -> Embeddings:
    return Embeddings(
        whole.vectors[start:end],
        whole.token_counts[start:end],
        whole.truncated[start:end],
        whole.device_seconds[start:end],
        {row - start: reason for row, reason in whole.errors.items() if start <= row < end},
        None if whole.chunks is None else whole.chunks[start:end],
    )


@dataclass(frozen=True, slots=True)
class QueryEmbedder:
    """An embedder for queries: in the documents' space, with the query's prompt."""

    space: VectorSpace
    embed: Callable[[Sequence[str]], Embeddings]


_OPEN: dict[bytes, Embedder] = {}
_OPENING = threading.Lock()


def open_embedder(backend: EmbedderBackend, *, base_dir: Path, cache_dir: Path | None = None) -> Embedder:
    """The process's embedder for a backend: opened at the first call, the same one ever after.

    Args:
        backend: model, pooling, lengths and dtypes.
        base_dir: the folder that a relative `model_path` starts from.
        cache_dir: where compiled programs are kept; default `$SWITCHGEAR_CACHE_DIR`, else
            `~/.cache/switchgear`.

    Raises:
        ModelError: the model can't be used; see `describe_model`.
    """
    # What it costs decides nothing about the embedder.
    what = backend.model_dump(mode="json", exclude={"price_per_device_hour", "device_watts"})
    key = canonical_json([what, str(base_dir.resolve()), str(cache_dir)])
    with _OPENING:
        if key not in _OPEN:
            from transforms.embed.opening import load_embedder

            _OPEN[key] = load_embedder(backend, base_dir, cache_dir)
        return _OPEN[key]
