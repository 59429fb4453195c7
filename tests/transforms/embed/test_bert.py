"""The encoder against BERT written out in float64, text by text."""

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.transforms.embed.tiny_model import (
    TINY,
    backend,
    plain_bert,
    tiny_tensors,
    tiny_tokenizer,
    write_json,
    write_tiny_model,
)
from transforms.embed.bert import encode
from transforms.embed.bert_layout import arrange
from transforms.embed.embedder import open_embedder
from transforms.embed.execution import Execution

TEXTS = [
    "a",
    "the quick brown fox",
    "numbers 12, 3. and 45!",
    "漢字 and more",
    "z" * 60,
    "",
    "jumps over the lazy dog, twice " * 2,
]


def expected(tensors: dict[str, np.ndarray], **variant: str) -> np.ndarray:
    encodings = [tiny_tokenizer().encode(text) for text in TEXTS]
    return np.array([plain_bert(tensors, encoding.ids[:100], **variant) for encoding in encodings])


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_vectors_are_those_of_bert_written_out_for_one_text_at_a_time(tiny):
    made = tiny.embed(TEXTS)
    np.testing.assert_allclose(made.vectors, unit(expected(tiny_tensors())), atol=2e-6)


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "gelu_pytorch_tanh"])
def test_every_supported_activation_is_computed_as_defined(tmp_path: Path, cache_dir: Path, activation: str):
    folder = write_tiny_model(tmp_path / "model", hidden_act=activation)
    made = open_embedder(backend(folder), base_dir=tmp_path, cache_dir=cache_dir).embed(TEXTS)
    np.testing.assert_allclose(made.vectors, unit(expected(tiny_tensors(), activation=activation)), atol=2e-6)


def test_cls_pooling_without_normalising_gives_the_first_hidden_state(tiny_model: Path, cache_dir: Path):
    chosen = backend(tiny_model, pooling="cls", normalize=False)
    made = open_embedder(chosen, base_dir=tiny_model, cache_dir=cache_dir).embed(TEXTS)
    np.testing.assert_allclose(made.vectors, expected(tiny_tensors(), pooling="cls"), atol=2e-5)


def test_mean_pooling_without_normalising_gives_the_plain_mean(tiny_model: Path, cache_dir: Path):
    chosen = backend(tiny_model, normalize=False)
    made = open_embedder(chosen, base_dir=tiny_model, cache_dir=cache_dir).embed(TEXTS)
    np.testing.assert_allclose(made.vectors, expected(tiny_tensors()), atol=2e-5)


@pytest.mark.parametrize("prefix", ["bert.", "model."])
def test_weights_saved_inside_a_wrapping_model_are_found(tiny_model: Path, cache_dir: Path, prefix: str):
    (tiny_model / "model.safetensors").unlink()
    extra = {"cls.predictions.bias": np.zeros(3, np.float32)}
    save_file({**tiny_tensors(prefix), **extra}, tiny_model / "model.safetensors")
    made = open_embedder(backend(tiny_model), base_dir=tiny_model, cache_dir=cache_dir).embed(TEXTS)
    np.testing.assert_allclose(made.vectors, unit(expected(tiny_tensors())), atol=2e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_are_read_with_their_own_values(
    tiny_model: Path, cache_dir: Path, dtype: type
):
    rounded = {name: values.astype(dtype) for name, values in tiny_tensors().items()}
    (tiny_model / "model.safetensors").unlink()
    save_file(rounded, tiny_model / "model.safetensors")
    made = open_embedder(backend(tiny_model), base_dir=tiny_model, cache_dir=cache_dir).embed(TEXTS)
    exact = {name: values.astype(np.float32) for name, values in rounded.items()}
    np.testing.assert_allclose(made.vectors, unit(expected(exact)), atol=2e-6)


@pytest.mark.parametrize("token_tile", [32, 64, 100])
def test_tiles_of_tokens_change_nothing_but_the_order_of_the_work(token_tile: int):
    arch = dataclasses.replace(TINY, vocab_size=tiny_tokenizer().get_vocab_size())
    params = arrange(arch, tiny_tensors(), "")
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, arch.vocab_size, (1, 256)).astype(np.int32)
    positions = np.tile(np.arange(64, dtype=np.int32), 4)[None]
    segments = np.repeat(np.arange(1, 5, dtype=np.int32), 64)[None]
    whole = encode(arch, params, tokens, positions, segments)
    tiled = encode(arch, params, tokens, positions, segments, Execution(token_tile))
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    for text in range(4):  # 256 slots go by blocks of 128 queries
        own = tokens[0, 64 * text : 64 * (text + 1)].tolist()
        pooled = np.asarray(tiled)[0, 64 * text : 64 * (text + 1)].mean(0)
        np.testing.assert_allclose(pooled, plain_bert(tiny_tensors(), own), atol=1e-5)


def test_bfloat16_stays_close_to_float32_on_random_weights(tiny_model: Path, cache_dir: Path):
    chosen = backend(tiny_model, compute_dtype="bfloat16")
    made = open_embedder(chosen, base_dir=tiny_model, cache_dir=cache_dir).embed(TEXTS)
    cosines = (made.vectors * unit(expected(tiny_tensors()))).sum(1)
    assert cosines.min() > 0.999
    assert not np.allclose(made.vectors, unit(expected(tiny_tensors())), atol=1e-7)


def test_a_prompt_and_lower_casing_from_the_models_files_are_applied(tiny_model: Path, cache_dir: Path):

    write_json(
        tiny_model / "config_sentence_transformers.json",
        {"prompts": {"query": "q ", "other": "x"}, "default_prompt_name": "query"},
    )
    write_json(tiny_model / "sentence_bert_config.json", {"max_seq_length": 50, "do_lower_case": True})
    embedder = open_embedder(backend(tiny_model), base_dir=tiny_model, cache_dir=cache_dir)
    ids = tiny_tokenizer().encode("q hello").ids
    np.testing.assert_allclose(
        embedder.embed(["HELLO"]).vectors, unit(plain_bert(tiny_tensors(), ids)[None]), atol=2e-6
    )
    assert embedder.space.max_length == 50
