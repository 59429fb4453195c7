"""Attention over packed rows, with the kernel of every platform, against softmax written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transforms.embed.attention import QUERY_BLOCK, Slots, attend, fused_attention, kernel_that_works
from transforms.embed.execution import Execution, choose_kernel
from transforms.embed.mosaic import takes_heads
from transforms.embed.sight import Heads, Sight

WIDTH, HEADS = 4, 4
SIGHTS = [
    (Sight(), 4, False),
    (Sight(causal=True), 2, False),
    (Sight(window=5), 4, False),
    (Sight(causal=True, window=9), 1, False),
    (Sight(), 4, True),
]


def plain(query, key, value, segments, positions, sight, bias):
    """Softmax over what a token sees, token by token, in float64."""
    rows, heads, length, width = query.shape
    groups = heads // key.shape[1]
    made = np.zeros((rows, length, heads, width))
    for row, head, token in np.ndindex(rows, heads, length):
        far = positions[row] - positions[row, token]
        seen = segments[row] == segments[row, token]
        if sight.causal:
            seen &= far <= 0
        if sight.window:
            seen &= np.abs(far) <= sight.window
        scores = key[row, head // groups][seen].astype(np.float64) @ query[row, head, token]
        if bias is not None:
            scores = scores + bias[head, token][seen]
        weights = np.exp(scores - scores.max())
        made[row, token, head] = weights @ value[row, head // groups][seen] / weights.sum()
    return made.reshape(rows * length, heads * width)


def packed(length: int, rows: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Texts of every length up to the row's end, and empty slots behind them."""
    segments, positions = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        start, segment = 0, 1
        for size in (3 + row, length // 2, 1, length // 4):
            segments[row, start : start + size] = segment
            positions[row, start : start + size] = np.arange(size)
            start, segment = start + size, segment + 1
    return segments, positions


def heads_of(*parts: np.ndarray, dtype: str = "float32") -> list[Heads]:
    """Each part `[rows, heads, length, width]` as heads of one array that holds all of them."""
    rows, _, length, width = parts[0].shape
    flat = [part.transpose(0, 2, 1, 3).reshape(rows, length, -1) for part in parts]
    together = jnp.asarray(np.concatenate(flat, -1), dtype)
    firsts = np.cumsum([0, *(part.shape[1] for part in parts)])
    return [Heads(together, part.shape[1], width, int(at)) for part, at in zip(parts, firsts, strict=False)]


def slots(segments: np.ndarray, positions: np.ndarray) -> Slots:
    return Slots(jnp.asarray(segments), jnp.asarray(positions))


def drawn(length: int, heads: int, kv_heads: int, width: int) -> list[np.ndarray]:
    rng = np.random.default_rng(length)
    sizes = (heads, kv_heads, kv_heads)
    return [rng.normal(size=(2, each, length, width)).astype(np.float32) for each in sizes]


@pytest.mark.parametrize("kernel", ["blocks", "head_by_head"])
@pytest.mark.parametrize("length", [64, QUERY_BLOCK, 2 * QUERY_BLOCK])
@pytest.mark.parametrize(("sight", "kv_heads", "biased"), SIGHTS)
def test_a_token_sees_its_own_segment_within_its_sight(
    kernel: str, length: int, sight: Sight, kv_heads: int, biased: bool
):
    segments, positions = packed(length)
    parts = drawn(length, HEADS, kv_heads, WIDTH)
    bias = np.random.default_rng(1).normal(size=(HEADS, length, length)) if biased else None
    made = attend(
        *heads_of(*parts),
        slots(segments, positions),
        sight,
        None if bias is None else jnp.asarray(bias, jnp.float32),
        Execution(kernel=kernel),
    )
    np.testing.assert_allclose(made, plain(*parts, segments, positions, sight, bias), atol=2e-6)


@pytest.mark.parametrize("kernel", ["blocks", "head_by_head"])
def test_scores_as_large_as_float32_takes_give_no_nan(kernel: str):
    segments, positions = packed(2 * QUERY_BLOCK)
    query = np.full((2, HEADS, 2 * QUERY_BLOCK, WIDTH), 1e8, np.float32)
    parts = heads_of(query, query, np.ones_like(query))
    made = attend(*parts, slots(segments, positions), execution=Execution(kernel=kernel))
    np.testing.assert_allclose(made, 1)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "length", "sight", "biased"),
    [
        (8, 8, 32, 128, Sight(), False),  # MiniLM's heads, four to a block of lanes
        (2, 2, 64, 384, Sight(), False),
        (2, 2, 64, 512, Sight(window=64), False),  # ModernBERT's local layers: not all keys are read
        (4, 2, 128, 256, Sight(causal=True), False),  # Qwen3: a key serves two queries
        (2, 1, 256, 128, Sight(causal=True, window=9), False),
        (4, 4, 32, 256, Sight(), True),  # MPNet
        (1, 1, 128, 1152, Sight(), False),  # several blocks of queries
    ],
)
def test_the_kernel_for_tpus_gives_the_numbers_of_the_plain_one(
    heads: int, kv_heads: int, width: int, length: int, sight: Sight, biased: bool
):
    segments, positions = packed(length)
    parts = [part / (width**0.25) for part in drawn(length, heads, kv_heads, width)]
    query, key, value = heads_of(*parts, dtype="bfloat16")
    assert takes_heads(query, key, value)
    bias = np.random.default_rng(1).normal(size=(heads, length, length)) if biased else None
    bias = None if bias is None else jnp.asarray(bias, jnp.float32)
    where = slots(segments, positions)
    made = attend(query, key, value, where, sight, bias, Execution(kernel="mosaic", interpret=True))
    blocks = attend(query, key, value, where, sight, bias, Execution(kernel="blocks"))
    assert made.dtype == blocks.dtype == jnp.bfloat16
    rounded = [np.asarray(part.split(), np.float32) for part in (query, key, value)]
    exact = plain(*rounded, segments, positions, sight, None if bias is None else np.asarray(bias))
    texts = segments.ravel() > 0  # what empty slots get, nobody reads
    for each in (made, blocks):  # one rounding of the weights and one of the result: 2 * 2^-9 of values < 4
        np.testing.assert_allclose(np.asarray(each, np.float32)[texts], exact[texts], atol=0.016)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "length", "dtype"),
    [
        (3, 3, 32, 128, "bfloat16"),  # 96 lanes
        (4, 2, 64, 128, "bfloat16"),  # a key for two queries, but not in the same lanes
        (4, 4, 32, 64, "bfloat16"),  # rows of half a block
        (4, 4, 32, 128, "float32"),
        (4, 4, 48, 128, "bfloat16"),
    ],
)
def test_what_the_kernel_for_tpus_cannot_take_is_computed_in_blocks(
    heads: int, kv_heads: int, width: int, length: int, dtype: str
):
    segments, positions = packed(length)
    query, key, value = heads_of(*drawn(length, heads, kv_heads, width), dtype=dtype)
    assert not takes_heads(query, key, value)
    # Without `interpret` the kernel for TPUs could not run here at all.
    made = attend(query, key, value, slots(segments, positions), execution=Execution(kernel="mosaic"))
    blocks = attend(query, key, value, slots(segments, positions))
    np.testing.assert_array_equal(np.asarray(made, np.float32), np.asarray(blocks, np.float32))


@pytest.mark.parametrize(("sight", "kv_heads", "biased"), [each for each in SIGHTS if not each[2]])
def test_the_call_for_gpus_masks_and_scales_as_the_plain_one(sight: Sight, kv_heads: int, biased: bool):
    segments, positions = packed(QUERY_BLOCK)
    parts = drawn(QUERY_BLOCK, HEADS, kv_heads, WIDTH)
    arrays = [part.split() for part in heads_of(*parts)]
    made = fused_attention(*arrays, slots(segments, positions), sight, "xla")
    np.testing.assert_allclose(made, plain(*parts, segments, positions, sight, None), atol=2e-6)


@pytest.mark.parametrize(
    ("platform", "dtype", "width", "capability", "kernel"),
    [
        ("cpu", "bfloat16", 32, None, "head_by_head"),
        ("cpu", "float32", 64, None, "head_by_head"),
        ("tpu", "bfloat16", 32, None, "mosaic"),
        ("tpu", "bfloat16", 128, None, "mosaic"),
        ("tpu", "bfloat16", 96, None, "blocks"),
        ("tpu", "float32", 64, None, "blocks"),
        ("gpu", "bfloat16", 64, 9.0, "cudnn"),
        ("gpu", "bfloat16", 64, 7.5, "blocks"),
        ("gpu", "bfloat16", 36, 8.0, "blocks"),
        ("gpu", "bfloat16", 256, 9.0, "blocks"),
        ("gpu", "float32", 64, 9.0, "blocks"),
        ("gpu", "bfloat16", 64, None, "blocks"),
    ],
)
def test_every_platform_gets_the_fastest_kernel_that_takes_the_model(
    platform: str, dtype: str, width: int, capability: float | None, kernel: str
):
    assert choose_kernel(platform, dtype, width, capability) == kernel


def test_a_gpu_whose_cudnn_refuses_gets_the_plain_kernel_and_a_warning(caplog: pytest.LogCaptureFixture):
    def refuse(width: int) -> None:
        raise RuntimeError(f"no kernel for heads of {width}")

    assert kernel_that_works("cudnn", 64, lambda _: None) == "cudnn"
    assert kernel_that_works("mosaic", 64, refuse) == "mosaic"
    assert caplog.text == ""
    assert kernel_that_works("cudnn", 64, refuse) == "blocks"
    assert "can't be used, XLA's is: no kernel for heads of 64" in caplog.text


def test_a_host_without_cudnn_is_found_out_by_compiling_for_it(caplog: pytest.LogCaptureFixture):
    if jax.default_backend() == "gpu":
        pytest.skip("this host has a GPU")
    assert kernel_that_works("cudnn", 64) == "blocks"
    assert "cuDNN's attention can't be used" in caplog.text
