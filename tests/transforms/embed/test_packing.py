"""Which texts go into which step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.embed.packing import Shape, Step, choose_shapes, plan_steps

SHAPES = choose_shapes(512, 1024)
LENGTHS = st.lists(st.integers(0, 512), max_size=300).map(lambda values: np.array(values, dtype=np.int64))


def used(step: Step, lengths: np.ndarray) -> int:
    return int(lengths[step.texts()].sum())


def test_shapes_hold_about_a_thousand_tokens_in_a_few_length_classes():
    assert [(shape.rows, shape.length) for shape in SHAPES] == [(16, 64), (8, 128), (4, 256), (2, 512)]
    assert [shape.texts for shape in SHAPES] == [8, 16, 32, 64]


@pytest.mark.parametrize(
    ("max_length", "longest"),
    [(2, 64), (64, 64), (65, 128), (100, 128), (129, 256), (300, 384), (512, 512), (8192, 8192)],
)
def test_the_longest_shape_holds_the_longest_text_and_divides_into_query_blocks(
    max_length: int, longest: int
):
    shapes = choose_shapes(max_length, 1024)
    assert shapes[-1].length == longest
    assert all(shape.length == 64 or shape.length % 128 == 0 for shape in shapes)
    assert all(shape.rows >= 1 for shape in shapes)


def test_rows_are_a_multiple_of_the_devices_and_fractions_give_smaller_last_steps():
    shapes = choose_shapes(128, 4096, devices=8, fractions=(1, 8, 1024))
    assert [(s.length, s.rows) for s in shapes] == [
        (64, 8),
        (64, 64),
        (64, 512),
        (128, 8),
        (128, 32),
        (128, 256),
    ]


@given(LENGTHS)
def test_every_text_with_tokens_stands_in_exactly_one_row(lengths: np.ndarray):
    steps = plan_steps(lengths, SHAPES)
    placed = sorted(int(text) for step in steps for text in step.texts())
    assert placed == np.flatnonzero(lengths).tolist()


@given(LENGTHS)
def test_no_row_is_overfull_and_no_step_has_too_many_rows(lengths: np.ndarray):
    for step in plan_steps(lengths, SHAPES):
        assert 1 <= len(step.rows) <= step.shape.rows
        for row in step.rows:
            assert row
            assert len(row) <= step.shape.texts
            assert sum(int(lengths[text]) for text in row) <= step.shape.length


@given(LENGTHS)
def test_only_the_last_step_has_empty_rows(lengths: np.ndarray):
    for step in plan_steps(lengths, SHAPES)[:-1]:
        assert len(step.rows) == step.shape.rows


@given(LENGTHS)
def test_the_plan_is_the_same_every_time(lengths: np.ndarray):
    assert plan_steps(lengths, SHAPES) == plan_steps(lengths.copy(), SHAPES)


@given(LENGTHS.filter(len))
def test_the_longest_text_comes_first(lengths: np.ndarray):
    steps = plan_steps(lengths, SHAPES)
    if steps:
        assert lengths[steps[0].rows[0][0]] == lengths.max()


def test_skewed_lengths_fill_more_than_95_percent_of_the_slots():
    rng = np.random.default_rng(3)
    lengths = np.clip(rng.lognormal(3.6, 1.1, 2000), 3, 512).astype(np.int64)
    steps = plan_steps(lengths, SHAPES)
    assert lengths.sum() / sum(step.shape.slots for step in steps) > 0.95


def test_a_single_short_text_takes_the_smallest_shape():
    (step,) = plan_steps(np.array([5]), SHAPES)
    assert step == Step(Shape(64, 16, 8), ((0,),))


def test_a_last_step_takes_the_smallest_fraction_that_holds_it():
    shapes = choose_shapes(64, 1024, fractions=(1, 4))
    assert [step.shape.rows for step in plan_steps(np.full(18, 64), shapes)] == [16, 4]
    assert [step.shape.rows for step in plan_steps(np.full(21, 64), shapes)] == [16, 16]


def test_no_texts_and_texts_without_tokens_take_no_step():
    assert plan_steps(np.array([], dtype=np.int64), SHAPES) == []
    assert plan_steps(np.array([0, 0]), SHAPES) == []


def test_a_text_longer_than_every_shape_is_refused():
    with pytest.raises(ValueError, match="513 tokens; the longest shape has 512"):
        plan_steps(np.array([4, 513]), SHAPES)
