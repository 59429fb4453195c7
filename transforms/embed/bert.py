"""The BERT, RoBERTa and MPNet encoders in JAX, over rows of several texts told apart by segments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from transforms.embed.attention import Slots, attend
from transforms.embed.bert_layout import BertArchitecture
from transforms.embed.execution import PLAIN, Execution
from transforms.embed.layers import activate, by_tiles, dense, dense_joined, layer_norm, look_up
from transforms.embed.sight import Heads


def encode(
    arch: BertArchitecture,
    params: Any,
    tokens: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    execution: Execution = PLAIN,
) -> jax.Array:
    """The last hidden states, `[rows, length, dim]` float32.

    Args:
        arch: the architecture that `params` were arranged for.
        params: what `bert_layout.arrange` gives; matrices in float32 or bfloat16.
        tokens: token ids, `[rows, length]` int32.
        positions: position of each token in its own text, `[rows, length]` int32.
        segments: 1, 2, ... for the texts of a row, 0 for empty slots, `[rows, length]` int32. Tokens
            see those of their own segment only.
        execution: the platform's way; with several `parts`, `params` are one device's part of them, see
            `sharding`.
    """
    rows, length = tokens.shape
    hidden = look_up(params["words"], tokens, execution.parts) + params["positions"][positions]
    hidden = layer_norm(hidden.astype(jnp.float32), params["norm"], arch.epsilon)
    hidden = hidden.reshape(rows * length, arch.dim)
    bias = _relative_bias(params["relative"], length) if "relative" in params else None
    heads, slots = arch.heads // execution.parts, Slots(segments, positions)
    for layer in params["layers"]:
        mixed = dense(hidden, layer["qkv"]).astype(layer["qkv"]["weight"].dtype).reshape(rows, length, -1)
        query, key, value = (Heads(mixed, heads, arch.head_dim, part * heads) for part in range(3))
        attended = attend(query, key, value, slots, bias=bias, execution=execution)
        hidden = by_tiles(_finish(arch, layer, execution.parts), hidden, attended, execution.token_tile)
    return hidden.reshape(rows, length, arch.dim)


def _relative_bias(table: jax.Array, length: int) -> jax.Array:
    """What MPNet adds to the scores, `[heads, length, length]`: it depends on the distance.

    The tokens of a text stand side by side, so the distance of their slots is that of their positions,
    and it is the same for all rows. Distances that no text has get the outermost bias: they are masked.
    """
    middle = table.shape[0] // 2
    slots = jnp.arange(length)
    distance = jnp.clip(slots[None, :] - slots[:, None], -middle, middle) + middle
    return table[distance].transpose(2, 0, 1)


def _finish(arch: BertArchitecture, layer: Any, parts: int) -> Any:
    def finish(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        residual, mixed = part
        normed = layer_norm(
            residual + dense_joined(mixed, layer["out"], parts), layer["out_norm"], arch.epsilon
        )
        inner = activate(arch.activation, dense(normed, layer["up"]))
        return layer_norm(
            normed + dense_joined(inner, layer["down"], parts), layer["down_norm"], arch.epsilon
        )

    return finish
