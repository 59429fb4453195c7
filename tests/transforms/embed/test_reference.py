"""all-MiniLM-L6-v2 against the vectors of sentence-transformers; see reference/README.md."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.transforms.embed.tiny_model import REAL_MODEL, backend
from transforms.embed.embedder import open_embedder

REFERENCE = Path(__file__).parent / "reference"
TEXTS: list[str] = json.loads((REFERENCE / "texts.json").read_text(encoding="utf-8"))


def reference(name: str) -> np.ndarray:
    with np.load(REFERENCE / "vectors.npz", allow_pickle=False) as vectors:
        return vectors[name]


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))


def test_the_models_own_files_give_the_vectors_of_sentence_transformers(minilm):
    made = minilm.embed(TEXTS)
    assert minilm.space.max_length == 256
    assert made.errors == {}
    assert cosines(made.vectors, reference("mean_256")).min() >= 0.999999
    np.testing.assert_allclose(np.linalg.norm(made.vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "max_length", "dtype", "least"),
    [
        ("mean", 512, "float32", 0.999999),
        ("cls", 256, "float32", 0.999999),
        ("mean", 512, "bfloat16", 0.9999),
        ("mean", 256, "bfloat16", 0.9999),
    ],
)
def test_other_settings_give_the_vectors_of_sentence_transformers_too(
    cache_dir: Path, pooling: str, max_length: int, dtype: str, least: float
):
    chosen = backend(REAL_MODEL, pooling=pooling, max_length=max_length, compute_dtype=dtype)
    made = open_embedder(chosen, base_dir=Path(), cache_dir=cache_dir).embed(TEXTS)
    assert cosines(made.vectors, reference(f"{pooling}_{max_length}")).min() >= least


def test_long_texts_are_marked_as_truncated_and_others_are_not(minilm):
    made = minilm.embed(TEXTS)
    full = json.loads((REFERENCE / "texts.json").read_text(encoding="utf-8"))
    assert made.truncated[full.index(max(full, key=len))]
    assert not made.truncated[:12].any()
    assert (made.token_counts[made.truncated] == 256).all()
    assert made.token_counts[0] == 2  # an empty text is [CLS] [SEP]


def test_near_texts_are_nearer_than_far_ones(minilm):
    made = minilm.embed(
        ["The cat sat on the mat.", "A kitten rests on a rug.", "Quarterly tax filings are due."]
    )
    near, far = made.vectors[0] @ made.vectors[1], made.vectors[0] @ made.vectors[2]
    assert near > far + 0.3
