"""Texts in, vectors out: the embedder that batches are handed to. JAX is imported when one is opened."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from schemas.backends import EmbedderBackend
from schemas.ids import canonical_json
from schemas.lengths import TextLengths
from transforms.embed.charge import device_charge
from transforms.embed.chunks import pool_chunks
from transforms.embed.embeddings import Embeddings, EmbedStats, TextEmbedder, in_groups
from transforms.embed.model_files import ModelDescription, describe_model, find_folder, model_files
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
    "TextEmbedder",
    "VectorSpace",
    "describe_model",
    "device_charge",
    "in_groups",
    "open_embedder",
]

ChooseShapes = Callable[[Mapping[int, float], bool], ShapeSet]
"""Shapes for texts by their lengths, see `shapes.shapes_for`; says whether those are all texts of a run."""
SAMPLE = 256
"""From so many texts on, a call's lengths are taken for those of the run."""
COMPANY_TOLERANCE = {"float32": 2e-6, "bfloat16": 5e-3}
"""By how much a component of a normalised vector may depend on the texts embedded with it. Measured over
all-MiniLM-L6-v2 and 364 texts, shuffled, dropped, doubled and alone: 1.4e-7 and 1.1e-3 at most."""


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
        choose: ChooseShapes,
    ) -> None:
        self.space = space
        self._tokenizer = tokenizer
        self._query_tokenizer = query_tokenizer
        self._runner = runner
        self._shapes = shapes
        self._choose: ChooseShapes | None = choose
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

    @property
    def device_kind(self) -> str:
        """What JAX calls its devices."""
        return self._runner.device_kind

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """The texts' vectors. Never raises because of a text: see `Embeddings.errors`."""
        return self.embed_groups([texts])[0]

    def embed_groups(self, groups: Sequence[Sequence[str]]) -> list[Embeddings]:
        """The vectors of several batches, which share steps; handed back per batch, in order."""
        whole, _ = self.embed_counted([text for group in groups for text in group])
        return in_groups(whole, groups)

    def embed_counted(
        self, texts: Sequence[str], on_texts: Callable[[int], None] | None = None
    ) -> tuple[Embeddings, EmbedStats]:
        """The texts' vectors, and what this call took: its texts, tokens, slots, steps and device seconds.

        `on_texts` is told after each step how many texts are through; what it raises ends the call.
        """
        tokens = self._tokenizer.encode(texts)
        self._settle_shapes(tokens.lengths)
        return self._embed(tokens, on_texts)

    def close(self) -> None:
        """Nothing: the process keeps it for its next run."""

    def for_queries(self) -> QueryEmbedder:
        """The same embedder for what is searched for: its texts get the query's prompt."""
        return QueryEmbedder(self.space, lambda texts: self._embed(self._query_tokenizer.encode(texts))[0])

    def stats(self) -> EmbedStats:
        """A snapshot of the counters."""
        done = self._runner.stats()
        with self._lock:
            return replace(done, tokens=self._tokens)

    def _settle_shapes(self, lengths: np.ndarray) -> None:
        """Chooses the shapes by the first sample that is large enough, and compiles them all.

        An embedder that was opened with its run's lengths has settled them before.
        """
        with self._choosing:
            if self._choose is not None and np.count_nonzero(lengths) >= SAMPLE:
                self._settle(self._choose(Counter(lengths[lengths > 0].tolist()), False))

    def settle_shapes(self, lengths: TextLengths) -> None:
        """Chooses the shapes for texts of these lengths, and compiles them all; once, before any text."""
        with self._choosing:
            if self._choose is not None and lengths.counts:
                self._settle(self._choose(lengths.scaled(), True))

    def _settle(self, shapes: ShapeSet) -> None:
        self._shapes, self._choose = shapes, None
        self._runner.warm_up(shapes.every)

    def _embed(
        self, tokens: TokenizedTexts, on_texts: Callable[[int], None] | None = None
    ) -> tuple[Embeddings, EmbedStats]:
        steps = plan_steps(tokens.lengths, self._shapes)
        results = self._runner.run(tokens, steps, on_texts)
        with self._lock:
            self._tokens += len(tokens.ids)
        took = EmbedStats(
            texts=int(np.count_nonzero(tokens.token_counts)),
            tokens=len(tokens.ids),
            slots=sum(step.shape.slots for step in steps),
            steps=len(steps),
            device_seconds=sum(result.device_seconds for result in results),
        )
        return self._collect(tokens, results), took

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


@dataclass(frozen=True, slots=True)
class QueryEmbedder:
    """An embedder for queries: in the documents' space, with the query's prompt."""

    space: VectorSpace
    embed: Callable[[Sequence[str]], Embeddings]


_OPEN: dict[bytes, Embedder] = {}
_OPENING = threading.Lock()


def open_embedder(
    backend: EmbedderBackend,
    *,
    base_dir: Path,
    cache_dir: Path | None = None,
    lengths: TextLengths | None = None,
) -> Embedder:
    """The process's embedder for a backend: opened at the first call, the same one as long as its files stay.

    Args:
        backend: model, pooling, lengths and dtypes.
        base_dir: the folder that a relative `model_path` starts from.
        cache_dir: where compiled programs are kept; default `$SWITCHGEAR_CACHE_DIR`, else
            `~/.cache/switchgear`.
        lengths: of the run's texts, for which shapes are chosen and compiled; those of the first call count.
            None: the first call that is large enough decides.

    Raises:
        ModelError: the model can't be used; see `describe_model`.
    """
    # What it costs decides nothing about the embedder.
    what = backend.model_dump(mode="json", exclude={"price_per_device_hour", "device_watts"})
    files = model_files(find_folder(backend.model_path, base_dir))
    key = canonical_json([what, str(base_dir.resolve()), str(cache_dir), files])
    with _OPENING:
        if key not in _OPEN:
            from transforms.embed.opening import load_embedder

            _OPEN[key] = load_embedder(backend, base_dir, cache_dir)
        embedder = _OPEN[key]
    if lengths is not None:
        embedder.settle_shapes(lengths)
    return embedder
