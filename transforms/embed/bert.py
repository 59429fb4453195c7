"""The BERT, RoBERTa and MPNet encoders in JAX, over rows of several texts told apart by segments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from transforms.embed.bert_layout import BertArchitecture
from transforms.embed.layers import activate, attend, by_tiles, dense, layer_norm


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
        token_tile: tokens that the dense part of a layer works on at a time, and attention goes head by
            head, as is best on CPUs; 0: all at once.
    """
    rows, length = tokens.shape
    hidden = params["words"][tokens] + params["positions"][positions]
    hidden = layer_norm(hidden.astype(jnp.float32), params["norm"], arch.epsilon)
    hidden = hidden.reshape(rows * length, arch.dim)
    bias = _relative_bias(params["relative"], positions) if "relative" in params else None
    for layer in params["layers"]:
        attended = _attention(arch, layer["qkv"], hidden, segments, positions, bias, token_tile > 0)
        hidden = by_tiles(_finish(arch, layer), hidden, attended, token_tile)
    return hidden.reshape(rows, length, arch.dim)


def _attention(
    arch: BertArchitecture,
    qkv: Any,
    hidden: jax.Array,
    segments: jax.Array,
    positions: jax.Array,
    bias: jax.Array | None,
    head_by_head: bool,
) -> jax.Array:
    rows, length = segments.shape
    mixed = dense(hidden, qkv).astype(qkv["weight"].dtype)
    mixed = mixed.reshape(rows, length, 3, arch.heads, arch.head_dim)
    query, key, value = (mixed[:, :, part].transpose(0, 2, 1, 3) for part in range(3))
    return attend(query, key, value, segments, positions, bias=bias, head_by_head=head_by_head)


def _relative_bias(table: jax.Array, positions: jax.Array) -> jax.Array:
    """What MPNet adds to the scores, `[rows, heads, length, length]`: it depends on the distance."""
    middle = table.shape[0] // 2
    distance = positions[:, None, :] - positions[:, :, None] + middle
    return table[distance].transpose(0, 3, 1, 2)


def _finish(arch: BertArchitecture, layer: Any) -> Any:
    def finish(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        residual, mixed = part
        normed = layer_norm(residual + dense(mixed, layer["out"]), layer["out_norm"], arch.epsilon)
        inner = activate(arch.activation, dense(normed, layer["up"]))
        return layer_norm(normed + dense(inner, layer["down"]), layer["down_norm"], arch.epsilon)

    return finish
