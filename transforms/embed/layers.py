"""What the encoders are built of besides attention, in JAX: products, norms, activations.

What makes them fast on a CPU: activations stay flat, `[tokens, dim]`, for one large GEMM each; query,
key and value come from one GEMM with the attention's scale folded in; attention goes over a block of
queries at a time and the rest of a layer over a tile of tokens at a time, so that scores and hidden
activations stay in the cache. Matrix products take the weights' dtype and accumulate in float32;
norms, softmax and the residual stream are float32 always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from transforms.embed.execution import MODEL_AXIS


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


def dense_joined(inputs: jax.Array, layer: Any, parts: int) -> jax.Array:
    """As `dense`, where each of `parts` devices has some of the inputs and the matrix's rows for them."""
    weight = layer["weight"]
    made = product(inputs.astype(weight.dtype), weight, 1, 0)
    made = lax.psum(made, MODEL_AXIS) if parts > 1 else made
    return made + layer["bias"] if "bias" in layer else made


def look_up(words: jax.Array, tokens: jax.Array, parts: int) -> jax.Array:
    """The tokens' embeddings; each of `parts` devices has some components of all of them."""
    found = words[tokens]
    return lax.all_gather(found, MODEL_AXIS, axis=found.ndim - 1, tiled=True) if parts > 1 else found


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
