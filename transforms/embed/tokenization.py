"""Texts to token ids: threaded, cut before the work is done where the cut can't change the result."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer, normalizers

from transforms.embed.chunks import ChunkCutter

CHARS_PER_TOKEN = 16
"""A first look takes this many characters for each token of the maximum length. English has about 4.5
characters a token, so nearly every text is settled by the first look."""
MAX_CHARS = 1 << 20
"""No more characters of a text are ever looked at. Beyond it, and only there, a text whose first
1,048,576 characters give fewer tokens than the maximum is cut short (and says `truncated`)."""
CHUNK, CHUNK_CHARS = 1024, MAX_CHARS
"""Texts and characters that are tokenised at a time: the library takes about 200 bytes for each token of them
until they are through, also for tokens beyond the maximum length."""
_LOOK_GROWTH = 8
# Pre-tokenizers that decide each word boundary from the characters beside it alone: what follows a
# complete word can't change the words before it.
_LOCAL_PRE_TOKENIZERS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Token ids of many texts, in pieces: a text is one piece, or several chunks in a row.

    Piece i has `ids[offsets[i]:offsets[i + 1]]`, special tokens included, and belongs to text
    `owners[i]`. A text in `errors` has one piece without tokens.
    """

    ids: np.ndarray  # [total] int32
    offsets: np.ndarray  # [pieces + 1] int64
    owners: np.ndarray  # [pieces] int64, ascending
    truncated: np.ndarray  # [texts] bool
    errors: dict[int, str]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each piece, `[pieces]` int64."""
        return np.diff(self.offsets)

    @property
    def pieces(self) -> np.ndarray:
        """Number of pieces of each text, `[texts]` int64."""
        return np.bincount(self.owners, minlength=len(self.truncated))

    def texts_begun(self, pieces: np.ndarray) -> int:
        """How many of some pieces are the first ones of their texts."""
        before = self.owners[np.maximum(pieces - 1, 0)]
        return int(np.count_nonzero((before != self.owners[pieces]) | (pieces == 0)))

    @property
    def token_counts(self) -> np.ndarray:
        """Tokens of each text, `[texts]` int64; what chunks share is counted in each of them."""
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.pieces)])
        return np.diff(self.offsets[first])


class TokenizerError(Exception):
    """The tokenizer's own words for what it can't do."""


@contextmanager
def tokenizer_errors() -> Iterator[None]:
    """What the library raises, as one kind of error: bare exceptions, and panics that are no Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(str(error)) from error


class TextTokenizer:
    """A tokenizer.json at one maximum length. Safe to use from several threads.

    The file's own padding and truncation are overruled by `max_length`. With a `chunk_overlap`, longer
    texts are not truncated but come in chunks of at most `max_length` tokens, each with prompt and
    special tokens of its own, that share as many tokens with the chunk before.

    Raises:
        ModelError: prompt, special tokens and overlap leave no room in a chunk.
    """

    def __init__(
        self,
        path: Path,
        max_length: int,
        prompt: str = "",
        lowercase: bool = False,
        chunk_overlap: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer_of(path, lowercase)
        self._tokenizer.no_padding()
        self._chunks = None
        if chunk_overlap is not None:
            self._chunks = ChunkCutter(tokenizer_of(path, lowercase), max_length, prompt, chunk_overlap)
        self._tokenizer.enable_truncation(max_length)
        self._first_look = CHARS_PER_TOKEN * max_length
        self._prompt = prompt
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._margin = max((len(token.content) for token in added), default=0)
        self._local = type(self._tokenizer.pre_tokenizer).__name__ in _LOCAL_PRE_TOKENIZERS

    def encode(self, texts: Sequence[str]) -> TokenizedTexts:
        """Token ids of the texts; a text that can't be tokenised gets an error, never an exception."""
        errors: dict[int, str] = {}
        ids: list[array[int]] = []
        owners: list[int] = []
        truncated: list[bool] = []
        for start, end in _bounds(texts):
            for pieces, cut in self._encode_chunk(texts[start:end], start, errors):
                owners.extend([len(truncated)] * len(pieces))
                ids.extend(pieces)
                truncated.append(cut)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        for piece in np.flatnonzero(lengths == 0).tolist():
            errors.setdefault(owners[piece], "the text gives no tokens")
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        flat = np.frombuffer(b"".join(ids), np.int32)
        return TokenizedTexts(
            flat, offsets, np.array(owners, np.int64), np.array(truncated, dtype=bool), errors
        )

    def _encode_chunk(
        self, texts: Sequence[str], first_row: int, errors: dict[int, str]
    ) -> Iterable[_Pieces]:
        short: dict[int, str] = {}
        long: dict[int, str] = {}
        for position, text in enumerate(texts):
            problem = why_unusable(text)
            if problem:
                errors[first_row + position] = problem
                continue
            prepared = self._prompt + text
            (short if len(prepared) <= self._first_look else long)[position] = prepared
        done: dict[int, _Pieces] = {}
        for position, encoding in self._encode_short(short):
            if encoding is None or (self._chunks is not None and encoding.overflowing):
                long[position] = short[position]
            else:
                done[position] = ([_ids(encoding.ids)], bool(encoding.overflowing))
        for position, text in long.items():
            try:
                with tokenizer_errors():
                    done[position] = self._encode_alone(text)
            except TokenizerError as error:
                errors[first_row + position] = f"the tokenizer can't take the text: {error}"
        return [done.get(position, ([_ids()], False)) for position in range(len(texts))]

    def _encode_short(self, texts: Mapping[int, str]) -> Iterable[tuple[int, Encoding | None]]:
        """All at once; without any encoding if the tokenizer refuses one of them, without saying which."""
        try:
            with tokenizer_errors():
                encodings = self._tokenizer.encode_batch_fast(list(texts.values()))
        except TokenizerError:  # a vocabulary without a token for what is unknown
            return [(position, None) for position in texts]
        return zip(texts, encodings, strict=True)

    def _encode_alone(self, text: str) -> _Pieces:
        if self._chunks is not None:
            return [_ids(piece) for piece in self._chunks.cut(text[:MAX_CHARS])], len(text) > MAX_CHARS
        ids, cut = self._encode_long(text)
        return [_ids(ids)], cut

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


def _bounds(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where each chunk of the texts begins, and where the next one does."""
    start = chars = 0
    for position, text in enumerate(texts, start=1):
        chars += len(text) if isinstance(text, str) else 0
        if position - start == CHUNK or chars >= CHUNK_CHARS or position == len(texts):
            yield start, position
            start, chars = position, 0


_Pieces = tuple[list["array[int]"], bool]
"""The pieces of a text, and whether it was cut."""


def _ids(tokens: Iterable[int] = ()) -> array[int]:
    """Token ids in 4 bytes each: a list of them takes 36, and a group of documents may have millions."""
    return array("i", tokens)


def tokenizer_of(path: Path, lowercase: bool) -> Tokenizer:
    """The file's tokenizer; lowercasing comes before whatever else it does to a text."""
    tokenizer = Tokenizer.from_file(str(path))
    if lowercase:
        steps = [normalizers.Lowercase(), tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([step for step in steps if step is not None])
    return tokenizer


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
