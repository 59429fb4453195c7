"""Which texts go into which step: fixed shapes, filled almost fully. Pure, no JAX.

A step is `rows` rows of `length` slots; a row holds several texts one behind the other, told apart
by segment numbers. Lengths fall into few classes, so few programs are compiled; a gap behind a text
is filled with the longest text that fits, of whatever class. `shapes` chooses the lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SLOTS_PER_TEXT = 8
"""A row of n slots takes at most n / 8 texts; it bounds the size of a step's answer."""


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """The static shape of a compiled step: `[rows, length]` tokens, at most `texts` texts a row."""

    length: int
    rows: int
    texts: int

    @property
    def slots(self) -> int:
        """Tokens that fit into a step."""
        return self.rows * self.length


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its shape, and which texts stand in each row, in order."""

    shape: Shape
    rows: tuple[tuple[int, ...], ...]

    def texts(self) -> np.ndarray:
        """All texts of the step, in the order of `rows`."""
        return np.array([text for row in self.rows for text in row], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ShapeSet:
    """The shapes of a run.

    Rows are filled for the shapes in `full`, one for each length, ascending; a step whose rows fit a smaller
    one takes the smallest, of these and the `tails`, which are for nothing else.
    """

    full: tuple[Shape, ...]
    tails: tuple[Shape, ...] = ()

    @property
    def every(self) -> tuple[Shape, ...]:
        """All of them, the smallest first."""
        return tuple(sorted({*self.full, *self.tails}, key=lambda shape: (shape.slots, shape)))

    @property
    def longest(self) -> int:
        """Tokens of the longest text that a row takes."""
        return self.full[-1].length


def plan_steps(lengths: np.ndarray, shapes: ShapeSet) -> list[Step]:
    """Steps that hold every text with at least one token exactly once, the longest first.

    Deterministic. A length's last step is topped up with shorter texts, so only the very last step
    can have empty rows.

    Raises:
        ValueError: a text is longer than the longest shape.
    """
    if len(lengths) and int(lengths.max()) > shapes.longest:
        raise ValueError(f"a text of {int(lengths.max())} tokens; the longest shape has {shapes.longest}")
    stock = _Stock(lengths, shapes.longest)
    steps: list[Step] = []
    descending = shapes.full[::-1]
    for full, shorter in zip(descending, [*(shape.length for shape in descending[1:]), 0], strict=True):
        for rows in _class_rows(stock, full, shorter):
            steps.append(Step(_smallest(shapes, lengths, full, rows), rows))
    return steps


def steps_apart(step: Step, broken: np.ndarray) -> list[Step]:
    """Steps of the same shape in which texts stand alone in their rows: the broken ones that had company.

    `broken` says of each of `step.texts()` whether it is. A number that is none spreads to all texts of a
    row, because nothing times it is none either: alone it shows which text made it.
    """
    wanted = set(step.texts()[broken].tolist())
    rows = [(text,) for row in step.rows if len(row) > 1 for text in row if text in wanted]
    size = step.shape.rows
    return [Step(step.shape, tuple(rows[at : at + size])) for at in range(0, len(rows), size)]


def _class_rows(stock: _Stock, full: Shape, shorter: int) -> list[tuple[tuple[int, ...], ...]]:
    rows: list[tuple[int, ...]] = []
    # A row is opened by a text of this class, or to complete a step that has been begun.
    while stock.longest_up_to(full.length) > (0 if len(rows) % full.rows else shorter):
        rows.append(_fill_row(stock, full))
    return [tuple(rows[start : start + full.rows]) for start in range(0, len(rows), full.rows)]


def _smallest(shapes: ShapeSet, lengths: np.ndarray, full: Shape, rows: tuple[tuple[int, ...], ...]) -> Shape:
    texts = max(map(len, rows))
    tokens = max(int(lengths[list(row)].sum()) for row in rows)
    if len(rows) == full.rows and 2 * tokens > full.length:
        return full  # nearly all steps
    fitting = (s for s in shapes.every if s.rows >= len(rows) and s.length >= tokens and s.texts >= texts)
    return next(fitting)


def _fill_row(stock: _Stock, shape: Shape) -> tuple[int, ...]:
    row: list[int] = []
    free = shape.length
    while len(row) < shape.texts:
        length = stock.longest_up_to(free)
        if length == 0:
            break
        row.append(stock.take(length))
        free -= length
    return tuple(row)


class _Stock:
    """Texts by length; finds the longest that fits in nearly constant time.

    `_below[n]` is a length < n such that none between them is in stock. Lengths only run out, so
    paths are compressed for good (union-find).
    """

    def __init__(self, lengths: np.ndarray, longest: int) -> None:
        self._texts: list[list[int]] = [[] for _ in range(longest + 1)]
        for text in range(len(lengths) - 1, -1, -1):  # taken from the end: the first text first
            self._texts[int(lengths[text])].append(text)
        self._texts[0] = []
        self._below = [max(0, length - 1) for length in range(longest + 1)]

    def longest_up_to(self, length: int) -> int:
        """The largest length in stock that is at most `length`; 0 if there is none."""
        passed = []
        while length and not self._texts[length]:
            passed.append(length)
            length = self._below[length]
        for empty in passed:
            self._below[empty] = length
        return length

    def take(self, length: int) -> int:
        """A text of that length, out of stock."""
        return self._texts[length].pop()
