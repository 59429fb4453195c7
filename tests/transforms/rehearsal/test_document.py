import pytest

from transforms.rehearsal.document import document_in, opening, words_of


@pytest.mark.parametrize(
    ("prompt", "document"),
    [
        ("Do it.\n<document>\nA text.\n</document>\nThank you.", "A text."),
        (
            "<document>with <b>markup</b> and </document> in it</document> end",
            "with <b>markup</b> and </document> in it",
        ),
        ("<document>never closed", "never closed"),
        ("Classify:\n\nThe text.\n\nMore of it.", "The text.\n\nMore of it."),
        ("Only this", "Only this"),
        ("Ends with a blank line\n\n", "Ends with a blank line"),
        ("", ""),
    ],
)
def test_the_document_is_found_in_the_prompt(prompt, document):
    assert document_in(prompt) == document


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("One sentence. Another.", 80, "One sentence."),
        ("Version 2.1 of it! More", 80, "Version 2.1 of it!"),
        ("no end in sight", 80, "no end in sight"),
        ("whole words only here", 13, "whole words"),
        ("exactlyhere fits", 11, "exactlyhere"),
        ("unbreakable", 4, "unbr"),
        ("anything", 0, ""),
    ],
)
def test_the_opening_is_a_sentence_or_whole_words_within_the_limit(text, limit, expected):
    assert opening(text.split(), limit) == expected


def test_there_is_always_a_word_to_say():
    assert words_of(" \n ") == ["nothing"]
    assert words_of("a  b\nc") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("# Title\n\n[![badge](https://x/b.svg)](https://x) A [link](https://y) here.", "Title A link here."),
        ('<p align="center">\n<img src="x"> Bold <b>text</b>\n</p>', "Bold text"),
        ("Title\n=====\n\n.. image:: x.png\n   :alt: y\n\nText ... with dots.", "Title Text ... with dots."),
        ("Smaller < than > greater, x[0](1)", "Smaller < than > greater, x0"),
        ("-----", "-----"),
    ],
)
def test_markup_is_no_words(document, words):
    assert " ".join(words_of(document)) == words
