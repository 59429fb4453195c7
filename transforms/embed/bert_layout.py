"""The BERT family on disk (BERT, RoBERTa, XLM-R, MPNet): config.json, tensors, how we lay them out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transforms.embed.configuration import MOST_LAYERS, Configuration

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
PREFIXES = ("", "bert.", "model.", "roberta.", "mpnet.")
_WORDS = "embeddings.word_embeddings.weight"
_RELATIVE = "encoder.relative_attention_bias.weight"
_RELATIVE_BUCKETS = 32
_FARTHEST = 128  # distances from here on share MPNet's last bucket
_PADDING_ID = 1  # of RoBERTa and MPNet: positions count from behind it
# Our name of a part of a layer → its name in the file, as BertModel and MPNetModel have them.
_BERT_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "out_norm": "attention.output.LayerNorm",
}
_MPNET_PARTS = {
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "out": "attention.attn.o",
    "out_norm": "attention.LayerNorm",
}
_COMMON_PARTS = {"up": "intermediate.dense", "down": "output.dense", "down_norm": "output.LayerNorm"}


@dataclass(frozen=True, slots=True)
class BertArchitecture:
    """The numbers of config.json that decide what is computed.

    `first_position` is where positions start in the table, and `relative_buckets` how many biases of
    relative positions MPNet has; `token_types` is 0 where the model has none.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    ffn_dim: int
    positions: int
    token_types: int
    epsilon: float
    activation: str
    first_position: int = 0
    relative_buckets: int = 0

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads

    @property
    def max_tokens(self) -> int:
        """The longest text that has a position for every token."""
        return self.positions - self.first_position

    @property
    def parts(self) -> Mapping[str, str]:
        """Our name of a part of a layer → its name in the file."""
        return {**(_MPNET_PARTS if self.relative_buckets else _BERT_PARTS), **_COMMON_PARTS}


def read_architecture(values: Mapping[str, Any], path: Path) -> BertArchitecture:
    """The architecture that a config.json of the family describes.

    Raises:
        ModelError: a number is missing or impossible, or the config asks for a variant
            (relative positions in BERT, decoder, another activation) that is not supported.
    """
    config, kind = Configuration(values, path), values.get("model_type")
    activation = config.choice("hidden_act", ACTIVATIONS, "gelu")
    config.choice("position_embedding_type", ("absolute",), "absolute")
    config.off("is_decoder")
    dim, heads = config.number("hidden_size"), config.number("num_attention_heads")
    config.require(dim % heads == 0, "hidden_size", f"a multiple of num_attention_heads = {heads}")
    after_padding = 0
    if kind != "bert":
        config.require(values.get("pad_token_id", _PADDING_ID) == _PADDING_ID, "pad_token_id", "1")
        after_padding = _PADDING_ID + 1
    if kind == "mpnet":
        buckets = config.number("relative_attention_num_buckets", _RELATIVE_BUCKETS)
        config.require(buckets == _RELATIVE_BUCKETS, "relative_attention_num_buckets", "32")
    positions = config.number("max_position_embeddings")
    config.require(positions > after_padding, "max_position_embeddings", f"more than {after_padding}")
    return BertArchitecture(
        vocab_size=config.number("vocab_size"),
        dim=dim,
        layers=config.number("num_hidden_layers", most=MOST_LAYERS),
        heads=heads,
        ffn_dim=config.number("intermediate_size"),
        positions=positions,
        token_types=0 if kind == "mpnet" else config.number("type_vocab_size"),
        epsilon=config.fraction("layer_norm_eps", 1e-12),
        activation=activation,
        first_position=after_padding,
        relative_buckets=_RELATIVE_BUCKETS if kind == "mpnet" else 0,
    )


def find_prefix(names: Mapping[str, Any]) -> str:
    """What stands before the encoder's tensor names: nothing, or the name of a wrapping model."""
    return next((prefix for prefix in PREFIXES if prefix + _WORDS in names), "")


def expected_tensors(arch: BertArchitecture, prefix: str) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that the encoder needs, as transformers saves them."""
    dim, ffn = arch.dim, arch.ffn_dim
    shapes: dict[str, tuple[int, ...]] = {
        _WORDS: (arch.vocab_size, dim),
        "embeddings.position_embeddings.weight": (arch.positions, dim),
        "embeddings.LayerNorm.weight": (dim,),
        "embeddings.LayerNorm.bias": (dim,),
    }
    if arch.token_types:
        shapes["embeddings.token_type_embeddings.weight"] = (arch.token_types, dim)
    if arch.relative_buckets:
        shapes[_RELATIVE] = (arch.relative_buckets, arch.heads)
    sizes = {"up": (ffn, dim), "down": (dim, ffn), "out_norm": (dim,), "down_norm": (dim,)}
    for layer in range(arch.layers):
        for part, name in arch.parts.items():
            size: tuple[int, ...] = sizes.get(part, (dim, dim))
            shapes[f"encoder.layer.{layer}.{name}.weight"] = size
            shapes[f"encoder.layer.{layer}.{name}.bias"] = size[:1]
    return {prefix + name: shape for name, shape in shapes.items()}


def arrange(arch: BertArchitecture, tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The parameters as `bert.encode` takes them: a pytree of float32 arrays.

    Matrices are transposed to `[in, out]` and contiguous; query, key and value are one matrix with
    the attention's 1/√head_dim already multiplied into the query; the embedding of token type 0,
    the only one that single texts have, is added to the positions, and positions start at row 0.
    """

    def get(name: str) -> np.ndarray:
        return tensors[prefix + name]

    positions = get("embeddings.position_embeddings.weight")[arch.first_position :]
    if arch.token_types:
        positions = positions + get("embeddings.token_type_embeddings.weight")[0]
    params = {
        "words": get(_WORDS),
        "positions": positions,
        "norm": _norm(get, "embeddings.LayerNorm"),
        "layers": [_layer(arch, get, f"encoder.layer.{i}.") for i in range(arch.layers)],
    }
    if arch.relative_buckets:
        distances = np.arange(-arch.max_tokens + 1, arch.max_tokens)
        params["relative"] = get(_RELATIVE)[relative_buckets(distances)]
    return params


def relative_buckets(distances: np.ndarray) -> np.ndarray:
    """MPNet's bucket of each distance (key's position minus query's): fine when near, coarse when far."""
    half = _RELATIVE_BUCKETS // 2
    exact = half // 2
    far = np.abs(distances)
    share = np.log(np.maximum(far, 1).astype(np.float32) / exact) / math.log(_FARTHEST / exact)
    coarse = np.minimum(exact + (share * (half - exact)).astype(np.int64), half - 1)
    return np.where(far < exact, far, coarse) + np.where(distances > 0, half, 0)


def _layer(arch: BertArchitecture, get: Callable[[str], np.ndarray], at: str) -> dict[str, Any]:
    names = {part: at + name for part, name in arch.parts.items()}
    scales = {"query": np.float32(1 / math.sqrt(arch.head_dim)), "key": np.float32(1), "value": np.float32(1)}
    weights = [get(f"{names[part]}.weight").T * by for part, by in scales.items()]
    biases = [get(f"{names[part]}.bias") * by for part, by in scales.items()]
    return {
        "qkv": {"weight": np.concatenate(weights, axis=1), "bias": np.concatenate(biases)},
        **{part: _dense(get, names[part]) for part in ("out", "up", "down")},
        **{part: _norm(get, names[part]) for part in ("out_norm", "down_norm")},
    }


def _dense(get: Callable[[str], np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"weight": np.ascontiguousarray(get(f"{name}.weight").T), "bias": get(f"{name}.bias")}


def _norm(get: Callable[[str], np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": get(f"{name}.weight"), "bias": get(f"{name}.bias")}
