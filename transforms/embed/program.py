"""One step as a function that JAX compiles: encode, pool, dense modules, normalise, cut to size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from transforms.embed import bert, rotary
from transforms.embed.bert_layout import BertArchitecture
from transforms.embed.execution import DATA_AXIS, Execution
from transforms.embed.families import Architecture
from transforms.embed.layers import activate

_LEAST_NORM_SQUARED = 1e-24  # a vector of zeros stays zeros


@dataclass(frozen=True, slots=True)
class Head:
    """What makes vectors of hidden states.

    `dense` are the activations of dense modules, whose parameters are `params["dense"]`; `dim` is how
    many components are kept, the first ones, before normalising.
    """

    pooling: str
    normalize: bool
    dim: int
    dense: tuple[str, ...] = ()


def step_program(
    arch: Architecture,
    head: Head,
    execution: Execution,
    encode: Any = None,
    sum_texts: Callable[[jax.Array, jax.Array, int], jax.Array] | None = None,
) -> Callable[[Any, jax.Array, int], jax.Array]:
    """A function of parameters, packed step and texts a row; gives `[rows, texts, dim]` float32.

    `encode` is the encoder if it is another than the family's own, with the same arguments; `sum_texts` adds
    up hidden states by segment, if there is something faster than a product.
    """
    if encode is None:
        encode = bert.encode if isinstance(arch, BertArchitecture) else rotary.encode

    def embed_step(params: Any, packed: jax.Array, texts: int) -> jax.Array:
        tokens, positions, segments = packed[0], packed[1], packed[2]
        hidden = encode(arch, params, tokens, positions, segments, execution)
        vectors = _pool(head.pooling, hidden, positions, segments, texts, sum_texts)
        for activation, layer in zip(head.dense, params.get("dense", ()), strict=True):
            vectors = _dense(vectors, layer, activation)
        vectors = vectors[..., : head.dim]
        return _unit(vectors) if head.normalize else vectors

    return embed_step


def spread(program: Callable[..., jax.Array], mesh: Mesh, specs: Any, texts: int) -> Any:
    """The step over a mesh: rows over the copies of the model, parameters as `specs` say.

    Every device runs the program on what is its own, so that kernels which XLA can't divide need no
    dividing; they also carry no types of varying axes, so those are not checked.
    """
    return jax.shard_map(
        lambda params, packed: program(params, packed, texts),
        mesh=mesh,
        in_specs=(specs, P(None, DATA_AXIS)),
        out_specs=P(DATA_AXIS),
        check_vma=False,
    )


def _pool(
    pooling: str,
    hidden: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    texts: int,
    sum_texts: Callable[[jax.Array, jax.Array, int], jax.Array] | None = None,
) -> jax.Array:
    """`[rows, length, dim]` to `[rows, texts, dim]`, text i being that of segment i + 1."""
    own = segments[:, None, :] == jnp.arange(1, texts + 1)[None, :, None]
    if pooling == "max":
        return _largest(hidden, segments, texts)
    if pooling == "cls":
        own = own & (positions[:, None, :] == 0)
    if pooling == "lasttoken":
        following = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
        own = own & (segments != following)[:, None, :]
    weights = own.astype(jnp.float32)
    if pooling == "weightedmean":
        weights = weights * (positions[:, None, :] + 1)
    if sum_texts is not None and pooling in ("mean", "mean_sqrt_len_tokens"):
        pooled = sum_texts(hidden, segments, texts)
    else:
        pooled = jnp.einsum("rts,rsd->rtd", weights, hidden, precision=lax.Precision.HIGHEST)
    total = jnp.maximum(weights.sum(-1, keepdims=True), 1)
    return pooled / (jnp.sqrt(total) if pooling == "mean_sqrt_len_tokens" else total)


def _largest(hidden: jax.Array, segments: jax.Array, texts: int) -> jax.Array:
    def of_row(states: jax.Array, numbers: jax.Array) -> jax.Array:
        found = jax.ops.segment_max(states, numbers, num_segments=texts + 1)
        return jnp.where(jnp.isfinite(found), found, 0)[1:]  # a segment without tokens gives -inf

    return jax.vmap(of_row)(hidden, segments)


def _dense(vectors: jax.Array, layer: Any, activation: str) -> jax.Array:
    made = jnp.einsum("rti,io->rto", vectors, layer["weight"], precision=lax.Precision.HIGHEST)
    made = made + layer["bias"] if "bias" in layer else made
    if activation == "tanh":
        return jnp.tanh(made)
    if activation == "sigmoid":
        return jax.nn.sigmoid(made)
    return activate(activation, made) if activation else made


def _unit(vectors: jax.Array) -> jax.Array:
    squared = (vectors * vectors).sum(-1, keepdims=True)
    return vectors * lax.rsqrt(jnp.maximum(squared, _LEAST_NORM_SQUARED))
