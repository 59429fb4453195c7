"""Attention of each text to itself, against float64."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.embed.kernels.layouts import from_squares, in_columns
from tests.transforms.embed.kernels.machines import needs_kernels
from transforms.embed.kernels.attention import room, write_attention
from transforms.embed.kernels.attention_parts import Heads
from transforms.embed.kernels.machine import make_known

pytestmark = needs_kernels
TOLERANCE = {False: 1e-5, True: 2e-2}
PRECISIONS = [pytest.param(False, id="float32"), pytest.param(True, id="bfloat16")]


@cache
def program(heads: Heads, tokens: int) -> Callable[..., jax.Array]:
    name = make_known(heads.name, lambda: write_attention(heads))
    gives = [
        jax.ShapeDtypeStruct((tokens, heads.dim), jnp.bfloat16 if heads.bfloat16 else jnp.float32),
        jax.ShapeDtypeStruct((room(heads),), jnp.float32),
    ]
    return jax.jit(lambda *parts: jax.ffi.ffi_call(name, gives)(*parts)[0])


def called(heads: Heads, mixed: np.ndarray, lengths: list[int]) -> np.ndarray:
    segments, positions = np.zeros((2, len(mixed)), np.int32)
    start = 0
    for number, length in enumerate(lengths, start=1):
        segments[start : start + length] = number
        positions[start : start + length] = np.arange(length)
        start += length
    if not heads.bfloat16:
        return np.asarray(program(heads, len(mixed))(mixed, segments, positions), np.float64)
    given = jnp.asarray(in_columns(mixed), jnp.bfloat16)
    return from_squares(np.asarray(program(heads, len(mixed))(given, segments, positions), np.float64))


def expected(heads: Heads, mixed: np.ndarray, lengths: list[int]) -> np.ndarray:
    """Softmax attention as its paper has it, text by text; nothing for empty slots."""
    made = np.zeros((len(mixed), heads.count, heads.width))
    start = 0
    for length in lengths:
        own = mixed[start : start + length].astype(np.float64).reshape(length, 3, heads.count, heads.width)
        query, key, value = own.transpose(1, 2, 0, 3)
        scores = query @ key.transpose(0, 2, 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        made[start : start + length] = (weights @ value).transpose(1, 0, 2)
        start += length
    return made.reshape(len(mixed), -1)


def mixture(heads: Heads, tokens: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(tokens, 3 * heads.dim)).astype(np.float32) * np.float32(1.5 / heads.width**0.25)
    return values.astype(jnp.bfloat16).astype(np.float32) if heads.bfloat16 else values


@pytest.mark.parametrize("bfloat16", PRECISIONS)
@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize(
    "lengths", [[512], [1, 2, 3, 15, 16, 17, 31, 32, 33, 100], [256, 200], [1] * 512, []], ids=str
)
def test_attention_is_its_formula_for_texts_of_any_length(bfloat16: bool, width: int, lengths: list[int]):
    heads = Heads(3, width, 512, bfloat16)
    mixed = mixture(heads, 512)
    made = called(heads, mixed, lengths)
    np.testing.assert_allclose(made, expected(heads, mixed, lengths), atol=TOLERANCE[bfloat16])
    assert not made[sum(lengths) :].any()


def test_narrow_heads_in_float32_are_the_formula_too():
    heads = Heads(4, 16, 128, False)
    mixed = mixture(heads, 128)
    np.testing.assert_allclose(called(heads, mixed, [50, 70]), expected(heads, mixed, [50, 70]), atol=1e-5)


@pytest.mark.parametrize("bfloat16", PRECISIONS)
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=6), st.integers(1, 64), st.integers(0, 9))
def test_a_text_has_the_same_bits_in_any_company(bfloat16: bool, before: list[int], length: int, seed: int):
    heads = Heads(2, 32, 320, bfloat16)
    mixed, other = mixture(heads, 320), mixture(heads, 320, seed + 1)
    alone = called(heads, mixed, [length])[:length]
    start = sum(before)
    other[start : start + length] = mixed[:length]
    among = called(heads, other, [*before, length, 7])[start : start + length]
    np.testing.assert_array_equal(among, alone)


@pytest.mark.parametrize("bfloat16", PRECISIONS)
def test_scores_as_large_as_they_come_give_no_nan(bfloat16: bool):
    heads = Heads(2, 32, 64, bfloat16)
    mixed = mixture(heads, 64) * np.float32(300)
    mixed = mixed.astype(jnp.bfloat16).astype(np.float32) if bfloat16 else mixed
    made = called(heads, mixed, [40, 20])
    np.testing.assert_allclose(made, expected(heads, mixed, [40, 20]), rtol=0.02, atol=1e-2)
