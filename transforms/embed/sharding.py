"""Which part of a model's parameters each device of a mesh gets.

A layer is cut the way of Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053): the matrices that make
query, key, value and the hidden activations by columns, so that a device has whole heads, and the two
behind them by rows, so that a layer needs two sums over the devices and nothing else. The token
embeddings are cut by components. Everything else is on every device.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transforms.embed.bert_layout import BertArchitecture
from transforms.embed.execution import MODEL_AXIS
from transforms.embed.families import Architecture

_BY_COLUMNS = ("qkv", "up")
_BY_ROWS = ("out", "down")


def arranged_for(arch: Architecture, params: Any, parts: int) -> Any:
    """The parameters with columns in such an order that equal cuts give every device its own heads."""
    if parts == 1:
        return params
    if isinstance(arch, BertArchitecture):
        widths = {"qkv": (arch.dim,) * 3, "up": (arch.ffn_dim,)}
    else:
        kv = arch.kv_heads * arch.head_dim
        widths = {"qkv": (arch.heads * arch.head_dim, kv, kv), "up": (arch.ffn_dim,) * 2}

    def part(name: str, values: Any) -> Any:
        order = _order(widths[name], parts) if name in widths else None
        return values if order is None else {key: array[..., order] for key, array in values.items()}

    layers = [{name: part(name, values) for name, values in layer.items()} for layer in params["layers"]]
    return {**params, "layers": layers}


def _order(widths: tuple[int, ...], parts: int) -> np.ndarray:
    """Column numbers: of each group its first 1/parts, then of each group its second, and so on."""
    starts = np.cumsum((0, *widths[:-1]))
    groups = [
        np.arange(start, start + width).reshape(parts, -1)
        for start, width in zip(starts, widths, strict=True)
    ]
    return np.concatenate(groups, axis=1).ravel()


def parameter_specs(params: Any, parts: int) -> Any:
    """A `PartitionSpec` for every parameter, in a tree of the parameters' form."""
    if parts == 1:
        return _everywhere(params)
    specs = {name: _everywhere(values) for name, values in params.items() if name != "layers"}
    specs["words"] = P(None, MODEL_AXIS)
    if "relative" in params:
        specs["relative"] = P(None, MODEL_AXIS)
    return {**specs, "layers": [_layer_specs(layer) for layer in params["layers"]]}


def shardings(mesh: Mesh, specs: Any) -> Any:
    """The specs over a mesh."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda each: isinstance(each, P)
    )


def _layer_specs(layer: Any) -> Any:
    return {name: _part_specs(name, values) for name, values in layer.items()}


def _part_specs(name: str, values: Any) -> Any:
    if name in _BY_COLUMNS:
        return {key: P(None, MODEL_AXIS) if key == "weight" else P(MODEL_AXIS) for key in values}
    if name in _BY_ROWS:
        return {key: P(MODEL_AXIS) if key == "weight" else P() for key in values}
    return _everywhere(values)


def _everywhere(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _everywhere(each) for key, each in values.items()}
    if isinstance(values, list):
        return [_everywhere(each) for each in values]
    return P()
