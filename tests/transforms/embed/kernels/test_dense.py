"""Dense layers of the CPU's own kernels, against float64."""

from collections.abc import Callable
from functools import cache
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from tests.transforms.embed.kernels.machines import needs_kernels
from transforms.embed.kernels.machine import make_known
from transforms.embed.kernels.panels import Layer, pack_panels, write_dense

pytestmark = needs_kernels
SIZES = [(64, 192), (192, 64), (384, 1536), (1024, 1024)]
TOKENS = [64, 320, 1024]  # less than a block, a block and a rest, whole blocks
ROUNDING = {False: 2e-6, True: 4e-3}  # of a number: float32 sums of a thousand, and bfloat16's own
PRECISIONS = [pytest.param(False, id="float32"), pytest.param(True, id="bfloat16")]


def arrays(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@cache
def program(layer: Layer, tokens: int) -> Callable[..., list[jax.Array]]:
    name = make_known(layer.name, lambda: write_dense(layer))
    low = jnp.bfloat16 if layer.bfloat16 else jnp.float32
    norm = layer.then == "norm"
    dtypes = [jnp.float32, low] if norm and layer.bfloat16 else [jnp.float32 if norm else low]
    gives = [jax.ShapeDtypeStruct((tokens, layer.outputs), dtype) for dtype in dtypes]
    return jax.jit(lambda *given: jax.ffi.ffi_call(name, gives)(*given))


def called(layer: Layer, tokens: int, *parts: object) -> list[np.ndarray]:
    return [np.asarray(each, np.float64) for each in program(layer, tokens)(*parts)]


def rounded(values: np.ndarray, bfloat16: bool) -> np.ndarray:
    return values.astype(jnp.bfloat16).astype(np.float32) if bfloat16 else values


@pytest.mark.parametrize("bfloat16", PRECISIONS)
@pytest.mark.parametrize("then", ["", "relu", "gelu"])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_dense_layer_is_its_formula(bfloat16: bool, then: str, sizes: tuple[int, int]):
    inputs, outputs = sizes
    for tokens in TOKENS:
        given, weight, bias = arrays(tokens, (tokens, inputs), (inputs, outputs), (outputs,))
        given, weight = rounded(given, bfloat16), rounded(weight / sqrt(inputs), bfloat16)
        low = jnp.asarray(given, jnp.bfloat16 if bfloat16 else jnp.float32)
        (made,) = called(Layer(*sizes, bfloat16, then), tokens, low, pack_panels(weight, bfloat16), bias)
        expected = given.astype(np.float64) @ weight + bias
        if then == "relu":
            expected = np.maximum(expected, 0)
        if then == "gelu":
            expected = expected * 0.5 * (1 + erf(expected / sqrt(2)))
        np.testing.assert_allclose(made, expected, rtol=ROUNDING[bfloat16], atol=ROUNDING[False] * 4)


@pytest.mark.parametrize("bfloat16", PRECISIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_residual_and_norm_follow_the_product(bfloat16: bool, sizes: tuple[int, int]):
    inputs, outputs = sizes
    for tokens in TOKENS:
        shapes = (tokens, inputs), (inputs, outputs), (outputs,), (tokens, outputs), (outputs,), (outputs,)
        given, weight, bias, residual, scale, shift = arrays(tokens, *shapes)
        given, weight = rounded(given, bfloat16), rounded(weight / sqrt(inputs), bfloat16)
        low = jnp.asarray(given, jnp.bfloat16 if bfloat16 else jnp.float32)
        parts = (low, pack_panels(weight, bfloat16), bias, residual, scale, shift)
        made = called(Layer(*sizes, bfloat16, "norm", 1e-5), tokens, *parts)
        whole = residual + given.astype(np.float64) @ weight + bias
        centred = whole - whole.mean(-1, keepdims=True)
        expected = centred / np.sqrt(whole.var(-1, keepdims=True) + 1e-5) * scale + shift
        np.testing.assert_allclose(made[0], expected, rtol=1e-5, atol=1e-5)
        assert len(made) == (2 if bfloat16 else 1)
        np.testing.assert_array_equal(made[-1], rounded(made[0].astype(np.float32), bfloat16))


def test_gelu_is_off_by_no_more_than_its_stated_bound():
    values = np.linspace(-12, 12, 64 * 4096, dtype=np.float32).reshape(-1, 64)
    parts = (values, pack_panels(np.eye(64, dtype=np.float32), False), np.zeros(64, np.float32))
    (made,) = called(Layer(64, 64, False, "gelu"), len(values), *parts)
    exact = values.astype(np.float64) * 0.5 * (1 + erf(values.astype(np.float64) / sqrt(2)))
    assert (np.abs(made - exact) <= 3e-7 * np.abs(values)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row_and_does_not_vanish(value: float):
    given, weight, bias = arrays(7, (64, 64), (64, 64), (64,))
    given[5, 3] = value
    for then in ("", "gelu"):
        parts = (given, pack_panels(weight, False), bias)
        (made,) = called(Layer(64, 64, False, then), 64, *parts)
        assert not np.isfinite(made[5]).all()
        assert np.isfinite(np.delete(made, 5, axis=0)).all()


def test_a_row_has_the_same_bits_wherever_it_stands():
    given, weight, bias = arrays(11, (1024, 384), (384, 384), (384,))
    order = np.random.default_rng(1).permutation(1024)
    layer, packed = Layer(384, 384, False, "gelu"), pack_panels(weight, False)
    (there,) = called(layer, 1024, given, packed, bias)
    (here,) = called(layer, 1024, given[order], packed, bias)
    np.testing.assert_array_equal(here, there[order])
