"""The BERT encoder through the CPU's own kernels: what fits, its parameters, and the calls."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transforms.embed.bert_layout import BertArchitecture
from transforms.embed.device import cpu_flags
from transforms.embed.execution import Execution
from transforms.embed.kernels.attention import room, write_attention
from transforms.embed.kernels.attention_parts import Heads
from transforms.embed.kernels.ends import Table, Texts, write_rows, write_sums
from transforms.embed.kernels.machine import make_known, may_use_tiles
from transforms.embed.kernels.panels import WIDTH, Layer, pack_panels, write_dense
from transforms.embed.layers import layer_norm

SWITCH = "SWITCHGEAR_CPU_KERNELS"
"""Set to 0, everything goes through XLA: to compare, or should a kernel ever be in doubt."""
_ACTIVATIONS = ("gelu", "relu")
TOKENS = 64
"""A step has a multiple of so many tokens: whole tiles of 32, and no fewer rows than a product takes."""
FLAGS = ("avx512f", "avx512bw", "avx512dq")
TILE_FLAGS = ("amx_tile", "amx_bf16", "avx512_bf16")


def fits(arch: BertArchitecture, bfloat16: bool, flags: frozenset[str] | None = None) -> bool:
    """Whether the kernels can run this architecture on this CPU: AVX-512, and AMX for bfloat16."""
    needed = FLAGS + TILE_FLAGS if bfloat16 else FLAGS
    if os.environ.get(SWITCH) == "0" or not set(needed) <= (cpu_flags() if flags is None else flags):
        return False
    whole = arch.dim % WIDTH == 0 and arch.ffn_dim % WIDTH == 0
    heads = arch.head_dim % (32 if bfloat16 else 16) == 0 and arch.head_dim <= 64
    plain = arch.activation in _ACTIVATIONS and not arch.relative_buckets
    return whole and heads and plain and (not bfloat16 or may_use_tiles())


def pack_parameters(params: Any, bfloat16: bool) -> Any:
    """The parameters with the layers' matrices as the kernels read them."""
    layers = [
        {
            name: {**part, "weight": pack_panels(np.asarray(part["weight"]), bfloat16)}
            if "weight" in part
            else part
            for name, part in layer.items()
        }
        for layer in params["layers"]
    ]
    return {**params, "layers": layers}


def encode(
    arch: BertArchitecture,
    params: Any,
    tokens: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    _: Execution | None = None,
) -> jax.Array:
    """The last hidden states, `[rows, length, dim]` float32; see `bert.encode`.

    Every text is computed as if it were alone: not a bit of it depends on the others of its step.
    """
    rows, length = tokens.shape
    if rows * length % TOKENS:
        raise ValueError(f"a step of {rows} x {length} tokens; the kernels take whole multiples of {TOKENS}")
    dtype = params["layers"][0]["qkv"]["weight"].dtype
    first = _first_rows if dtype == jnp.bfloat16 else _first_rows_by_xla
    hidden, rounded = first(arch, params, tokens.reshape(-1), positions.reshape(-1))
    heads = Heads(arch.heads, arch.head_dim, length, dtype == jnp.bfloat16)
    for layer in params["layers"]:
        mixed = _attend(heads, _dense(rounded, layer["qkv"], ""), segments, positions)
        hidden, rounded = _dense_norm(mixed, layer["out"], hidden, layer["out_norm"], arch.epsilon)
        inner = _dense(rounded, layer["up"], arch.activation)
        hidden, rounded = _dense_norm(inner, layer["down"], hidden, layer["down_norm"], arch.epsilon)
    return hidden.reshape(rows, length, arch.dim)


def sum_texts(hidden: jax.Array, segments: jax.Array, texts: int) -> jax.Array:
    """Each text's hidden states added up: `[rows, length, dim]` to `[rows, texts, dim]`, float32."""
    rows, length, dim = hidden.shape
    kernel = Texts(length, texts, dim)
    name = make_known(kernel.name, lambda: write_sums(kernel))
    gives = jax.ShapeDtypeStruct((rows * texts, dim), jnp.float32)
    made = jax.ffi.ffi_call(name, gives)(segments.reshape(-1), hidden.reshape(-1, dim))
    return made.reshape(rows, texts, dim)


def _first_rows(
    arch: BertArchitecture, params: Any, tokens: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The embeddings' norm, in float32 and in bfloat16."""
    (words, dim), norm = params["words"].shape, params["norm"]
    table = Table(words, params["positions"].shape[0], dim, arch.epsilon)
    name = make_known(table.name, lambda: write_rows(table))
    gives = [jax.ShapeDtypeStruct((len(tokens), dim), dtype) for dtype in (jnp.float32, jnp.bfloat16)]
    parts = (tokens, positions, params["words"], params["positions"], norm["scale"], norm["bias"])
    made = jax.ffi.ffi_call(name, gives)(*parts)
    return made[0], made[1]


def _first_rows_by_xla(
    arch: BertArchitecture, params: Any, tokens: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    hidden = params["words"][tokens] + params["positions"][positions]
    hidden = layer_norm(hidden.astype(jnp.float32), params["norm"], arch.epsilon)
    return hidden, hidden


def _dense(inputs: jax.Array, layer: Any, activation: str) -> jax.Array:
    size, outputs = layer["weight"].shape
    kernel = Layer(size, outputs, inputs.dtype == jnp.bfloat16, activation)
    name = make_known(kernel.name, lambda: write_dense(kernel))
    gives = [jax.ShapeDtypeStruct((inputs.shape[0], kernel.outputs), inputs.dtype), *_room(kernel)]
    made: jax.Array = jax.ffi.ffi_call(name, gives)(inputs, layer["weight"], layer["bias"])[0]
    return made


def _dense_norm(
    inputs: jax.Array, layer: Any, residual: jax.Array, norm: Any, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """In float32, and in the inputs' dtype."""
    rounds = inputs.dtype == jnp.bfloat16
    size, outputs = layer["weight"].shape
    kernel = Layer(size, outputs, rounds, "norm", epsilon)
    name = make_known(kernel.name, lambda: write_dense(kernel))
    gives = [jax.ShapeDtypeStruct(residual.shape, jnp.float32)]
    if rounds:
        gives += [jax.ShapeDtypeStruct(residual.shape, jnp.bfloat16), *_room(kernel)]
    parts = (inputs, layer["weight"], layer["bias"], residual, norm["scale"], norm["bias"])
    made = jax.ffi.ffi_call(name, gives)(*parts)
    return made[0], made[int(rounds)]


def _room(kernel: Layer) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((kernel.room,), jnp.float32)] if kernel.room else []


def _attend(heads: Heads, mixed: jax.Array, segments: jax.Array, positions: jax.Array) -> jax.Array:
    name = make_known(heads.name, lambda: write_attention(heads))
    gives = [
        jax.ShapeDtypeStruct((mixed.shape[0], heads.dim), mixed.dtype),
        jax.ShapeDtypeStruct((room(heads),), jnp.float32),
    ]
    made: jax.Array = jax.ffi.ffi_call(name, gives)(mixed, segments.reshape(-1), positions.reshape(-1))[0]
    return made
