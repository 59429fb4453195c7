"""Which shapes a run gets, by the lengths of its texts."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.embed import shapes as module
from transforms.embed.packing import ShapeSet
from transforms.embed.shapes import StepCost, StepSize, choose_lengths, shapes_unseen

CANDIDATES = (64, 128, 256, 512)
ROWS = StepCost(attention=1 / 1000, compilation=1000)
TEXTS = StepCost(attention=0, compilation=1000)
SIZE = StepSize(1024)


def shapes_for(lengths: np.ndarray, max_length: int, size: StepSize, cost: StepCost) -> ShapeSet:
    """The shapes for texts of these lengths, texts without tokens left out."""
    return module.shapes_for(Counter(lengths[lengths > 0].tolist()), max_length, size, cost)


def cost_of(lengths: list[int], chosen: tuple[int, ...], cost: StepCost) -> float:
    """The cost that `choose_lengths` makes least, text by text."""
    total = cost.compilation * len(chosen)
    for tokens in lengths:
        row = min(length for length in chosen if length >= tokens)
        total += row / min(row // tokens, row // 8) * (1 + cost.attention * row)
    return total


def test_shapes_for_unseen_texts_hold_about_a_thousand_tokens_in_a_few_lengths():
    shapes = shapes_unseen(512, SIZE, ROWS).full
    assert [(shape.rows, shape.length) for shape in shapes] == [(16, 64), (8, 128), (4, 256), (2, 512)]
    assert [shape.texts for shape in shapes] == [8, 16, 32, 64]


@pytest.mark.parametrize(
    ("max_length", "longest"),
    [(2, 64), (64, 64), (65, 128), (100, 128), (129, 256), (300, 384), (512, 512), (8192, 8192)],
)
def test_the_longest_shape_holds_the_longest_text_and_divides_into_query_blocks(
    max_length: int, longest: int
):
    for shapes in (shapes_unseen(max_length, SIZE, ROWS), shapes_for(np.array([3]), max_length, SIZE, ROWS)):
        assert shapes.longest == longest
        assert all(shape.length == 64 or shape.length % 128 == 0 for shape in shapes.every)
        assert all(shape.rows >= 1 for shape in shapes.every)


def test_rows_are_a_multiple_of_the_devices_and_fractions_give_smaller_last_steps():
    shapes = shapes_unseen(128, StepSize(4096, devices=8, fractions=(8, 32)), ROWS)
    assert [(s.length, s.rows) for s in shapes.full] == [(64, 512), (128, 256)]
    assert [(s.length, s.rows) for s in shapes.tails] == [(64, 16), (64, 64), (128, 8), (128, 32)]


def test_where_attention_goes_text_by_text_a_step_is_one_row_and_its_parts():
    shapes = shapes_unseen(512, StepSize(1024, fractions=(4, 16)), TEXTS)
    assert [(s.length, s.rows, s.texts) for s in shapes.full] == [(1024, 1, 128)]
    assert [(s.length, s.rows, s.texts) for s in shapes.tails] == [(64, 1, 8), (256, 1, 32)]
    longer = shapes_unseen(3000, StepSize(1024, fractions=(4,)), TEXTS)
    assert [s.length for s in longer.full] == [1024, 2048, 3072]


@given(st.integers(2, 8192), st.sampled_from([1, 3, 8]), st.sampled_from([ROWS, TEXTS]))
def test_every_step_is_whole_tiles_on_every_device_and_some_shape_takes_the_longest_text(
    max_length: int, devices: int, cost: StepCost
):
    shapes = shapes_unseen(max_length, StepSize(1024, devices, fractions=(4, 16)), cost)
    assert all(shape.slots % (64 * devices) == 0 for shape in shapes.every)
    assert all(shape.rows % devices == 0 for shape in shapes.every)
    assert shapes.longest >= max_length


def test_short_texts_alone_get_short_rows_and_one_for_what_was_not_seen():
    shapes = shapes_for(np.full(5000, 20), 512, SIZE, ROWS)
    assert [shape.length for shape in shapes.full] == [64, 512]


def test_a_length_that_is_rare_earns_no_program_of_its_own():
    common = np.full(5000, 20)
    assert [s.length for s in shapes_for(np.append(common, [250] * 2), 512, SIZE, ROWS).full] == [64, 512]
    assert [s.length for s in shapes_for(np.append(common, [250] * 999), 512, SIZE, ROWS).full] == [
        64,
        256,
        512,
    ]


def test_texts_that_just_miss_a_row_make_a_row_of_their_own_length():
    """Texts of 260 tokens in rows of 512 would waste half of them."""
    lengths = [s.length for s in shapes_for(np.full(2000, 260), 512, SIZE, ROWS).full]
    assert 384 in lengths


def test_nothing_seen_gets_the_longest_row_alone():
    assert [s.length for s in shapes_for(np.array([], np.int64), 300, SIZE, ROWS).full] == [384]
    assert [s.length for s in shapes_for(np.zeros(9, np.int64), 300, SIZE, ROWS).full] == [384]


@given(
    st.lists(st.integers(1, 512), max_size=60),
    st.sampled_from([0.0, 1 / 3000, 1 / 300]),
    st.sampled_from([0.0, 100.0, 2000.0]),
)
def test_no_other_choice_of_lengths_costs_less(texts: list[int], attention: float, compilation: float):
    cost = StepCost(attention, compilation)
    chosen = choose_lengths(np.bincount(texts, minlength=513), CANDIDATES, cost)
    every = [(*part, 512) for count in range(4) for part in combinations(CANDIDATES[:3], count)]
    least = min(cost_of(texts, each, cost) for each in every)
    assert cost_of(texts, tuple(chosen), cost) == pytest.approx(least)
