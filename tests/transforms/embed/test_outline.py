"""A model by its shapes alone: the shapes of the real parameters, and operations counted by hand."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from schemas.errors import ModelError
from tests.transforms.embed.tiny_model import REAL_MODEL, backend, write_json
from transforms.embed.families import SUPPORTED_FAMILIES
from transforms.embed.model_files import describe_model
from transforms.embed.opening import read_parameters
from transforms.embed.outline import (
    Outline,
    outline_model,
    parameter_bytes,
    parameter_outlines,
    token_flops,
)
from transforms.embed.parts import check_parts, possible_parts
from transforms.embed.runner import in_dtype

FAMILIES = Path(__file__).parent / "reference" / "families"


def outlined(values: Any) -> Any:
    """Real parameters as outlines."""
    if isinstance(values, dict):
        return {name: outlined(each) for name, each in values.items()}
    if isinstance(values, list):
        return [outlined(each) for each in values]
    return Outline(values.shape, values.dtype == ml_dtypes.bfloat16)


@pytest.mark.parametrize("family", sorted(SUPPORTED_FAMILIES))
def test_an_outline_has_the_shapes_and_dtypes_of_the_real_parameters(family: str):
    model = describe_model(backend(FAMILIES / family), FAMILIES)
    real = in_dtype(read_parameters(model), np.dtype(ml_dtypes.bfloat16))
    modules = tuple(module for module, _ in model.dense)
    assert parameter_outlines(model.architecture, modules) == outlined(real)


@pytest.mark.parametrize("family", sorted(SUPPORTED_FAMILIES))
def test_an_outline_says_of_a_model_what_its_description_says(family: str):
    chosen = backend(FAMILIES / family)
    outline, model = outline_model(chosen, FAMILIES), describe_model(chosen, FAMILIES)
    assert outline.architecture == model.architecture
    assert outline.dense == tuple(module for module, _ in model.dense)
    for name in ("name", "family", "dim", "max_length", "pooling", "normalize"):
        assert getattr(outline, name) == getattr(model, name)


def test_an_outline_needs_no_weights_and_no_tokenizer(tmp_path: Path):
    write_json(
        tmp_path / "config.json",
        {
            "model_type": "qwen3",
            "vocab_size": 151665,
            "hidden_size": 4096,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 12288,
            "max_position_embeddings": 40960,
        },
    )
    outline = outline_model(backend(tmp_path, pooling="lasttoken"), tmp_path)
    outlines = parameter_outlines(outline.architecture)
    matrices = 36 * (4096 * (32 + 2 * 8) * 128 + 32 * 128 * 4096 + 4096 * 2 * 12288 + 12288 * 4096)
    others = 151665 * 4096 + 4096 + 36 * (2 * 4096 + 2 * 128)
    assert parameter_bytes(outlines, 2) == 2 * matrices + 4 * others
    assert parameter_bytes(outlines, 4) == 4 * (matrices + others)
    assert token_flops(outline.architecture, 512) == 2 * matrices + 36 * 4 * 32 * 128 * 512
    assert possible_parts(outline.architecture) == [1, 2, 4, 8]
    with pytest.raises(ModelError, match="num_key_value_heads = 8, which 16 devices"):
        check_parts(outline.architecture, 16)


def test_the_operations_of_a_token_are_those_counted_by_hand():
    minilm = outline_model(backend(REAL_MODEL), Path()).architecture
    # Six layers: four matrices of 384 x 384 and two of 384 x 1536, two operations a weight; then four
    # for each of the 384 components and each of the 256 tokens that are seen.
    assert token_flops(minilm, 256) == 6 * (2 * (4 * 384**2 + 2 * 384 * 1536) + 4 * 384 * 256) == 23_592_960
    modern = outline_model(backend(FAMILIES / "modernbert"), Path()).architecture
    assert [bool(window) for window in modern.windows] == [False, True, True, False]
    near = 2 * max(modern.windows) + 1
    dense = 2 * (4 * 32 * 32 + 3 * 32 * 48) * 4
    assert token_flops(modern, 1000) == dense + 4 * 32 * (2 * 1000 + 2 * near)
    assert token_flops(modern, 4) == dense + 4 * 32 * 4 * 4
