"""Which texts go into which step: fixed shapes, filled almost fully. Pure, no JAX.

A step is `rows` rows of `length` slots; a row holds several texts one behind the other, told apart
by segment numbers. Lengths fall into few classes, so few programs are compiled; a gap behind a text
is filled with the longest text that fits, of whatever class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LENGTH_CLASSES = (64, 128, 256, 512, 1024, 2048, 4096)
SLOTS_PER_TEXT = 8
"""A row of n slots takes at most n / 8 texts; it bounds the size of a step's answer."""
_ALIGNMENT = 64


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


def choose_shapes(
    max_length: int, step_slots: int, devices: int = 1, fractions: Sequence[int] = (1,)
) -> tuple[Shape, ...]:
    """The shapes of a run: one per length class, and smaller ones for the last step of a class.

    Args:
        max_length: the longest text in tokens.
        step_slots: slots that a device should work on in one step.
        devices: rows are a multiple of it, so that they spread evenly.
        fractions: a class also gets shapes of 1/fraction of its rows; 1 is the full step.
    """
    longest = -(-max_length // _ALIGNMENT) * _ALIGNMENT
    if longest > 2 * _ALIGNMENT:
        longest = -(-longest // (2 * _ALIGNMENT)) * 2 * _ALIGNMENT
    lengths = [length for length in LENGTH_CLASSES if length < longest] + [longest]
    shapes = {
        Shape(length, devices * max(1, step_slots // length // fraction), max(1, length // SLOTS_PER_TEXT))
        for length in lengths
        for fraction in fractions
    }
    return tuple(sorted(shapes))


def plan_steps(lengths: np.ndarray, shapes: Sequence[Shape]) -> list[Step]:
    """Steps that hold every text with at least one token exactly once, the longest first.

    Deterministic. A class's last step is topped up with shorter texts, so only the very last step
    can have empty rows.

    Raises:
        ValueError: a text is longer than the longest shape.
    """
    longest = max(shape.length for shape in shapes)
    if len(lengths) and int(lengths.max()) > longest:
        raise ValueError(f"a text of {int(lengths.max())} tokens; the longest shape has {longest}")
    stock = _Stock(lengths, longest)
    steps: list[Step] = []
    classes = sorted({shape.length for shape in shapes}, reverse=True)
    for length, shorter in zip(classes, [*classes[1:], 0], strict=True):
        ladder = sorted(shape for shape in shapes if shape.length == length)
        steps.extend(_class_steps(stock, ladder, shorter))
    return steps


def _class_steps(stock: _Stock, ladder: list[Shape], shorter: int) -> list[Step]:
    full = ladder[-1]
    rows: list[tuple[int, ...]] = []
    # A row is opened by a text of this class, or to complete a step that has been begun.
    while stock.longest_up_to(full.length) > (0 if len(rows) % full.rows else shorter):
        rows.append(_fill_row(stock, full))
    steps = []
    for start in range(0, len(rows), full.rows):
        part = tuple(rows[start : start + full.rows])
        steps.append(Step(next(shape for shape in ladder if shape.rows >= len(part)), part))
    return steps


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
