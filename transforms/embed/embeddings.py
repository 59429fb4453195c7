"""What embedding gives: vectors with what belongs to their rows, and counts of what was done. No JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import numpy as np

from transforms.embed.space import VectorSpace


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

    @property
    def piece_counts(self) -> np.ndarray:
        """Pieces of each text, `[texts]` int32."""
        return np.ones(len(self.token_counts), np.int32) if self.chunks is None else self.chunks


@dataclass(frozen=True, slots=True)
class EmbedStats:
    """What an embedder has done since it was opened. `tokens / slots` is how full the steps were.

    `texts` grows with every step, the other counters of a call when it is through. `compile_seconds` are
    those of all programs, `warm_up_seconds` those that texts waited for them, and neither is device time;
    `late_compilations` are those after the first step, which a run of one kind of documents has at its
    beginning only, and `steady_compilations` those of them after many steps. `idle_seconds` are device
    seconds without work between the first step and the last.
    """

    texts: int = 0
    tokens: int = 0
    slots: int = 0
    steps: int = 0
    compilations: int = 0
    compile_seconds: float = 0.0
    device_seconds: float = 0.0
    late_compilations: int = 0
    warm_up_seconds: float = 0.0
    idle_seconds: float = 0.0
    steady_compilations: int = 0

    @property
    def filled(self) -> float:
        """Share of the slots that held a token; 1 before the first step."""
        return self.tokens / self.slots if self.slots else 1.0

    def plus(self, other: EmbedStats, sign: int = 1) -> EmbedStats:
        """The sum of both, or with `sign=-1` the difference."""
        theirs = asdict(other)
        return EmbedStats(**{name: value + sign * theirs[name] for name, value in asdict(self).items()})

    def shared(self) -> EmbedStats:
        """What of it belongs to no single call: compilation and idle time."""
        return replace(self, texts=0, tokens=0, slots=0, steps=0, device_seconds=0.0)


class TextEmbedder(Protocol):
    """What embeds: in this process, or through the embedder host."""

    @property
    def space(self) -> VectorSpace:
        """The space of its vectors."""

    @property
    def device_kind(self) -> str:
        """What JAX calls its devices: the price book knows some by that name."""

    def embed_groups(self, groups: Sequence[Sequence[str]]) -> list[Embeddings]:
        """The vectors of several batches, handed back per batch, in order."""

    def stats(self) -> EmbedStats:
        """What was done so far."""

    def close(self) -> None:
        """Let go of what nobody else uses; called when a run has ended."""


def in_groups(whole: Embeddings, groups: Sequence[Sequence[str]]) -> list[Embeddings]:
    """The vectors of all groups' texts, group by group."""
    ends = np.cumsum([len(group) for group in groups]).tolist()
    return [_slice(whole, end - len(group), end) for group, end in zip(groups, ends, strict=True)]


def _slice(whole: Embeddings, start: int, end: int) -> Embeddings:
    return Embeddings(
        whole.vectors[start:end],
        whole.token_counts[start:end],
        whole.truncated[start:end],
        whole.device_seconds[start:end],
        {row - start: reason for row, reason in whole.errors.items() if start <= row < end},
        None if whole.chunks is None else whole.chunks[start:end],
    )
