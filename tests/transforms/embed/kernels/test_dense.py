"""Dense layers of the CPU's own kernels, against float64."""

from collections.abc import Callable
from functools import cache
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from tests.transforms.embed.kernels.layouts import from_columns, from_squares, in_squares
from tests.transforms.embed.kernels.machines import needs_kernels
from transforms.embed.kernels.machine import make_known
from transforms.embed.kernels.panels import Layer, pack_panels, write_dense

pytestmark = needs_kernels
SIZES = [(64, 192), (192, 64), (384, 1536), (1024, 1024)]
DEEP = (1536, 384)  # three parts in bfloat16
TOKENS = [64, 320, 1024]  # less than a block, a block and a rest, whole blocks
ROUNDING = {False: 2e-6, True: 4e-3}  # of a number: float32 sums of a thousand, and bfloat16's own
GELU_OFF = 2e-5  # what GELU in bfloat16 is off by, before it is rounded
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
    rooms = [jax.ShapeDtypeStruct((layer.room,), jnp.float32)] if layer.room else []
    return jax.jit(lambda *given: jax.ffi.ffi_call(name, [*gives, *rooms])(*given)[: len(gives)])


def called(layer: Layer, given: np.ndarray, weight: np.ndarray, *parts: object) -> list[np.ndarray]:
    """What the kernel gives, row after row, whatever its layout."""
    run, packed = program(layer, len(given)), pack_panels(weight, layer.bfloat16)
    if not layer.bfloat16:
        return [np.asarray(each, np.float64) for each in run(given, packed, *parts)]
    made = [
        np.asarray(each, np.float64)
        for each in run(jnp.asarray(in_squares(given), jnp.bfloat16), packed, *parts)
    ]
    made[-1] = from_squares(made[-1]) if layer.then else from_columns(made[-1])
    return made


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
        (made,) = called(Layer(*sizes, bfloat16, then), given, weight, bias)
        expected = given.astype(np.float64) @ weight + bias
        if then == "relu":
            expected = np.maximum(expected, 0)
        if then == "gelu":
            expected = expected * 0.5 * (1 + erf(expected / sqrt(2)))
        off = GELU_OFF if bfloat16 and then == "gelu" else ROUNDING[False] * 4
        np.testing.assert_allclose(made, expected, rtol=ROUNDING[bfloat16], atol=off)


@pytest.mark.parametrize("bfloat16", PRECISIONS)
@pytest.mark.parametrize("sizes", [*SIZES, DEEP])
def test_residual_and_norm_follow_the_product(bfloat16: bool, sizes: tuple[int, int]):
    inputs, outputs = sizes
    for tokens in TOKENS:
        shapes = (tokens, inputs), (inputs, outputs), (outputs,), (tokens, outputs), (outputs,), (outputs,)
        given, weight, bias, residual, scale, shift = arrays(tokens, *shapes)
        given, weight = rounded(given, bfloat16), rounded(weight / sqrt(inputs), bfloat16)
        made = called(Layer(*sizes, bfloat16, "norm", 1e-5), given, weight, bias, residual, scale, shift)
        whole = residual + given.astype(np.float64) @ weight + bias
        centred = whole - whole.mean(-1, keepdims=True)
        expected = centred / np.sqrt(whole.var(-1, keepdims=True) + 1e-5) * scale + shift
        np.testing.assert_allclose(made[0], expected, rtol=1e-5, atol=1e-5)
        assert len(made) == (2 if bfloat16 else 1)
        np.testing.assert_array_equal(made[-1], rounded(made[0].astype(np.float32), bfloat16))


def gelu(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64) * 0.5 * (1 + erf(values.astype(np.float64) / sqrt(2)))


def test_gelu_is_off_by_no_more_than_its_stated_bound():
    values = np.linspace(-12, 12, 64 * 4096, dtype=np.float32).reshape(-1, 64)
    layer, no_bias = Layer(64, 64, False, "gelu"), np.zeros(64, np.float32)
    (made,) = called(layer, values, np.eye(64, dtype=np.float32), no_bias)
    assert (np.abs(made - gelu(values)) <= 3e-7 * np.abs(values)).all()


def test_gelu_in_bfloat16_is_off_by_its_rounding_and_little_more_and_by_nothing_near_zero():
    exponents = np.exp2(np.linspace(-30, 4, 32 * 1024))
    values = rounded(np.concatenate([exponents, -exponents]).astype(np.float32).reshape(-1, 64), True)
    layer, no_bias = Layer(64, 64, True, "gelu"), np.zeros(64, np.float32)
    (made,) = called(layer, values, np.eye(64, dtype=np.float32), no_bias)
    exact = gelu(values)
    bound = np.minimum(GELU_OFF, 1e-4 * np.abs(values))
    assert (np.abs(made - exact) <= 1.001 * 2.0**-8 * np.abs(exact) + bound).all()


@pytest.mark.parametrize("bfloat16", PRECISIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row_and_does_not_vanish(bfloat16: bool, value: float):
    given, weight, bias = arrays(7, (64, 64), (64, 64), (64,))
    given[5, 3] = value
    for then in ("", "gelu"):
        (made,) = called(Layer(64, 64, bfloat16, then), given, weight, bias)
        assert not np.isfinite(made[5]).all()
        assert np.isfinite(np.delete(made, 5, axis=0)).all()


@pytest.mark.parametrize("bfloat16", PRECISIONS)
@pytest.mark.parametrize("then", ["gelu", "norm"])
def test_a_row_has_the_same_bits_wherever_it_stands(bfloat16: bool, then: str):
    given, weight, bias, scale, shift = arrays(11, (1024, 384), (384, 384), (384,), (384,), (384,))
    order = np.random.default_rng(1).permutation(1024)
    layer, more = Layer(384, 384, bfloat16, then, 1e-5), (scale, shift) if then == "norm" else ()
    given = rounded(given, bfloat16)
    there, here = (
        called(layer, rows, weight, bias, *([rows, *more] if more else []))[0]
        for rows in (given, given[order])
    )
    np.testing.assert_array_equal(here, there[order])
