"""Which texts go into which step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.embed.packing import Shape, ShapeSet, Step, plan_steps, steps_apart
from transforms.embed.shapes import StepCost, StepSize, shapes_unseen

SHAPES = shapes_unseen(512, StepSize(1024), StepCost(0.001))
TAILED = shapes_unseen(512, StepSize(1024, fractions=(4, 16)), StepCost(0))
LENGTHS = st.lists(st.integers(0, 512), max_size=300).map(lambda values: np.array(values, dtype=np.int64))


def used(step: Step, lengths: np.ndarray) -> int:
    return int(lengths[step.texts()].sum())


@pytest.mark.parametrize("shapes", [SHAPES, TAILED])
@given(LENGTHS)
def test_every_text_with_tokens_stands_in_exactly_one_row(shapes: ShapeSet, lengths: np.ndarray):
    steps = plan_steps(lengths, shapes)
    placed = sorted(int(text) for step in steps for text in step.texts())
    assert placed == np.flatnonzero(lengths).tolist()


@pytest.mark.parametrize("shapes", [SHAPES, TAILED])
@given(LENGTHS)
def test_no_row_is_overfull_and_no_step_has_too_many_rows(shapes: ShapeSet, lengths: np.ndarray):
    for step in plan_steps(lengths, shapes):
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
    (step,) = plan_steps(np.array([5]), TAILED)
    assert step == Step(Shape(64, 1, 8), ((0,),))


def test_a_last_step_takes_the_smallest_shape_that_holds_its_rows():
    shapes = shapes_unseen(64, StepSize(1024, fractions=(4,)), StepCost(0.001))
    assert [step.shape.rows for step in plan_steps(np.full(18, 64), shapes)] == [16, 4]
    assert [step.shape.rows for step in plan_steps(np.full(21, 64), shapes)] == [16, 16]
    assert [step.shape.length for step in plan_steps(np.full(18, 64), TAILED)] == [1024, 256]
    assert [step.shape.length for step in plan_steps(np.full(17, 64), TAILED)] == [1024, 64]
    assert [step.shape.length for step in plan_steps(np.full(21, 64), TAILED)] == [1024, 1024]


def test_a_small_step_of_many_short_texts_takes_no_shape_with_too_few_places():
    (step,) = plan_steps(np.full(9, 3), TAILED)  # 27 tokens, but a row of 64 takes 8 texts
    assert step.shape.length == 256


def test_no_texts_and_texts_without_tokens_take_no_step():
    assert plan_steps(np.array([], dtype=np.int64), SHAPES) == []
    assert plan_steps(np.array([0, 0]), SHAPES) == []


def test_a_text_longer_than_every_shape_is_refused():
    with pytest.raises(ValueError, match="513 tokens; the longest shape has 512"):
        plan_steps(np.array([4, 513]), SHAPES)


def test_broken_texts_that_had_company_are_set_apart_one_in_a_row():
    shape = Shape(64, 2, 8)
    step = Step(shape, ((7, 3, 9), (5,)))
    assert steps_apart(step, np.array([True, True, True, True])) == [
        Step(shape, ((7,), (3,))),
        Step(shape, ((9,),)),
    ]
    assert steps_apart(step, np.array([False, True, False, True])) == [Step(shape, ((3,),))]
    assert steps_apart(step, np.array([False, False, False, True])) == []
