"""Token ids, truncation, and cutting giant texts before the work is done."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.transforms.embed.tiny_model import tiny_tokenizer
from transforms.embed.tokenization import (
    CHARS_PER_TOKEN,
    CHUNK,
    CHUNK_CHARS,
    MAX_CHARS,
    TextTokenizer,
    TokenizedTexts,
    _bounds,
    why_unusable,
)

MAX_LENGTH = 8
FIRST_LOOK = CHARS_PER_TOKEN * MAX_LENGTH


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tiny_tokenizer().save(str(path))
    return TextTokenizer(path, MAX_LENGTH)


def ids_of(tokens: TokenizedTexts, row: int) -> list[int]:
    return tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]].tolist()


def whole(text: str) -> tuple[list[int], bool]:
    """What the library gives when it tokenises everything."""
    plain = tiny_tokenizer()
    full = len(plain.encode(text).ids) > MAX_LENGTH
    plain.enable_truncation(MAX_LENGTH)
    return plain.encode(text).ids, full


# Pieces that are hard at a cut: long words, marks that combine, added tokens, no spaces at all.
PIECES = st.sampled_from(
    [
        "a",
        "word ",
        "x" * 50,
        "y" * 150,
        " ",
        "\n\n",
        "漢",
        "字漢",
        "e\u0301",
        "\u0301",
        "[MASK]",
        "[SEP",
        "]",
        ". ",
        "...",
        "\u00a0",
        "\u200b",
        "😀",
        "ß",
        "İ",
        "ﬁ",
        "\x00",
        "-",
        "مرحبا ",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(PIECES, st.integers(1, 60)), min_size=1, max_size=12))
def test_cutting_a_long_text_first_never_changes_its_tokens(
    tokenizer: TextTokenizer, parts: list[tuple[str, int]]
):
    text = "".join(piece * times for piece, times in parts)
    tokens = tokenizer.encode([text])
    assert (ids_of(tokens, 0), bool(tokens.truncated[0])) == whole(text)


@pytest.mark.parametrize("shift", range(12))
def test_an_added_token_across_the_cut_is_not_torn(tokenizer: TextTokenizer, shift: int):
    text = " " * (FIRST_LOOK - shift) + "[MASK]" + " a b c d e f g h"
    tokens = tokenizer.encode([text])
    assert (ids_of(tokens, 0), bool(tokens.truncated[0])) == whole(text)
    assert 4 in ids_of(tokens, 0)


@pytest.mark.parametrize("shift", range(4))
def test_a_word_across_the_cut_is_taken_whole(tokenizer: TextTokenizer, shift: int):
    text = " " * (FIRST_LOOK - 5 - shift) + "a b c d e f" + "g" * 200
    tokens = tokenizer.encode([text])
    assert (ids_of(tokens, 0), bool(tokens.truncated[0])) == whole(text)


def test_a_text_of_exactly_the_maximum_length_is_not_truncated(tokenizer: TextTokenizer):
    tokens = tokenizer.encode(["a b c d e f", "a b c d e f g"])
    assert tokens.lengths.tolist() == [8, 8]
    assert tokens.truncated.tolist() == [False, True]
    assert ids_of(tokens, 0)[0] == 2
    assert ids_of(tokens, 1)[-1] == 3


def test_what_stands_beyond_the_hard_limit_is_dropped_and_said_so(tokenizer: TextTokenizer):
    inside, outside = " " * (MAX_CHARS - 1) + "a", " " * MAX_CHARS + "a"
    tokens = tokenizer.encode([inside, outside])
    assert tokens.lengths.tolist() == [3, 2]
    assert tokens.truncated.tolist() == [False, True]


def test_a_word_of_ten_megabytes_is_looked_at_up_to_the_hard_limit_only(tokenizer: TextTokenizer):
    tokens = tokenizer.encode(["w" * 10_000_000, "w" * MAX_CHARS + " seen by nobody", "w" * MAX_CHARS])
    assert [ids_of(tokens, row) for row in range(3)] == [[2, 1, 3]] * 3
    assert tokens.truncated.tolist() == [True, True, False]


def test_a_hundred_thousand_tokens_are_settled_by_the_first_look(tokenizer: TextTokenizer):
    text = "a b " * 50_000
    tokens = tokenizer.encode([text])
    assert tokens.lengths.tolist() == [MAX_LENGTH]
    assert tokens.truncated.tolist() == [True]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("ok \ud800", "character 3 of the text is a lone surrogate (U+D800)"),
        ("\udfff", "character 0 of the text is a lone surrogate (U+DFFF)"),
        (None, "of type NoneType"),
        (b"bytes", "of type bytes"),
        (3, "of type int"),
    ],
)
def test_what_is_no_text_is_an_error_of_its_row_alone(tokenizer: TextTokenizer, value: object, reason: str):
    tokens = tokenizer.encode(["a b", value, "漢"])
    assert list(tokens.errors) == [1]
    assert reason in tokens.errors[1]
    assert ids_of(tokens, 0) == whole("a b")[0]
    assert ids_of(tokens, 1) == []
    assert ids_of(tokens, 2) == whole("漢")[0]


def test_a_surrogate_far_behind_the_cut_is_found_too(tokenizer: TextTokenizer):
    assert list(tokenizer.encode(["a " * 10_000 + "\ud83d"]).errors) == [0]


@pytest.mark.parametrize(
    "text", ["", " \t\n", "\x00\x01\x02", "مرحبا", "😀", "\u202eabc", "\ufeff", "e\u0301" * 99]
)
def test_odd_but_valid_texts_are_tokenised_as_the_library_does(tokenizer: TextTokenizer, text: str):
    tokens = tokenizer.encode([text])
    assert tokens.errors == {}
    assert (ids_of(tokens, 0), bool(tokens.truncated[0])) == whole(text)


def test_a_text_without_any_token_is_an_error_when_no_special_tokens_are_added(tmp_path: Path):
    plain = tiny_tokenizer()
    plain.post_processor = None
    data = plain.to_str()
    path = tmp_path / "tokenizer.json"
    path.write_text(data, encoding="utf-8")
    tokens = TextTokenizer(path, MAX_LENGTH).encode(["a", "", "b"])
    assert tokens.errors == {1: "the text gives no tokens"}
    assert tokens.lengths.tolist() == [1, 0, 1]


@pytest.mark.parametrize("overlap", [None, 1])
def test_a_tokenizer_without_a_token_for_the_unknown_fails_the_rows_that_need_one(
    tmp_path: Path, overlap: int | None
):
    pieces = {"[CLS]": 0, "[SEP]": 1, "a": 2, "b": 3}
    plain = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    plain.save(str(tmp_path / "tokenizer.json"))
    tokens = TextTokenizer(tmp_path / "tokenizer.json", MAX_LENGTH, chunk_overlap=overlap).encode(
        ["a b", "c", "b", "a " * 200 + "c" * 300]
    )
    assert sorted(tokens.errors) == ([1] if overlap is None else [1, 3])  # where the end counts
    assert tokens.errors[1].startswith("the tokenizer can't take the text: ")
    assert [ids_of(tokens, row) for row in range(3)] == [[0, 2, 3, 1], [], [0, 3, 1]]
    assert ids_of(tokens, 3) == ([0, *[2] * 6, 1] if overlap is None else [])


def test_lowercasing_is_the_tokenizers_and_leaves_special_tokens_alone(tmp_path: Path):
    """As sentence-transformers does it: before all else that the tokenizer does, the prompt included."""
    plain = tiny_tokenizer()
    plain.normalizer = None
    plain.save(str(tmp_path / "tokenizer.json"))
    lower = TextTokenizer(tmp_path / "tokenizer.json", MAX_LENGTH, "A ", lowercase=True)
    plain.normalizer = normalizers.Lowercase()
    for text in ("B [MASK] c", "ΣΑΣ"):
        assert ids_of(lower.encode([text]), 0) == plain.encode("a " + text).ids


def test_token_ids_take_four_bytes_each_while_they_are_gathered(tokenizer: TextTokenizer, tmp_path: Path):
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    chunking = TextTokenizer(tmp_path / "tokenizer.json", 100, chunk_overlap=0)
    text = "a b c d " * 10_000
    tracemalloc.start()
    tokens = chunking.encode([text] * 12)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(tokens.ids) > 12 * 40_000
    # All of them twice, gathered and joined, and one text's as the library gives them.
    assert most < 2.5 * tokens.ids.nbytes + 40_000 * 100


def test_the_files_own_padding_and_truncation_are_overruled(tmp_path: Path):
    plain = tiny_tokenizer()
    plain.enable_padding(length=64)
    plain.enable_truncation(4)
    plain.save(str(tmp_path / "tokenizer.json"))
    tokens = TextTokenizer(tmp_path / "tokenizer.json", 6).encode(["a", "a b c d e f"])
    assert tokens.lengths.tolist() == [3, 6]


def test_rows_keep_their_places_across_chunks(tokenizer: TextTokenizer):
    texts = [chr(ord("a") + i % 26) for i in range(3000)]
    texts[1500] = "\ud800"
    tokens = tokenizer.encode(texts)
    expected = [[] if i == 1500 else whole(text)[0] for i, text in enumerate(texts[:30])]
    assert [ids_of(tokens, i) for i in range(30)] == expected
    assert ids_of(tokens, 2999) == whole(texts[2999])[0]
    assert list(tokens.errors) == [1500]


def test_no_more_than_some_characters_are_tokenised_at_a_time(tokenizer: TextTokenizer):
    texts = ["a " * (CHUNK_CHARS // 8)] * 10 + ["b"] * CHUNK + ["c " * (CHUNK_CHARS // 2)] * 2 + ["d"]
    bounds = list(_bounds(texts))
    assert bounds == [
        (0, 4),
        (4, 8),
        (8, 8 + CHUNK),
        (8 + CHUNK, 11 + CHUNK),
        *((n + CHUNK, n + 1 + CHUNK) for n in (11, 12)),
    ]
    assert list(_bounds([])) == []
    assert list(_bounds([None, "a"])) == [(0, 2)]  # type: ignore[list-item]


def test_no_texts_give_no_tokens(tokenizer: TextTokenizer):
    tokens = tokenizer.encode([])
    assert (len(tokens.ids), tokens.lengths.tolist(), tokens.errors) == (0, [], {})


def test_usable_texts_have_no_problem():
    assert why_unusable("") is None
    assert why_unusable("plain") is None
    assert why_unusable("😀") is None
