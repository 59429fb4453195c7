"""Attention as a Pallas kernel for TPUs, over rows that several texts share.

A TPU keeps arrays in tiles of 128 lanes. `[rows, heads, length, 32]` is stored four times as large as it
is, and the transposes to it and back cost more than the attention: on v5e all-MiniLM-L6-v2 around splash
or flash attention takes four times the cycles that it takes around this kernel (see
.github/adr/019-accelerators.md). So heads stay side by side in the lanes as the product before wrote
them, and a block of 128 lanes is worked on at a time: one head of 128, or several narrower ones, each
with the others' lanes of the query set to zero. A whole row of keys and values is in the chip's vector
memory, so softmax is the plain one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from transforms.embed.sight import Heads, Sight

_Place = Callable[[Any, Any, Any], tuple[Any, Any, Any]]
"""Row, block of queries and group of heads to the numbers of a block."""

LANES = 128
MASKED = -1e30
_SCORES = 512 * 1024
"""Scores of a block of queries at most: 2 MiB in float32, of some ten that live in vector memory."""
_VECTOR_MEMORY = 64 * 2**20
"""Bytes that the kernel may use: all that TPU7x has a core, half of v5e's and v6e's."""


def takes_heads(query: Heads, key: Heads, value: Heads) -> bool:
    """Whether the kernel can take heads of this width, number and place, and rows of this length."""
    width, length = query.width, query.values.shape[1]
    if length % LANES or query.values.dtype != jnp.bfloat16:
        return False
    if width % LANES == 0:
        return query.count % key.count == 0
    whole = all(part.lanes % LANES == 0 and part.first * width % LANES == 0 for part in (query, key, value))
    return LANES % width == 0 and whole and query.count == key.count


@dataclass(frozen=True, slots=True)
class _Blocks:
    """How the work is cut: queries a block, keys that a block can see, lanes of a block."""

    queries: int
    keys: int
    lanes: int
    length: int

    @classmethod
    def of(cls, length: int, width: int, sight: Sight) -> _Blocks:
        near = -(-sight.window // LANES) * LANES
        wanted = max(LANES, near or _SCORES // length // LANES * LANES)
        queries = next(q for q in range(min(length, wanted), 0, -LANES) if length % q == 0)
        keys = min(length, queries + 2 * near) if near else length
        return cls(queries, keys, max(LANES, width), length)

    def first_key(self, block: Any) -> Any:
        """The slot where the keys of a block of queries begin; a multiple of 128."""
        before = (self.keys - self.queries) // 2
        return jnp.clip(block * self.queries - before, 0, self.length - self.keys)


def mosaic_attention(
    query: Heads,
    key: Heads,
    value: Heads,
    segments: jax.Array,
    sight: Sight,
    bias: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """As `attention.attend`, `[rows, length, heads * width]`; `takes_heads` must hold."""
    rows, length, _ = query.values.shape
    width, shared = query.width, query.count // key.count
    blocks = _Blocks.of(length, width, sight)
    heads_a_block = blocks.lanes // width
    groups, steps = query.lanes // blocks.lanes, length // blocks.queries

    # The grid's last axis varies fastest, and what doesn't change with it is not fetched again: the
    # segments of a row, or the bias of a head.
    biased = bias is not None

    def block_spec(shape: tuple[int, int, int], place: _Place) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda a, b, c: place(c, b, a) if biased else place(a, b, c))

    def whole_row(part: Heads, share: int) -> pl.BlockSpec:
        first = part.first * width // blocks.lanes
        return block_spec((1, length, blocks.lanes), lambda row, _, group: (row, 0, first + group // share))

    first = query.first * width // blocks.lanes
    of_queries = (1, blocks.queries, blocks.lanes)
    in_specs = [
        block_spec(of_queries, lambda row, block, group: (row, block, first + group)),
        whole_row(key, shared),
        whole_row(value, shared),
        block_spec((1, blocks.queries, 1), lambda row, block, _: (row, block, 0)),
        block_spec((1, 1, length), lambda row, _, __: (row, 0, 0)),
    ]
    inputs = [query.values, key.values, value.values, segments[:, :, None], segments[:, None, :]]
    if bias is not None:
        of_bias = (heads_a_block, blocks.queries, length)
        in_specs.append(block_spec(of_bias, lambda _, block, group: (group, block, 0)))
        inputs.append(bias)
    scores = rows * query.count * length * blocks.keys
    return pl.pallas_call(
        partial(_kernel, blocks=blocks, width=width, sight=sight),
        grid=(groups, steps, rows) if biased else (rows, steps, groups),
        in_specs=in_specs,
        out_specs=block_spec(of_queries, lambda row, block, group: (row, block, group)),
        out_shape=jax.ShapeDtypeStruct((rows, length, query.lanes), query.values.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",) * 3, vmem_limit_bytes=_VECTOR_MEMORY
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * scores * width,
            transcendentals=scores,
            bytes_accessed=2 * rows * length * 2 * (query.lanes + key.lanes),
        ),
        interpret=interpret,
        name="packed_attention",
    )(*inputs)


def _kernel(
    query: Any,
    key: Any,
    value: Any,
    query_segments: Any,
    key_segments: Any,
    *rest: Any,
    blocks: _Blocks,
    width: int,
    sight: Sight,
) -> None:
    bias, out = rest if len(rest) == 2 else (None, *rest)
    block = pl.program_id(1)
    start = pl.multiple_of(blocks.first_key(block), LANES) if blocks.keys < blocks.length else 0
    near = pl.ds(start, blocks.keys)
    keys, values = key[0, near, :], value[0, near, :]
    seen = query_segments[0] == key_segments[0, :, near]
    if sight.causal or sight.window:
        shape = (blocks.queries, blocks.keys)
        own = block * blocks.queries + lax.broadcasted_iota(jnp.int32, shape, 0)
        others = start + lax.broadcasted_iota(jnp.int32, shape, 1)
        if sight.causal:
            seen = seen & (others <= own)
        if sight.window:
            seen = seen & (jnp.abs(others - own) <= sight.window)
    queries = query[0]
    lane = lax.broadcasted_iota(jnp.int32, (1, blocks.lanes), 1) // width
    mixed = jnp.zeros(queries.shape, jnp.float32)
    for head in range(blocks.lanes // width):
        own_lanes = lane == head
        alone = queries if width == blocks.lanes else jnp.where(own_lanes, queries, jnp.zeros_like(queries))
        scores = lax.dot_general(alone, keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        if bias is not None:
            scores = scores + bias[head]
        scores = jnp.where(seen, scores, MASKED)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        found = lax.dot_general(
            weights.astype(values.dtype),
            values,
            (((1,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        found = found / weights.sum(-1, keepdims=True)
        mixed = found if width == blocks.lanes else jnp.where(own_lanes, found, mixed)
    out[0] = mixed.astype(out.dtype)
