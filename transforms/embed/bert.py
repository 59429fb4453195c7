"""The BERT encoder in JAX, over rows that hold several texts told apart by segment numbers.

What makes it fast on a CPU: activations stay flat, `[tokens, dim]`, for one large GEMM each; query,
key and value come from one GEMM with the scale folded in (`bert_layout.arrange`); attention goes
over a block of queries at a time and the rest of a layer over a tile of tokens at a time, so that
scores and hidden activations stay in the cache. Matrix products take the weights' dtype and
accumulate in float32; LayerNorm, softmax and the residual stream are float32 always.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from transforms.embed.bert_layout import BertArchitecture

QUERY_BLOCK = 128
MASKED = -1e9  # exp(MASKED - max) is exactly 0 in float32


def encode(
    arch: BertArchitecture,
    params: Any,
    tokens: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    token_tile: int = 0,
) -> jax.Array:
    """The last hidden states, `[rows, length, dim]` float32.

    Args:
        arch: the architecture that `params` were arranged for.
        params: what `bert_layout.arrange` gives; matrices in float32 or bfloat16.
        tokens: token ids, `[rows, length]` int32.
        positions: position of each token in its own text, `[rows, length]` int32.
        segments: 1, 2, ... for the texts of a row, 0 for empty slots, `[rows, length]` int32. Tokens
            see those of their own segment only.
        token_tile: tokens that the dense part of a layer works on at a time; 0: all at once.
    """
    rows, length = tokens.shape
    hidden = params["words"][tokens] + params["positions"][positions]
    hidden = _layer_norm(hidden.astype(jnp.float32), params["norm"], arch.epsilon)
    hidden = hidden.reshape(rows * length, arch.dim)
    for layer in params["layers"]:
        attended = _attention(arch, layer["qkv"], hidden, segments)
        hidden = _by_tiles(arch, layer, hidden, attended, token_tile)
    return hidden.reshape(rows, length, arch.dim)


def _attention(arch: BertArchitecture, qkv: Any, hidden: jax.Array, segments: jax.Array) -> jax.Array:
    rows, length = segments.shape
    heads, width, dtype = arch.heads, arch.head_dim, qkv["weight"].dtype
    mixed = _dense(hidden, qkv).astype(dtype).reshape(rows, length, 3, heads, width)
    query, key, value = (mixed[:, :, part].transpose(0, 2, 1, 3) for part in range(3))

    def attend(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        queries, query_segments = block
        scores = _product(queries, key, 3, 3)
        same = query_segments[:, None, :, None] == segments[:, None, None, :]
        scores = jnp.where(same, scores, MASKED)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        return _product(weights.astype(dtype), value, 3, 2) / weights.sum(-1, keepdims=True)

    if length <= QUERY_BLOCK:
        mixed = attend((query, segments))
    else:
        blocks = length // QUERY_BLOCK
        queries = query.reshape(rows, heads, blocks, QUERY_BLOCK, width).transpose(2, 0, 1, 3, 4)
        query_segments = segments.reshape(rows, blocks, QUERY_BLOCK).transpose(1, 0, 2)
        mixed = lax.map(attend, (queries, query_segments))
        mixed = mixed.transpose(1, 2, 0, 3, 4).reshape(rows, heads, length, width)
    return mixed.astype(dtype).transpose(0, 2, 1, 3).reshape(rows * length, heads * width)


def _by_tiles(
    arch: BertArchitecture, layer: Any, hidden: jax.Array, attended: jax.Array, tile: int
) -> jax.Array:
    def finish(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        residual, mixed = part
        normed = _layer_norm(residual + _dense(mixed, layer["out"]), layer["out_norm"], arch.epsilon)
        inner = _activate(arch.activation, _dense(normed, layer["up"]))
        return _layer_norm(normed + _dense(inner, layer["down"]), layer["down_norm"], arch.epsilon)

    tokens = hidden.shape[0]
    if tile == 0 or tokens % tile or tokens == tile:
        return finish((hidden, attended))
    shape = (tokens // tile, tile, arch.dim)
    return lax.map(finish, (hidden.reshape(shape), attended.reshape(shape))).reshape(hidden.shape)


def _dense(inputs: jax.Array, layer: Any) -> jax.Array:
    weight = layer["weight"]
    return _product(inputs.astype(weight.dtype), weight, 1, 0) + layer["bias"]


def _product(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    batch = tuple(range(min(left.ndim, right.ndim) - 2))
    # Without HIGHEST, accelerators compute float32 products in TF32 or bfloat16.
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return lax.dot_general(
        left,
        right,
        (((left_axis,), (right_axis,)), (batch, batch)),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _layer_norm(values: jax.Array, norm: Any, epsilon: float) -> jax.Array:
    mean = values.mean(-1, keepdims=True)
    centred = values - mean
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred * lax.rsqrt(variance + epsilon) * norm["scale"] + norm["bias"]


def _activate(name: str, values: jax.Array) -> jax.Array:
    if name == "relu":
        return jax.nn.relu(values)
    if name == "gelu":
        return 0.5 * values * (1 + lax.erf(values * (0.5**0.5)))
    return jax.nn.gelu(values, approximate=True)  # gelu_new and gelu_pytorch_tanh
