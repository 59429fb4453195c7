"""How long the texts are that go to an embedder: a histogram in tokens, small enough to travel."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

EDGES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Where two histograms are compared: about twice in each doubling."""


@dataclass(frozen=True, slots=True)
class TextLengths:
    """The texts of a sample by their tokens, and how many documents the sample is of and stands for.

    `counts` are pairs of tokens and texts, ascending; of a document that is embedded in chunks each chunk
    counts.
    """

    counts: tuple[tuple[int, int], ...]
    sampled: int
    documents: int

    @classmethod
    def of(cls, seen: Mapping[int, int], sampled: int, documents: int) -> TextLengths:
        """The histogram of a sample in which `seen[n]` texts have n tokens; those without any don't count."""
        return cls(tuple(sorted((n, texts) for n, texts in seen.items() if n > 0)), sampled, documents)

    @classmethod
    def merged(cls, parts: Iterable[TextLengths]) -> TextLengths:
        """All parts together."""
        seen: Counter[int] = Counter()
        sampled = documents = 0
        for part in parts:
            seen.update(dict(part.counts))
            sampled += part.sampled
            documents += part.documents
        return cls.of(seen, sampled, documents)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TextLengths:
        """The histogram behind `to_dict`."""
        counts = tuple((int(n), int(texts)) for n, texts in data["counts"])
        return cls(counts, int(data["sampled"]), int(data["documents"]))

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        counts = [list(pair) for pair in self.counts]
        return {"counts": counts, "sampled": self.sampled, "documents": self.documents}

    @property
    def mean(self) -> float:
        """Tokens of a document on average; 0 without documents."""
        return sum(n * texts for n, texts in self.counts) / self.sampled if self.sampled else 0.0

    def scaled(self) -> dict[int, float]:
        """How many texts of all documents have so many tokens; at least as many as were sampled."""
        factor = max(1.0, self.documents / max(1, self.sampled))
        return {n: texts * factor for n, texts in self.counts}

    def distance(self, other: TextLengths) -> float:
        """The share of texts that would have to change length for both to be alike, over `EDGES`: 0 to 1."""
        pairs = zip(self._shares(), other._shares(), strict=True)
        return sum(abs(own - theirs) for own, theirs in pairs) / 2

    def _shares(self) -> list[float]:
        shares = [0.0] * (len(EDGES) + 1)
        total = sum(texts for _, texts in self.counts)
        for n, texts in self.counts:
            shares[bisect_left(EDGES, n)] += texts / total
        return shares
