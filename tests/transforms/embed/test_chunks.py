"""Documents longer than the model: chunks that overlap, and the mean of their vectors."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors

from schemas.errors import ModelError
from tests.transforms.embed.tiny_model import backend, tiny_tokenizer
from transforms.embed.chunks import ChunkCutter, pool_chunks
from transforms.embed.embedder import COMPANY_TOLERANCE, Embedder, open_embedder
from transforms.embed.tokenization import MAX_CHARS, TextTokenizer, TokenizedTexts

CLS, SEP = 2, 3
TOLERANCE = COMPANY_TOLERANCE["float32"]
BROKEN = "broken \ud83d"
LENGTHS = [0, 1, 5, 97, 98, 99, 150, 300]  # room for 98 tokens besides [CLS] and [SEP]
POOL = [" ".join("abcdefghijklmnopqrstuvwxyz"[(n + i) % 26] for i in range(n)) for n in LENGTHS]


def cutter(max_length: int, overlap: int, prompt: str = "") -> ChunkCutter:
    return ChunkCutter(tiny_tokenizer(), max_length, prompt, overlap)


def plain_ids(text: str) -> list[int]:
    return list(tiny_tokenizer().encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def chunking(tiny_folder: Path, cache_dir: Path) -> Embedder:
    chosen = backend(tiny_folder, long_documents="chunk", chunk_overlap=10)
    return open_embedder(chosen, base_dir=tiny_folder, cache_dir=cache_dir)


@pytest.fixture(scope="module")
def alone(chunking: Embedder) -> dict[str, np.ndarray]:
    return {text: chunking.embed([text]).vectors[0] for text in POOL}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(4, 12), st.data())
def test_chunks_cover_every_token_once_but_for_the_overlap(count: int, max_length: int, data: st.DataObject):
    overlap = data.draw(st.integers(0, max_length - 3))
    text = " ".join("abcdefghijklmnopqrstuvwxyz"[i % 26] for i in range(count))
    chunks = cutter(max_length, overlap).cut(text)
    assert all(chunk[0] == CLS and chunk[-1] == SEP and len(chunk) <= max_length for chunk in chunks)
    bodies = [chunk[1:-1] for chunk in chunks]
    assert bodies[0] + [token for body in bodies[1:] for token in body[overlap:]] == plain_ids(text)
    for before, after in pairwise(bodies):
        assert before[len(before) - overlap :] == after[:overlap]
        assert len(after) > overlap  # every chunk brings something new


def test_a_text_that_fits_is_one_chunk_and_what_truncation_would_give():
    text = "a b c d e f"
    assert cutter(8, 2).cut(text) == [tiny_tokenizer().encode(text).ids]
    assert cutter(7, 2).cut(text)[0] == [CLS, *plain_ids("a b c d e"), SEP]


def test_every_chunk_begins_with_the_prompt():
    chunks = cutter(10, 1, "q x ").cut("q x a b c d e f g h i")
    prompt = plain_ids("q x")
    assert len(chunks) == 2
    assert all(chunk[1:3] == prompt for chunk in chunks)
    assert chunks[0][3:-1] + chunks[1][4:-1] == plain_ids("a b c d e f g h i")
    assert chunks[0][-2] == chunks[1][3]


def test_a_prompt_that_has_more_tokens_beside_the_text_makes_no_chunk_longer():
    pieces = {token: n for n, token in enumerate(["[CLS]", "[SEP]", "p", "pp", "pppp", "px", "x"])}
    tokenizer = Tokenizer(models.BPE(pieces, [("p", "x"), ("p", "p"), ("pp", "pp")]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    assert [len(tokenizer.encode(text).ids) - 2 for text in ("pppp", "ppppxxxx")] == [1, 6]
    chunks = ChunkCutter(tokenizer, 4, "pppp", 0).cut("ppppxxxx")
    assert [len(chunk) for chunk in chunks] == [4] * 4
    assert [chunk[2] for chunk in chunks] == [pieces[token] for token in ("px", "x", "x", "x")]


def test_an_empty_text_is_a_chunk_of_special_tokens():
    assert cutter(8, 2).cut("") == [[CLS, SEP]]


@pytest.mark.parametrize(("max_length", "overlap", "prompt"), [(8, 6, ""), (8, 5, "q"), (3, 0, "q")])
def test_an_overlap_that_leaves_no_room_is_refused(max_length: int, overlap: int, prompt: str):
    with pytest.raises(ModelError, match=f"chunk_overlap = {overlap}"):
        cutter(max_length, overlap, prompt)


def test_the_tokens_of_chunks_are_counted_with_their_text(tiny_folder: Path):
    made = TextTokenizer(tiny_folder / "tokenizer.json", 8, chunk_overlap=2).encode(
        ["a", "a b c d e f g h", BROKEN, "", "a b c d e f g h i j k"]
    )
    assert made.pieces.tolist() == [1, 2, 1, 1, 3]
    assert made.owners.tolist() == [0, 1, 1, 2, 3, 4, 4, 4]
    assert made.lengths.tolist() == [3, 8, 6, 0, 2, 8, 8, 5]
    assert made.token_counts.tolist() == [3, 14, 0, 2, 21]
    assert not made.truncated.any()
    assert list(made.errors) == [2]
    assert made.texts_begun(np.array([0, 2, 4, 7])) == 2
    assert made.texts_begun(np.arange(8)) == 5


def test_what_stands_beyond_the_hard_limit_is_dropped_and_said_so(tiny_folder: Path):
    tokenizer = TextTokenizer(tiny_folder / "tokenizer.json", 100, chunk_overlap=0)
    made = tokenizer.encode(["a " * (MAX_CHARS // 2), "a " * (MAX_CHARS // 2) + "b"])
    assert made.truncated.tolist() == [False, True]
    assert made.pieces.tolist() == [-(-MAX_CHARS // 2 // 98)] * 2


def test_a_long_documents_vector_is_the_token_weighted_mean_of_its_chunks_with_length_one(
    chunking: Embedder, tiny: Embedder
):
    words = POOL[-1].split()
    parts = [" ".join(words[at : at + 98]) for at in (0, 88, 176, 264)]
    made = chunking.embed([POOL[-1]])
    weights = np.array([100, 100, 100, 38])
    assert made.chunks.tolist() == [4]
    assert made.token_counts.tolist() == [weights.sum()]
    assert made.truncated.tolist() == [False]
    mean = weights @ tiny.embed(parts).vectors
    np.testing.assert_allclose(made.vectors[0], mean / np.linalg.norm(mean), atol=TOLERANCE)


def test_the_end_of_a_long_document_counts_only_when_it_is_chunked(chunking: Embedder, tiny: Embedder):
    texts = [POOL[-1], POOL[-1] + " z z z"]
    chunked, cut = chunking.embed(texts).vectors, tiny.embed(texts).vectors
    assert np.abs(chunked[0] - chunked[1]).max() > 1e-4
    np.testing.assert_allclose(cut[0], cut[1], atol=TOLERANCE)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*POOL, BROKEN]), max_size=8), max_size=5))
def test_every_vector_is_its_own_texts_whatever_is_chunked_around_it(
    chunking: Embedder, alone: dict[str, np.ndarray], groups: list[list[str]]
):
    for part, group in zip(chunking.embed_groups(groups), groups, strict=True):
        assert sorted(part.errors) == [row for row, text in enumerate(group) if text == BROKEN]
        for row, text in enumerate(group):
            expected = np.zeros(chunking.dim) if text == BROKEN else alone[text]
            np.testing.assert_allclose(part.vectors[row], expected, atol=TOLERANCE)
            assert part.chunks[row] == (1 if len(text.split()) <= 98 else 2 if len(text.split()) < 200 else 4)


def test_device_seconds_of_chunks_are_their_documents(chunking: Embedder):
    before = chunking.stats()
    made = chunking.embed([POOL[-1], "a", POOL[-2]])
    after = chunking.stats()
    assert made.device_seconds.shape == (3,)
    assert made.device_seconds.sum() == pytest.approx(after.device_seconds - before.device_seconds)
    assert after.texts - before.texts == 3
    assert after.tokens - before.tokens == made.token_counts.sum()


def test_chunking_makes_another_space(chunking: Embedder, tiny: Embedder):
    assert chunking.space.fingerprint != tiny.space.fingerprint
    assert "chunk" in chunking.space.describe()


def test_without_normalising_the_mean_is_left_as_it_is():
    tokens = TokenizedTexts(
        np.zeros(6, np.int32), np.array([0, 1, 4, 6]), np.array([0, 0, 1]), np.zeros(2, bool), {}
    )
    vectors = np.array([[4, 0], [0, 4], [7, 7]], np.float32)
    np.testing.assert_allclose(pool_chunks(vectors, tokens, False), [[1, 3], [7, 7]])
    root = np.sqrt(10)
    np.testing.assert_allclose(pool_chunks(vectors, tokens, True), [[1 / root, 3 / root], [7, 7]], rtol=1e-6)


def test_kept_dimensions_are_the_first_ones_with_length_one_again(
    tiny_folder: Path, cache_dir: Path, tiny: Embedder
):
    chosen = backend(tiny_folder, dimensions=12)
    cut = open_embedder(chosen, base_dir=tiny_folder, cache_dir=cache_dir)
    whole = tiny.embed(POOL).vectors[:, :12]
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(cut.embed(POOL).vectors, expected, atol=TOLERANCE)
    assert cut.dim == cut.space.dim == 12
    assert "12 of 32 dimensions" in cut.space.describe()


def test_twelve_dimensions_of_more_are_said_to_be_so(tiny_folder: Path, cache_dir: Path):
    spaces = [
        open_embedder(backend(tiny_folder, dimensions=n), base_dir=tiny_folder, cache_dir=cache_dir).space
        for n in (12, 32)
    ]
    assert (spaces[0].cut_from, spaces[1].cut_from) == (32, 0)


def test_more_dimensions_than_the_model_has_are_refused(tiny_folder: Path, cache_dir: Path):
    with pytest.raises(ModelError, match="dimensions = 33"):
        open_embedder(backend(tiny_folder, dimensions=33), base_dir=tiny_folder, cache_dir=cache_dir)


def test_asking_for_all_dimensions_is_the_same_as_not_asking(
    tiny_folder: Path, cache_dir: Path, tiny: Embedder
):
    chosen = backend(tiny_folder, dimensions=32)
    opened = open_embedder(chosen, base_dir=tiny_folder, cache_dir=cache_dir)
    assert opened.space.fingerprint == tiny.space.fingerprint


def test_one_prompt_and_no_overlap_without_chunks(tiny_folder: Path):
    with pytest.raises(ValueError, match="either `prompt_name` or `prefix`"):
        backend(tiny_folder, prompt_name="a", prefix="b")
    with pytest.raises(ValueError, match="chunk_overlap"):
        backend(tiny_folder, chunk_overlap=3)
