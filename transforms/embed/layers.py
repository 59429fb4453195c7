"""What the encoders are built of, in JAX: products, norms, activations, attention over packed rows.

What makes them fast on a CPU: activations stay flat, `[tokens, dim]`, for one large GEMM each; query,
key and value come from one GEMM with the attention's scale folded in; attention goes over a block of
queries at a time and the rest of a layer over a tile of tokens at a time, so that scores and hidden
activations stay in the cache. Matrix products take the weights' dtype and accumulate in float32;
norms, softmax and the residual stream are float32 always.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

QUERY_BLOCK = 128
MASKED = -1e9  # exp(MASKED - max) is exactly 0 in float32


@dataclass(frozen=True, slots=True)
class Sight:
    """Which tokens of its own segment a token sees: all, those before it, or those near it."""

    causal: bool = False
    window: int = 0  # at most this far to either side; 0: any distance


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    positions: jax.Array,
    sight: Sight = Sight(),
    bias: jax.Array | None = None,
    head_by_head: bool = False,
) -> jax.Array:
    """Attention of every token to those of its own segment; flat, `[rows * length, heads * width]`.

    Args:
        query: `[rows, heads, length, width]`, already scaled.
        key: as `query`, or with fewer heads, each of which serves as many query heads in a row.
        value: as `key`.
        segments: `[rows, length]`, see `bert.encode`.
        positions: position of each token in its own text, `[rows, length]`.
        sight: what a token sees of its own segment.
        bias: added to the scores, `[rows, heads, length, length]`; None: nothing.
        head_by_head: for CPUs: long rows go one head and one block of queries at a time, so that the
            scores stay in a core's cache.
    """
    rows, heads, length, width = query.shape
    key, value, segments, positions = (jnp.asarray(part) for part in (key, value, segments, positions))
    bias = None if bias is None else jnp.asarray(bias)

    def block(part: tuple[jax.Array, ...]) -> jax.Array:
        queries, keys, values, query_segments, query_positions, *added = part
        scores = product(queries, keys, 3, 3)
        if added:
            scores = scores + added[0]
        seen = _seen(sight, query_segments, query_positions, segments, positions)
        return _mixed(jnp.where(seen[:, None], scores, MASKED), values)

    if length > QUERY_BLOCK and head_by_head:
        mixed = _head_by_head(query, key, value, segments, positions, sight, bias)
    else:
        groups = heads // key.shape[1]
        key, value = (jnp.repeat(part, groups, axis=1) if groups > 1 else part for part in (key, value))
        added = () if bias is None else (bias,)
        if length <= QUERY_BLOCK:
            mixed = block((query, key, value, segments, positions, *added))
        else:
            parts = tuple(_in_blocks(part, length) for part in (query, segments, positions, *added))
            mixed = lax.map(lambda part: block((part[0], key, value, *part[1:])), parts)
            mixed = mixed.transpose(1, 2, 0, 3, 4).reshape(rows, heads, length, width)
    return mixed.astype(value.dtype).transpose(0, 2, 1, 3).reshape(rows * length, heads * width)


def _head_by_head(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    positions: jax.Array,
    sight: Sight,
    bias: jax.Array | None,
) -> jax.Array:
    rows, heads, length, width = query.shape
    blocks, groups = length // QUERY_BLOCK, heads // key.shape[1]

    def block(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        number, queries = part
        row, head, start = number // (heads * blocks), number // blocks % heads, number % blocks * QUERY_BLOCK
        scores = product(queries, key[row, head // groups], 1, 1)
        if bias is not None:
            scores = scores + lax.dynamic_slice_in_dim(bias[row, head], start, QUERY_BLOCK)
        seen = _seen(
            sight,
            lax.dynamic_slice_in_dim(segments[row], start, QUERY_BLOCK)[None],
            lax.dynamic_slice_in_dim(positions[row], start, QUERY_BLOCK)[None],
            segments[row][None],
            positions[row][None],
        )
        return _mixed(jnp.where(seen[0], scores, MASKED), value[row, head // groups])

    queries = query.reshape(rows * heads * blocks, QUERY_BLOCK, width)
    return lax.map(block, (jnp.arange(len(queries)), queries)).reshape(query.shape)


def _mixed(scores: jax.Array, values: jax.Array) -> jax.Array:
    """The values mixed by the softmax of the scores, divided after the product: it has fewer numbers."""
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    mixed = product(weights.astype(values.dtype), values, values.ndim - 1, values.ndim - 2)
    return mixed / weights.sum(-1, keepdims=True)


def _seen(
    sight: Sight,
    query_segments: jax.Array,
    query_positions: jax.Array,
    segments: jax.Array,
    positions: jax.Array,
) -> jax.Array:
    seen = query_segments[:, :, None] == segments[:, None, :]
    if sight.causal:
        seen = seen & (positions[:, None, :] <= query_positions[:, :, None])
    if sight.window:
        seen = seen & (jnp.abs(positions[:, None, :] - query_positions[:, :, None]) <= sight.window)
    return seen


def _in_blocks(part: jax.Array, length: int) -> jax.Array:
    """`[rows, (heads,) length, ...]` as `[blocks, rows, (heads,) QUERY_BLOCK, ...]`."""
    axis = 1 if part.ndim == 2 else 2
    shape = (*part.shape[:axis], length // QUERY_BLOCK, QUERY_BLOCK, *part.shape[axis + 1 :])
    return jnp.moveaxis(part.reshape(shape), axis, 0)


def by_tiles(
    finish: Callable[[tuple[jax.Array, jax.Array]], jax.Array],
    hidden: jax.Array,
    attended: jax.Array,
    tile: int,
) -> jax.Array:
    """`finish((hidden, attended))`, for `tile` tokens at a time; 0, or no divisor: for all at once."""
    tokens = hidden.shape[0]
    if tile == 0 or tokens % tile or tokens == tile:
        return finish((hidden, attended))
    parts = tuple(part.reshape(tokens // tile, tile, part.shape[1]) for part in (hidden, attended))
    return lax.map(finish, parts).reshape(hidden.shape)


def dense(inputs: jax.Array, layer: Any) -> jax.Array:
    """`inputs @ weight + bias`, in the weight's dtype, accumulated in float32; the bias is optional."""
    weight = layer["weight"]
    made = product(inputs.astype(weight.dtype), weight, 1, 0)
    return made + layer["bias"] if "bias" in layer else made


def product(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """The product over two axes, all but the last two being batch axes; float32."""
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


def layer_norm(values: jax.Array, norm: Any, epsilon: float) -> jax.Array:
    """LayerNorm over the last axis; the bias is optional."""
    mean = values.mean(-1, keepdims=True)
    centred = values - mean
    variance = (centred * centred).mean(-1, keepdims=True)
    normed = centred * lax.rsqrt(variance + epsilon) * norm["scale"]
    return normed + norm["bias"] if "bias" in norm else normed


def rms_norm(values: jax.Array, norm: Any, epsilon: float) -> jax.Array:
    """Root-mean-square norm over the last axis."""
    square = (values * values).mean(-1, keepdims=True)
    return values * lax.rsqrt(square + epsilon) * norm["scale"]


def activate(name: str, values: jax.Array) -> jax.Array:
    """The activation that config.json calls by that name."""
    if name == "relu":
        return jax.nn.relu(values)
    if name == "silu":
        return jax.nn.silu(values)
    if name == "gelu":
        return 0.5 * values * (1 + lax.erf(values * (0.5**0.5)))
    return jax.nn.gelu(values, approximate=True)  # gelu_new and gelu_pytorch_tanh
