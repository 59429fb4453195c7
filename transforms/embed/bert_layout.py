"""The BERT family on disk: its config.json, the tensors it must have, and how we lay them out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import ModelError

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
PREFIXES = ("", "bert.", "model.")
_WORDS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True, slots=True)
class BertArchitecture:
    """The numbers of config.json that decide what is computed."""

    vocab_size: int
    dim: int
    layers: int
    heads: int
    ffn_dim: int
    positions: int
    token_types: int
    epsilon: float
    activation: str

    family = "bert"

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads


def read_architecture(config: Mapping[str, Any], path: Path) -> BertArchitecture:
    """The architecture that a BERT config.json describes.

    Raises:
        ModelError: a number is missing or impossible, or the config asks for a variant of BERT
            (relative positions, decoder, another activation) that is not supported.
    """

    def number(key: str) -> int:
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"{path}: {key} = {value!r}; expected a whole number of at least 1")
        return value

    activation = config.get("hidden_act", "gelu")
    _require(activation in ACTIVATIONS, path, "hidden_act", activation, f"one of {', '.join(ACTIVATIONS)}")
    positions = config.get("position_embedding_type", "absolute")
    _require(positions == "absolute", path, "position_embedding_type", positions, "absolute")
    _require(not config.get("is_decoder"), path, "is_decoder", config.get("is_decoder"), "false")
    dim, heads = number("hidden_size"), number("num_attention_heads")
    _require(dim % heads == 0, path, "hidden_size", dim, f"a multiple of num_attention_heads = {heads}")
    epsilon = config.get("layer_norm_eps", 1e-12)
    _require(
        isinstance(epsilon, float) and 0 < epsilon < 1, path, "layer_norm_eps", epsilon, "a number in (0, 1)"
    )
    return BertArchitecture(
        vocab_size=number("vocab_size"),
        dim=dim,
        layers=number("num_hidden_layers"),
        heads=heads,
        ffn_dim=number("intermediate_size"),
        positions=number("max_position_embeddings"),
        token_types=number("type_vocab_size"),
        epsilon=epsilon,
        activation=activation,
    )


def _require(holds: bool, path: Path, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ModelError(f"{path}: {key} = {value!r} is not supported; supported: {allowed}")


def find_prefix(names: Mapping[str, Any]) -> str:
    """What stands before the encoder's tensor names: nothing, or the name of a wrapping model."""
    return next((prefix for prefix in PREFIXES if prefix + _WORDS in names), "")


def expected_tensors(arch: BertArchitecture, prefix: str) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that the encoder needs, as transformers' BertModel saves them."""
    dim, ffn = arch.dim, arch.ffn_dim
    shapes: dict[str, tuple[int, ...]] = {
        _WORDS: (arch.vocab_size, dim),
        "embeddings.position_embeddings.weight": (arch.positions, dim),
        "embeddings.token_type_embeddings.weight": (arch.token_types, dim),
        "embeddings.LayerNorm.weight": (dim,),
        "embeddings.LayerNorm.bias": (dim,),
    }
    for layer in range(arch.layers):
        for name, (rows, columns) in {
            "attention.self.query": (dim, dim),
            "attention.self.key": (dim, dim),
            "attention.self.value": (dim, dim),
            "attention.output.dense": (dim, dim),
            "intermediate.dense": (ffn, dim),
            "output.dense": (dim, ffn),
        }.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (rows, columns)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (rows,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (dim,)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (dim,)
    return {prefix + name: shape for name, shape in shapes.items()}


def arrange(arch: BertArchitecture, tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The parameters as `bert.encode` takes them: a pytree of float32 arrays.

    Matrices are transposed to `[in, out]` and contiguous; query, key and value are one matrix with
    the attention's 1/√head_dim already multiplied into the query; the embedding of token type 0,
    the only one that single texts have, is added to the positions.
    """

    def get(name: str) -> np.ndarray:
        return tensors[prefix + name]

    types = get("embeddings.token_type_embeddings.weight")
    return {
        "words": get(_WORDS),
        "positions": get("embeddings.position_embeddings.weight") + types[0],
        "norm": _norm(get, "embeddings.LayerNorm"),
        "layers": [_layer(arch, get, f"encoder.layer.{i}.") for i in range(arch.layers)],
    }


def _layer(arch: BertArchitecture, get: Callable[[str], np.ndarray], at: str) -> dict[str, Any]:
    scale = np.float32(1 / math.sqrt(arch.head_dim))
    scales = {"query": scale, "key": np.float32(1), "value": np.float32(1)}
    weights = [get(f"{at}attention.self.{part}.weight").T * by for part, by in scales.items()]
    biases = [get(f"{at}attention.self.{part}.bias") * by for part, by in scales.items()]
    return {
        "qkv": {"weight": np.concatenate(weights, axis=1), "bias": np.concatenate(biases)},
        "out": _dense(get, f"{at}attention.output.dense"),
        "out_norm": _norm(get, f"{at}attention.output.LayerNorm"),
        "up": _dense(get, f"{at}intermediate.dense"),
        "down": _dense(get, f"{at}output.dense"),
        "down_norm": _norm(get, f"{at}output.LayerNorm"),
    }


def _dense(get: Callable[[str], np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"weight": np.ascontiguousarray(get(f"{name}.weight").T), "bias": get(f"{name}.bias")}


def _norm(get: Callable[[str], np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": get(f"{name}.weight"), "bias": get(f"{name}.bias")}
