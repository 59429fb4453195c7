"""Documents that are longer than the model: cut into chunks that overlap, and their vectors averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from schemas.errors import ModelError

if TYPE_CHECKING:
    from transforms.embed.tokenization import TokenizedTexts


class ChunkCutter:
    """Cuts texts into chunks of at most `max_length` tokens.

    A text is tokenised once as a whole; a chunk is a run of its tokens, with the prompt's tokens before
    it and the special tokens around, so that the first chunk is what truncation would have kept.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, prompt: str, overlap: int) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._max_length = max_length
        self._overlap = overlap
        self._before, self._after = _special_tokens(tokenizer)
        room = self._room(len(self._prompt_tokens(prompt)))
        if overlap >= room:
            raise ModelError(
                f"chunk_overlap = {overlap}: a chunk of max_length = {max_length} has room for "
                f"{max(0, room)} tokens besides special tokens and prompt. Choose a smaller overlap, or a "
                "larger max_length."
            )

    def cut(self, text: str) -> list[list[int]]:
        """The chunks of a text that begins with the prompt; one of nothing but specials if it is empty."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ends = np.array([end for _, end in encoding.offsets], np.int64)
        inside = int(np.searchsorted(ends, len(self._prompt), side="right")) if self._prompt else 0
        # Beside a text a prompt may have a token more than alone: a chunk never has one more for that.
        prompt, body = encoding.ids[:inside][: self._room(1)], encoding.ids[inside:]
        room = self._room(len(prompt))
        overlap = min(self._overlap, room - 1)
        starts = range(0, max(1, len(body) - overlap), room - overlap)
        return [[*self._before, *prompt, *body[at : at + room], *self._after] for at in starts]

    def _prompt_tokens(self, prompt: str) -> list[int]:
        return list(self._tokenizer.encode(prompt, add_special_tokens=False).ids)

    def _room(self, prompt_tokens: int) -> int:
        return self._max_length - len(self._before) - len(self._after) - prompt_tokens


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text."""
    encoding = tokenizer.encode("a")
    plain = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    if not plain:  # a tokenizer that doesn't know the letter
        return encoding.ids[:1], encoding.ids[1:]
    return encoding.ids[: plain[0]], encoding.ids[plain[-1] + 1 :]


def pool_chunks(vectors: np.ndarray, tokens: TokenizedTexts, normalize: bool) -> np.ndarray:
    """The vectors of texts, `[texts, dim]`: means of their chunks' vectors, weighted by tokens.

    With `normalize` the mean has length 1 again. A text of one chunk keeps its vector bit by bit.
    """
    counts = tokens.pieces
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])[:-1]
    pooled = vectors[first]
    weights = tokens.lengths.astype(np.float64)
    for text in np.flatnonzero(counts > 1).tolist():
        own = slice(first[text], first[text] + counts[text])
        mean = weights[own] @ vectors[own].astype(np.float64) / weights[own].sum()
        length = float(np.linalg.norm(mean)) if normalize else 1.0
        pooled[text] = mean / (length or 1.0)
    return pooled
