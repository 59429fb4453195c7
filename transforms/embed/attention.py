"""Attention over rows that several texts share: one function, and the fastest exact way of each platform.

Every way gives the same numbers up to rounding: scores and softmax in float32, the weights rounded to
the values' dtype for the second product, divided by their float32 sum afterwards. A text's tokens stand
side by side in their row, so within a text distances of slots are distances of positions. What an empty
slot gets is of no meaning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from transforms.embed.execution import PLAIN, Execution, Kernel
from transforms.embed.layers import product
from transforms.embed.mosaic import mosaic_attention, takes_heads
from transforms.embed.sight import EVERYTHING, Heads, Sight

QUERY_BLOCK = 128
_LOG = logging.getLogger(__name__)
MASKED = -1e9  # exp(MASKED - max) is exactly 0 in float32


@dataclass(frozen=True, slots=True)
class Slots:
    """What stands in the slots of the rows, both `[rows, length]` int32; see `bert.encode`."""

    segments: jax.Array
    positions: jax.Array


def attend(
    query: Heads,
    key: Heads,
    value: Heads,
    slots: Slots,
    sight: Sight = EVERYTHING,
    bias: jax.Array | None = None,
    execution: Execution = PLAIN,
) -> jax.Array:
    """Attention of every token to those of its own segment; flat, `[rows * length, heads * width]`.

    The kernels of `execution`: `blocks` takes a block of queries at a time, `head_by_head` also one head
    at a time, so that a CPU core's cache holds the scores; `mosaic` is our own for TPUs, `cudnn` NVIDIA's.
    A kernel that can't take these heads, or rows this short, leaves them to `blocks`.

    Args:
        query: already scaled.
        key: as `query`, or with fewer heads, each of which serves as many query heads in a row.
        value: as `key`.
        slots: segments and positions.
        sight: what a token sees of its own segment.
        bias: added to the scores, `[heads, length, length]`; None: nothing.
        execution: the platform's way.
    """
    if execution.kernel == "mosaic" and takes_heads(query, key, value):
        mixed = mosaic_attention(query, key, value, slots.segments, sight, bias, execution.interpret)
        return mixed.reshape(-1, query.lanes)
    parts = query.split(), key.split(), value.split()
    if execution.kernel == "cudnn" and bias is None:
        return fused_attention(*parts, slots, sight, "cudnn")
    rows, _, length, _ = parts[0].shape
    if execution.kernel == "head_by_head" and length > QUERY_BLOCK:
        mixed = _head_by_head(*parts, slots, sight, bias)
    else:
        mixed = _by_blocks(*parts, slots, sight, bias)
    return mixed.astype(value.values.dtype).transpose(0, 2, 1, 3).reshape(rows * length, query.lanes)


def fused_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    slots: Slots,
    sight: Sight,
    implementation: str,
) -> jax.Array:
    """Through `jax.nn.dot_product_attention`, whose mask is one for all heads of a row."""
    rows, heads, length, width = query.shape
    seen = _seen(sight, slots.segments, slots.positions, slots.segments, slots.positions)
    mixed = jax.nn.dot_product_attention(
        *(part.transpose(0, 2, 1, 3) for part in (query, key, value)),
        mask=seen[:, None],
        scale=1.0,
        implementation=implementation,
    )
    return mixed.reshape(rows * length, heads * width)


def kernel_that_works(
    kernel: Kernel, head_width: int, compile_cudnn: Callable[[int], object] | None = None
) -> Kernel:
    """The kernel, or `blocks` where cuDNN is missing or refuses heads of this width on this GPU."""
    if kernel != "cudnn":
        return kernel
    try:
        (compile_cudnn or _compile_cudnn)(head_width)
    except Exception as error:  # what is missing decides which one it is
        _LOG.warning("cuDNN's attention can't be used, XLA's is: %s", error)
        return "blocks"
    return kernel


def _compile_cudnn(head_width: int) -> object:
    part = jax.ShapeDtypeStruct((1, 1, QUERY_BLOCK, head_width), jnp.bfloat16)
    slot = jax.ShapeDtypeStruct((1, QUERY_BLOCK), jnp.int32)

    def attention(parts: list[jax.Array], segments: jax.Array, positions: jax.Array) -> jax.Array:
        return fused_attention(parts[0], parts[1], parts[2], Slots(segments, positions), EVERYTHING, "cudnn")

    return jax.jit(attention).lower([part, part, part], slot, slot).compile()


def _by_blocks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    slots: Slots,
    sight: Sight,
    bias: jax.Array | None,
) -> jax.Array:
    rows, heads, length, width = query.shape
    groups = heads // key.shape[1]
    key, value = (jnp.repeat(part, groups, axis=1) if groups > 1 else part for part in (key, value))
    added = () if bias is None else (bias[None],)

    def block(part: tuple[jax.Array, ...]) -> jax.Array:
        queries, query_segments, query_positions, *added = part
        scores = product(queries, key, 3, 3)
        if added:
            scores = scores + added[0]
        seen = _seen(sight, query_segments, query_positions, slots.segments, slots.positions)
        return _mixed(jnp.where(seen[:, None], scores, MASKED), value)

    whole = (query, slots.segments, slots.positions, *added)
    if length <= QUERY_BLOCK:
        return block(whole)
    mixed = lax.map(block, tuple(_in_blocks(part, length) for part in whole))
    return mixed.transpose(1, 2, 0, 3, 4).reshape(rows, heads, length, width)


def _head_by_head(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    slots: Slots,
    sight: Sight,
    bias: jax.Array | None,
) -> jax.Array:
    rows, heads, length, width = query.shape
    blocks, groups = length // QUERY_BLOCK, heads // key.shape[1]
    segments, positions = slots.segments, slots.positions

    def block(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        number, queries = part
        row, head, start = number // (heads * blocks), number // blocks % heads, number % blocks * QUERY_BLOCK
        scores = product(queries, key[row, head // groups], 1, 1)
        if bias is not None:
            scores = scores + lax.dynamic_slice_in_dim(bias[head], start, QUERY_BLOCK)
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
