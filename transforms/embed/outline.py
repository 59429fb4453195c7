"""A model by its shapes alone: parameters, bytes, operations, without any weight. Imports no JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from schemas.backends import EmbedderBackend, Pooling
from transforms.embed.bert_layout import BertArchitecture
from transforms.embed.families import Architecture, family_of
from transforms.embed.model_files import (
    CONFIG,
    choose_dimensions,
    choose_max_length,
    choose_pooling,
    find_folder,
    model_name,
)
from transforms.embed.module_settings import DenseModule, read_module_settings, read_object


@dataclass(frozen=True, slots=True)
class ModelOutline:
    """What is compiled for a model: its architecture and what stands behind it."""

    name: str
    family: str
    architecture: Architecture
    dense: tuple[DenseModule, ...]
    dim: int
    max_length: int
    pooling: Pooling
    normalize: bool


def outline_model(backend: EmbedderBackend, base_dir: Path) -> ModelOutline:
    """The outline of a backend's model. Its folder needs config.json; weights and tokenizer may be absent.

    Raises:
        ModelError: see `model_files.describe_model`.
    """
    folder = find_folder(backend.model_path, base_dir)
    settings = read_module_settings(folder)
    path = settings.transformer / CONFIG
    config = read_object(path)
    architecture = family_of(config, path).read_architecture(config, path)
    whole = settings.dense[-1].outputs if settings.dense else architecture.dim
    return ModelOutline(
        name=model_name(backend.model_path),
        family=str(config["model_type"]),
        architecture=architecture,
        dense=settings.dense,
        dim=choose_dimensions(backend.dimensions, whole, folder),
        max_length=choose_max_length(backend.max_length, settings.max_length, architecture.max_tokens, path),
        pooling=choose_pooling(backend, settings.pooling, folder),
        normalize=settings.normalize if backend.normalize is None else backend.normalize,
    )


@dataclass(frozen=True, slots=True)
class Outline:
    """Shape of one parameter, and whether it is of the compute dtype (else float32)."""

    shape: tuple[int, ...]
    narrow: bool = False

    def bytes(self, width: int) -> int:
        """Its size when the compute dtype has that many bytes."""
        return prod(self.shape) * (width if self.narrow else 4)


def parameter_outlines(architecture: Architecture, dense: Sequence[DenseModule] = ()) -> dict[str, Any]:
    """The parameters as `opening.read_parameters` gives them, each as an outline."""
    is_bert = isinstance(architecture, BertArchitecture)
    params = _bert(architecture) if is_bert else _rotary(architecture)
    return {**params, "dense": [_dense((m.inputs, m.outputs), m.bias, False) for m in dense]}


def _bert(arch: Any) -> dict[str, Any]:
    dim, ffn = arch.dim, arch.ffn_dim
    layer = {
        "qkv": _dense((dim, 3 * dim), True),
        "out": _dense((dim, dim), True),
        "up": _dense((dim, ffn), True),
        "down": _dense((ffn, dim), True),
        "out_norm": _norm(dim, True),
        "down_norm": _norm(dim, True),
    }
    params = {
        "words": Outline((arch.vocab_size, dim)),
        "positions": Outline((arch.max_tokens, dim)),
        "norm": _norm(dim, True),
        "layers": [layer] * arch.layers,
    }
    if arch.relative_buckets:
        params["relative"] = Outline((2 * arch.max_tokens - 1, arch.heads))
    return params


def _rotary(arch: Any) -> dict[str, Any]:
    dim, width, ffn = arch.dim, arch.head_dim, arch.ffn_dim
    inner, mixed = arch.heads * width, (arch.heads + 2 * arch.kv_heads) * width
    layer = {
        "in_norm": _norm(dim, arch.norm_bias),
        "qkv": _dense((dim, mixed), arch.attention_bias),
        "out": _dense((inner, dim), arch.attention_bias),
        "up_norm": _norm(dim, arch.norm_bias),
        "up": _dense((dim, 2 * ffn), arch.mlp_bias),
        "down": _dense((ffn, dim), arch.mlp_bias),
    }
    layers = [layer] * arch.layers
    params: dict[str, Any] = {
        "words": Outline((arch.vocab_size, dim)),
        "final_norm": _norm(dim, arch.norm_bias),
    }
    if arch.kind == "modernbert":  # its first layer's norm is the embeddings' own
        first = {name: part for name, part in layer.items() if name != "in_norm"}
        return {**params, "norm": _norm(dim, arch.norm_bias), "layers": [first, *layers[1:]]}
    norms = {"query_norm": _norm(width, False), "key_norm": _norm(width, False)}
    return {**params, "layers": [{**each, **norms} for each in layers]}


def _dense(shape: tuple[int, int], bias: bool, narrow: bool = True) -> dict[str, Outline]:
    made = {"weight": Outline(shape, narrow)}
    return {**made, "bias": Outline(shape[1:])} if bias else made


def _norm(dim: int, bias: bool) -> dict[str, Outline]:
    return {"scale": Outline((dim,)), **({"bias": Outline((dim,))} if bias else {})}


def parameter_bytes(outlines: Any, width: int) -> int:
    """Bytes of all parameters, the compute dtype having `width` bytes."""
    if isinstance(outlines, Outline):
        return outlines.bytes(width)
    parts = outlines.values() if isinstance(outlines, dict) else outlines
    return sum(parameter_bytes(part, width) for part in parts)


def token_flops(architecture: Architecture, row: int) -> float:
    """Floating-point operations of one token in a row that is attended to as a whole.

    Two for each weight of a layer's matrices, and four for each component of the query heads and key
    that can be seen; norms, activations and softmax are left out, as is usual (Kaplan et al. 2020,
    arXiv:2001.08361, Table 1).
    """
    arch, windows = architecture, getattr(architecture, "windows", (0,) * architecture.layers)
    if isinstance(arch, BertArchitecture):
        weights = 4 * arch.dim**2 + 2 * arch.dim * arch.ffn_dim
    else:
        heads = 2 * arch.heads + 2 * arch.kv_heads
        weights = arch.dim * (heads * arch.head_dim + 3 * arch.ffn_dim)
    seen = sum(min(row, 2 * window + 1) if window else row for window in windows)
    return float(2 * weights * arch.layers + 4 * arch.heads * arch.head_dim * seen)
