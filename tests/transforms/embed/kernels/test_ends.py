"""What comes before the first layer and after the last, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.transforms.embed.kernels.layouts import from_squares
from tests.transforms.embed.kernels.machines import needs_kernels
from transforms.embed.kernels.calls import sum_texts
from transforms.embed.kernels.ends import Table, write_rows
from transforms.embed.kernels.machine import make_known

pytestmark = needs_kernels


@pytest.mark.parametrize("dim", [64, 384, 1024])
def test_rows_are_the_normed_sums_of_words_and_positions(dim: int):
    rng = np.random.default_rng(dim)
    words, places = (rng.normal(3, 1, (count, dim)).astype(np.float32) for count in (50, 20))
    scale, shift = rng.normal(size=(2, dim)).astype(np.float32)
    tokens, positions = (rng.integers(0, count, 96).astype(np.int32) for count in (50, 20))
    table = Table(50, 20, dim, 1e-5)
    name = make_known(table.name, lambda: write_rows(table))
    gives = [jax.ShapeDtypeStruct((96, dim), dtype) for dtype in (jnp.float32, jnp.bfloat16)]
    call = jax.jit(lambda *parts: jax.ffi.ffi_call(name, gives)(*parts))
    exact, rounded = (np.asarray(each) for each in call(tokens, positions, words, places, scale, shift))
    summed = words[tokens].astype(np.float64) + places[positions]
    centred = summed - summed.mean(-1, keepdims=True)
    expected = centred / np.sqrt(summed.var(-1, keepdims=True) + 1e-5) * scale + shift
    np.testing.assert_allclose(exact, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(from_squares(rounded), exact.astype(jnp.bfloat16))


def test_a_row_far_from_zero_keeps_its_variance():
    rng = np.random.default_rng(1)
    words, no_position = rng.normal(1000, 1, (1, 64)).astype(np.float32), np.zeros((1, 64), np.float32)
    table = Table(1, 1, 64, 0.0)
    name = make_known(table.name, lambda: write_rows(table))
    gives = [jax.ShapeDtypeStruct((32, 64), dtype) for dtype in (jnp.float32, jnp.bfloat16)]
    call = jax.jit(lambda *parts: jax.ffi.ffi_call(name, gives)(*parts)[0])
    zeros, ones = np.zeros(32, np.int32), np.ones(64, np.float32)
    made = np.asarray(call(zeros, zeros, words, no_position, ones, no_position[0]))
    expected = (words[0].astype(np.float64) - words.mean(dtype=np.float64)) / words.std(dtype=np.float64)
    np.testing.assert_allclose(made, np.tile(expected, (32, 1)), atol=2e-3)  # float32 knows 1000 to 6e-5


def test_sums_are_those_of_each_text_and_nothing_of_empty_slots():
    hidden = np.random.default_rng(2).normal(size=(2, 64, 64)).astype(np.float32)
    segments = np.zeros((2, 64), np.int32)
    segments[0, :10], segments[0, 10:11], segments[0, 11:50] = 1, 2, 3
    segments[1] = 1
    made = np.asarray(jax.jit(lambda *parts: sum_texts(*parts, 4))(hidden, segments))
    expected = np.zeros((2, 4, 64))
    for row, text in ((0, 1), (0, 2), (0, 3), (1, 1)):
        expected[row, text - 1] = hidden[row, segments[row] == text].sum(0, dtype=np.float64)
    np.testing.assert_allclose(made, expected, atol=1e-5)
