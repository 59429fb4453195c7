"""Texts to token ids: threaded, cut before the work is done where the cut can't change the result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

CHARS_PER_TOKEN = 16
"""A first look takes this many characters for each token of the maximum length. English has about 4.5
characters a token, so nearly every text is settled by the first look."""
MAX_CHARS = 1 << 20
"""No more characters of a text are ever looked at. Beyond it, and only there, a text whose first
1,048,576 characters give fewer tokens than the maximum is cut short (and says `truncated`)."""
CHUNK = 1024
_LOOK_GROWTH = 8
# Pre-tokenizers that decide each word boundary from the characters beside it alone: what follows a
# complete word can't change the words before it.
_LOCAL_PRE_TOKENIZERS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Token ids of many texts, one after the other.

    Text i has `ids[offsets[i]:offsets[i + 1]]`, special tokens included; none if it is in `errors`.
    """

    ids: np.ndarray  # [total] int32
    offsets: np.ndarray  # [texts + 1] int64
    truncated: np.ndarray  # [texts] bool
    errors: dict[int, str]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, `[texts]` int64."""
        return np.diff(self.offsets)


class TextTokenizer:
    """A tokenizer.json at one maximum length. Safe to use from several threads.

    The file's own padding and truncation are overruled by `max_length`.
    """

    def __init__(self, path: Path, max_length: int, prompt: str = "", lowercase: bool = False) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)
        self._first_look = CHARS_PER_TOKEN * max_length
        self._prompt = prompt
        self._lowercase = lowercase
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._margin = max((len(token.content) for token in added), default=0)
        self._local = type(self._tokenizer.pre_tokenizer).__name__ in _LOCAL_PRE_TOKENIZERS

    def encode(self, texts: Sequence[str]) -> TokenizedTexts:
        """Token ids of the texts; a text that can't be tokenised gets an error, never an exception."""
        errors: dict[int, str] = {}
        ids: list[list[int]] = []
        truncated: list[bool] = []
        for start in range(0, len(texts), CHUNK):
            for chunk_ids, cut in self._encode_chunk(texts[start : start + CHUNK], start, errors):
                ids.append(chunk_ids)
                truncated.append(cut)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        for row in np.flatnonzero(lengths == 0).tolist():
            errors.setdefault(row, "the text gives no tokens")
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        flat = np.fromiter(chain.from_iterable(ids), np.int32, int(offsets[-1]))
        return TokenizedTexts(flat, offsets, np.array(truncated, dtype=bool), errors)

    def _encode_chunk(
        self, texts: Sequence[str], first_row: int, errors: dict[int, str]
    ) -> Iterable[tuple[list[int], bool]]:
        short: dict[int, str] = {}
        long: dict[int, str] = {}
        for position, text in enumerate(texts):
            problem = why_unusable(text)
            if problem:
                errors[first_row + position] = problem
                continue
            prepared = self._prompt + (text.lower() if self._lowercase else text)
            (short if len(prepared) <= self._first_look else long)[position] = prepared
        done: dict[int, tuple[list[int], bool]] = {}
        encodings = self._tokenizer.encode_batch_fast(list(short.values()))
        for position, encoding in zip(short, encodings, strict=True):
            done[position] = (encoding.ids, bool(encoding.overflowing))
        for position, text in long.items():
            done[position] = self._encode_long(text)
        return [done.get(position, ([], False)) for position in range(len(texts))]

    def _encode_long(self, text: str) -> tuple[list[int], bool]:
        """Looks at a growing beginning of the text until what follows can't change the kept tokens.

        That is so once the kept tokens all belong to words before the last word of the beginning
        (those words are complete, and with a local pre-tokenizer each is tokenised by itself), and end
        so far from the cut that no added token such as `[MASK]` can have been cut in two there.
        """
        look = self._first_look if self._local else MAX_CHARS
        while look < min(len(text), MAX_CHARS):
            encoding = self._tokenizer.encode(text[:look])
            if _is_settled(encoding, look - self._margin):
                return encoding.ids, True
            look *= _LOOK_GROWTH
        encoding = self._tokenizer.encode(text[:MAX_CHARS])
        return encoding.ids, bool(encoding.overflowing) or len(text) > MAX_CHARS


def why_unusable(text: object) -> str | None:
    """Why a value can't be tokenised at all, or None: not a string, or a lone surrogate in it."""
    if not isinstance(text, str):
        return f"the text is of type {type(text).__name__}, not a string"
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        return f"character {error.start} of the text is a lone surrogate (U+{code:04X}), no valid Unicode"
    return None


def _is_settled(encoding: Encoding, safe_end: int) -> bool:
    if not encoding.overflowing:
        return False
    words = zip(encoding.word_ids, encoding.offsets, strict=True)
    kept = [(word, end) for word, (_, end) in words if word is not None]
    last = [word for word in encoding.overflowing[-1].word_ids if word is not None]
    return bool(kept and last) and kept[-1][0] < last[-1] and kept[-1][1] <= safe_end
