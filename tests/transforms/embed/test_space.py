"""The fingerprint of a vector space."""

import dataclasses

import pytest

from transforms.embed.space import VectorSpace

SPACE = VectorSpace(
    model="m",
    weights_sha256="a" * 64,
    tokenizer_sha256="b" * 64,
    settings_sha256="c" * 64,
    pooling="mean",
    normalize=True,
    max_length=256,
    dim=384,
    compute_dtype="float32",
    dtype="float16",
)


def test_the_fingerprint_of_a_space_is_frozen():
    # Written into footers: a changed value would make every stored vector unreadable by search.
    assert SPACE.fingerprint == "space/1:60798a6dc7c694ec5b1dc2d3fbfe470d"


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "d" * 64},
        {"tokenizer_sha256": "d" * 64},
        {"settings_sha256": "d" * 64},
        {"pooling": "cls"},
        {"normalize": False},
        {"max_length": 512},
        {"dim": 383},
        {"compute_dtype": "bfloat16"},
        {"dtype": "float32"},
        {"long_documents": "chunk"},
        {"chunk_overlap": 8},
        {"cut_from": 768},
    ],
)
def test_everything_that_decides_a_vector_changes_the_fingerprint(change: dict[str, object]):
    assert dataclasses.replace(SPACE, **change).fingerprint != SPACE.fingerprint


def test_the_name_that_people_gave_the_model_does_not():
    assert dataclasses.replace(SPACE, model="other").fingerprint == SPACE.fingerprint


def test_the_description_names_what_people_compare():
    text = SPACE.describe()
    for part in (
        "m,",
        "384 dimensions",
        "mean pooling",
        "256 tokens",
        "float32",
        "float16",
        SPACE.fingerprint,
    ):
        assert part in text
    assert "not normalised" in dataclasses.replace(SPACE, normalize=False).describe()
