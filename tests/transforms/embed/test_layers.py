"""Attention over packed rows, in each of its ways, against softmax written out."""

import numpy as np
import pytest

from transforms.embed.layers import QUERY_BLOCK, Sight, attend

WIDTH, HEADS = 4, 4


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
            scores = scores + bias[row, head, token][seen]
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


@pytest.mark.parametrize("head_by_head", [False, True])
@pytest.mark.parametrize("length", [64, QUERY_BLOCK, 2 * QUERY_BLOCK])
@pytest.mark.parametrize(
    ("sight", "kv_heads", "biased"),
    [
        (Sight(), 4, False),
        (Sight(causal=True), 2, False),
        (Sight(window=5), 4, False),
        (Sight(causal=True, window=9), 1, False),
        (Sight(), 4, True),
    ],
)
def test_a_token_sees_its_own_segment_within_its_sight(
    head_by_head: bool, length: int, sight: Sight, kv_heads: int, biased: bool
):
    rng = np.random.default_rng(length)
    segments, positions = packed(length)
    query = rng.normal(size=(2, HEADS, length, WIDTH)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, kv_heads, length, WIDTH)).astype(np.float32)
    bias = rng.normal(size=(2, HEADS, length, length)).astype(np.float32) if biased else None
    made = attend(query, key, value, segments, positions, sight, bias, head_by_head)
    expected = plain(query, key, value, segments, positions, sight, bias)
    np.testing.assert_allclose(made, expected, atol=2e-6)


@pytest.mark.parametrize("head_by_head", [False, True])
def test_scores_as_large_as_float32_takes_give_no_nan(head_by_head: bool):
    segments, positions = packed(2 * QUERY_BLOCK)
    query = np.full((2, HEADS, 2 * QUERY_BLOCK, WIDTH), 1e8, np.float32)
    value = np.ones_like(query)
    made = attend(query, query, value, segments, positions, head_by_head=head_by_head)
    np.testing.assert_allclose(made, 1)
