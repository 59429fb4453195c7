"""Encoders with rotary positions and a norm before each part, in JAX: ModernBERT and Qwen3."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from transforms.embed.attention import Slots, attend
from transforms.embed.execution import PLAIN, Execution
from transforms.embed.layers import (
    activate,
    by_tiles,
    dense,
    dense_joined,
    layer_norm,
    look_up,
    rms_norm,
)
from transforms.embed.rotary_layout import RotaryArchitecture
from transforms.embed.sight import Heads, Sight


def encode(
    arch: RotaryArchitecture,
    params: Any,
    tokens: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    execution: Execution = PLAIN,
) -> jax.Array:
    """The last hidden states, `[rows, length, dim]` float32; arguments as those of `bert.encode`."""
    rows, length = tokens.shape
    hidden = look_up(params["words"], tokens, execution.parts)
    hidden = hidden.astype(jnp.float32).reshape(rows * length, arch.dim)
    if "norm" in params:
        hidden = _norm(arch, hidden, params["norm"])
    turns = {theta: _turns(positions, arch.head_dim, theta) for theta in set(arch.thetas)}
    slots = Slots(segments, positions)
    for layer, theta, window in zip(params["layers"], arch.thetas, arch.windows, strict=True):
        normed = _norm(arch, hidden, layer["in_norm"]) if "in_norm" in layer else hidden
        sight = Sight(arch.causal, window)
        mixed = _attention(arch, layer, normed, slots, turns[theta], sight, execution)
        hidden = by_tiles(_finish(arch, layer, execution.parts), hidden, mixed, execution.token_tile)
    return _norm(arch, hidden, params["final_norm"]).reshape(rows, length, arch.dim)


def _attention(
    arch: RotaryArchitecture,
    layer: Any,
    normed: jax.Array,
    slots: Slots,
    turn: tuple[jax.Array, jax.Array],
    sight: Sight,
    execution: Execution,
) -> jax.Array:
    rows, length = slots.segments.shape
    dtype, width = layer["qkv"]["weight"].dtype, arch.head_dim
    heads, kv_heads = arch.heads // execution.parts, arch.kv_heads // execution.parts
    mixed = dense(normed, layer["qkv"]).reshape(rows, length, heads + 2 * kv_heads, width)
    query, key, value = jnp.split(mixed, (heads, heads + kv_heads), axis=2)
    if "query_norm" in layer:
        query = rms_norm(query, layer["query_norm"], arch.epsilon)
        key = rms_norm(key, layer["key_norm"], arch.epsilon)
    query, key = _turned(query, turn), _turned(key, turn)
    query, key, value = (
        Heads(part.astype(dtype).reshape(rows, length, -1), count, width)
        for part, count in ((query, heads), (key, kv_heads), (value, kv_heads))
    )
    return attend(query, key, value, slots, sight, execution=execution)


def _turns(positions: jax.Array, width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every token's angles, `[rows, length, 1, width / 2]`."""
    rates = 1.0 / theta ** (jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions[:, :, None, None].astype(jnp.float32) * rates
    return jnp.cos(angles), jnp.sin(angles)


def _turned(values: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`[rows, length, heads, width]`, component i turned with component i + width / 2."""
    cosine, sine = turn
    left, right = jnp.split(values, 2, axis=-1)
    return jnp.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1)


def _finish(arch: RotaryArchitecture, layer: Any, parts: int) -> Any:
    def finish(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        residual, mixed = part
        hidden = residual + dense_joined(mixed, layer["out"], parts)
        gate, up = jnp.split(dense(_norm(arch, hidden, layer["up_norm"]), layer["up"]), 2, axis=-1)
        return hidden + dense_joined(activate(arch.activation, gate) * up, layer["down"], parts)

    return finish


def _norm(arch: RotaryArchitecture, values: jax.Array, norm: Any) -> jax.Array:
    return (rms_norm if arch.norm == "rms" else layer_norm)(values, norm, arch.epsilon)
