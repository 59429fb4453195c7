"""Models with rotary positions on disk (ModernBERT, Qwen3): config.json, tensors, how we lay them out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transforms.embed.configuration import MOST_LAYERS, Configuration

PREFIXES = ("", "model.")
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_MODERNBERT_THETAS = {
    _GLOBAL: ("global_rope_theta", 160_000.0),
    _LOCAL: ("local_rope_theta", 10_000.0),
}
_GELUS = ("gelu", "gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True, slots=True)
class RotaryArchitecture:
    """The numbers of config.json that decide what is computed.

    `thetas` and `windows` have an entry for each layer: base of the angles, and how far a token sees
    to either side (0: everything). `norm` is `layer` or `rms`.
    """

    kind: str
    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    positions: int
    epsilon: float
    activation: str
    norm: str
    causal: bool
    thetas: tuple[float, ...]
    windows: tuple[int, ...]
    attention_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False

    @property
    def max_tokens(self) -> int:
        """The longest text that the model was made for."""
        return self.positions

    @property
    def words(self) -> str:
        """Name of the token embeddings in the file."""
        return "embeddings.tok_embeddings.weight" if self.kind == "modernbert" else "embed_tokens.weight"


def read_architecture(values: Mapping[str, Any], path: Path) -> RotaryArchitecture:
    """The architecture that a config.json of ModernBERT or Qwen3 describes.

    Raises:
        ModelError: a number is missing or impossible, or the config asks for a variant (scaled
            angles, sliding windows in Qwen3, another activation) that is not supported.
    """
    config = Configuration(values, path)
    heads, layers = config.number("num_attention_heads"), config.number("num_hidden_layers", most=MOST_LAYERS)
    config.off("rope_scaling")
    common: dict[str, Any] = {
        "kind": str(values.get("model_type")),
        "vocab_size": config.number("vocab_size"),
        "dim": config.number("hidden_size"),
        "layers": layers,
        "heads": heads,
        "ffn_dim": config.number("intermediate_size"),
        "positions": config.number("max_position_embeddings"),
        "attention_bias": config.flag("attention_bias", False),
    }
    special = _modernbert(config, heads, layers) if common["kind"] == "modernbert" else _qwen3(config, layers)
    arch = RotaryArchitecture(**common, **special)
    config.require(arch.head_dim % 2 == 0, "head_dim", "an even width of a head", arch.head_dim)
    config.require(
        heads % arch.kv_heads == 0, "num_key_value_heads", f"a divisor of num_attention_heads = {heads}"
    )
    return arch


def _modernbert(config: Configuration, heads: int, layers: int) -> dict[str, Any]:
    dim = config.number("hidden_size")
    config.require(dim % heads == 0, "hidden_size", f"a multiple of num_attention_heads = {heads}")
    every = config.number("global_attn_every_n_layers", 3)
    kinds = _layer_kinds(config, [_LOCAL if i % every else _GLOBAL for i in range(layers)])
    thetas = {kind: _theta(config, kind, *named) for kind, named in _MODERNBERT_THETAS.items()}
    window = config.number("local_attention", 128) // 2
    return {
        "kv_heads": heads,
        "head_dim": dim // heads,
        "epsilon": config.fraction("norm_eps", 1e-5),
        "activation": config.choice("hidden_activation", _GELUS, "gelu"),
        "norm": "layer",
        "causal": False,
        "thetas": tuple(thetas[kind] for kind in kinds),
        "windows": tuple(window if kind == _LOCAL else 0 for kind in kinds),
        "mlp_bias": config.flag("mlp_bias", False),
        "norm_bias": config.flag("norm_bias", False),
    }


def _qwen3(config: Configuration, layers: int) -> dict[str, Any]:
    config.off("use_sliding_window")
    kinds = _layer_kinds(config, [_GLOBAL] * layers)
    config.require(set(kinds) == {_GLOBAL}, "layer_types", f"{_GLOBAL} alone")
    theta = _theta(config, None, "rope_theta", 1_000_000.0)
    return {
        "kv_heads": config.number("num_key_value_heads"),
        "head_dim": config.number("head_dim", 128),
        "epsilon": config.fraction("rms_norm_eps", 1e-6),
        "activation": config.choice("hidden_act", ("silu",), "silu"),
        "norm": "rms",
        "causal": True,
        "thetas": (theta,) * layers,
        "windows": (0,) * layers,
    }


def _layer_kinds(config: Configuration, default: list[str]) -> list[str]:
    kinds = config.values.get("layer_types") or default
    known = isinstance(kinds, list) and len(kinds) == len(default)
    known = known and all(kind in (_GLOBAL, _LOCAL) for kind in kinds)
    config.require(known, "layer_types", f"{len(default)} of {_GLOBAL}, {_LOCAL}")
    return list(kinds)


def _theta(config: Configuration, kind: str | None, key: str, default: float) -> float:
    """The base of the angles: of `rope_parameters` (by kind of layer, or alone), else of the older key."""
    found = config.values.get("rope_parameters") or {}
    if kind and isinstance(found, dict):
        found = found.get(kind) or {}
    known = isinstance(found, dict) and found.get("rope_type", "default") == "default"
    config.require(known, "rope_parameters", "rope_type default")
    theta = found.get("rope_theta", config.values.get(key, default))
    positive = isinstance(theta, int | float) and not isinstance(theta, bool) and theta > 1
    config.require(positive, key, "a number above 1", theta)
    return float(theta)


def find_prefix(names: Mapping[str, Any]) -> str:
    """What stands before the encoder's tensor names: nothing, or the name of a wrapping model."""
    words = ("embeddings.tok_embeddings.weight", "embed_tokens.weight")
    return next((prefix for prefix in PREFIXES for name in words if prefix + name in names), "")


def expected_tensors(arch: RotaryArchitecture, prefix: str) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that the encoder needs, as transformers saves them."""
    shapes = (_modernbert_tensors if arch.kind == "modernbert" else _qwen3_tensors)(arch)
    return {
        prefix + name: shape for name, shape in {arch.words: (arch.vocab_size, arch.dim), **shapes}.items()
    }


def _modernbert_tensors(arch: RotaryArchitecture) -> dict[str, tuple[int, ...]]:
    dim, ffn = arch.dim, arch.ffn_dim
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, shape: tuple[int, ...], has_bias: bool) -> None:
        shapes[f"{name}.weight"] = shape
        if has_bias:
            shapes[f"{name}.bias"] = shape[:1]

    for name in ("embeddings.norm", "final_norm"):
        add(name, (dim,), arch.norm_bias)
    for layer in range(arch.layers):
        at = f"layers.{layer}."
        if layer:  # the first layer's is the embeddings' own
            add(f"{at}attn_norm", (dim,), arch.norm_bias)
        add(f"{at}attn.Wqkv", (3 * dim, dim), arch.attention_bias)
        add(f"{at}attn.Wo", (dim, dim), arch.attention_bias)
        add(f"{at}mlp_norm", (dim,), arch.norm_bias)
        add(f"{at}mlp.Wi", (2 * ffn, dim), arch.mlp_bias)
        add(f"{at}mlp.Wo", (dim, ffn), arch.mlp_bias)
    return shapes


def _qwen3_tensors(arch: RotaryArchitecture) -> dict[str, tuple[int, ...]]:
    dim, ffn, width = arch.dim, arch.ffn_dim, arch.head_dim
    inner, outer = arch.heads * width, arch.kv_heads * width
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (dim,)}
    for layer in range(arch.layers):
        at = f"layers.{layer}."
        matrices = {
            "q_proj": (inner, dim),
            "k_proj": (outer, dim),
            "v_proj": (outer, dim),
            "o_proj": (dim, inner),
        }
        for name, shape in matrices.items():
            shapes[f"{at}self_attn.{name}.weight"] = shape
            if arch.attention_bias:
                shapes[f"{at}self_attn.{name}.bias"] = shape[:1]
        for name in ("q_norm", "k_norm"):
            shapes[f"{at}self_attn.{name}.weight"] = (width,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}{name}.weight"] = (dim,)
        shapes |= {f"{at}mlp.{name}.weight": (ffn, dim) for name in ("gate_proj", "up_proj")}
        shapes[f"{at}mlp.down_proj.weight"] = (dim, ffn)
    return shapes


def arrange(arch: RotaryArchitecture, tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The parameters as `rotary.encode` takes them: a pytree of float32 arrays.

    Matrices are transposed to `[in, out]`; query, key and value are one matrix, and so are gate and
    up. The attention's 1/√head_dim is multiplied into the query, or into the norm behind it.
    """

    def get(name: str) -> np.ndarray:
        return tensors[prefix + name]

    def has(name: str) -> bool:
        return prefix + name in tensors

    def dense(*names: str) -> dict[str, np.ndarray]:
        weight = np.concatenate([get(f"{name}.weight") for name in names]).T
        made = {"weight": np.ascontiguousarray(weight)}
        if has(f"{names[0]}.bias"):
            made["bias"] = np.concatenate([get(f"{name}.bias") for name in names])
        return made

    def norm(name: str) -> dict[str, np.ndarray]:
        made = {"scale": get(f"{name}.weight")}
        return {**made, "bias": get(f"{name}.bias")} if has(f"{name}.bias") else made

    layer = _modernbert_layer if arch.kind == "modernbert" else _qwen3_layer
    params = {
        "words": get(arch.words),
        "final_norm": norm("final_norm" if arch.kind == "modernbert" else "norm"),
        "layers": [layer(arch, f"layers.{i}.", i, dense, norm) for i in range(arch.layers)],
    }
    return {**params, "norm": norm("embeddings.norm")} if arch.kind == "modernbert" else params


_Part = Callable[..., dict[str, np.ndarray]]


def _modernbert_layer(
    arch: RotaryArchitecture, at: str, index: int, dense: _Part, norm: _Part
) -> dict[str, Any]:
    qkv = dense(f"{at}attn.Wqkv")
    scale = np.ones(3 * arch.dim, np.float32)
    scale[: arch.dim] = 1 / math.sqrt(arch.head_dim)
    made = {
        "qkv": {name: values * scale for name, values in qkv.items()},
        "out": dense(f"{at}attn.Wo"),
        "up_norm": norm(f"{at}mlp_norm"),
        "up": dense(f"{at}mlp.Wi"),
        "down": dense(f"{at}mlp.Wo"),
    }
    return {**made, "in_norm": norm(f"{at}attn_norm")} if index else made


def _qwen3_layer(arch: RotaryArchitecture, at: str, _: int, dense: _Part, norm: _Part) -> dict[str, Any]:
    scale = np.float32(1 / math.sqrt(arch.head_dim))
    return {
        "in_norm": norm(f"{at}input_layernorm"),
        "qkv": dense(*(f"{at}self_attn.{part}_proj" for part in "qkv")),
        "query_norm": {"scale": norm(f"{at}self_attn.q_norm")["scale"] * scale},
        "key_norm": norm(f"{at}self_attn.k_norm"),
        "out": dense(f"{at}self_attn.o_proj"),
        "up_norm": norm(f"{at}post_attention_layernorm"),
        "up": dense(f"{at}mlp.gate_proj", f"{at}mlp.up_proj"),
        "down": dense(f"{at}mlp.down_proj"),
    }
