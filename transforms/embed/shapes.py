"""Which shapes a run's steps have: chosen from the lengths of its own texts. Pure, no JAX.

A shape costs its compilation once and its slots at every step. Short rows waste nothing on attention
between texts that don't see each other; long rows leave fewer gaps and need fewer programs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from transforms.embed.packing import SLOTS_PER_TEXT, Shape, ShapeSet

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
_FINE = (64, 128, 256, 384, 512, 640, 768, 896, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""What lengths are chosen from: whole blocks of queries (128), and one of half a block."""
_ALIGNMENT = 64


COMPILATION = 20_000.0
"""Tokens that a CPU's core embeds with a MiniLM while it compiles a program (seconds; ADR 011)."""
ACCELERATOR_COMPILATION = 1e7
"""The same for an accelerator, by order of magnitude: 10 s and more a program, at about a million tokens a
second (ADR 019). It counts against all texts of a run, not against a sample."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What decides about lengths, in units of a token's work outside attention.

    `attention` is what a slot costs more for each slot of its row: 0 where attention goes text by text.
    `compilation` is a program's compilation, as tokens that could be embedded meanwhile.
    """

    attention: float
    compilation: float = COMPILATION


ATTENTION_SLOWNESS = 2.0
"""Attention's products are small: they run at about half the rate of the others (ADR 011)."""


def attention_cost(heads: int, head_dim: int, weights: int) -> float:
    """What attention costs a token for each slot of its row, in units of the rest of its work.

    `weights` are the numbers in a layer's matrices.
    """
    return 4 * heads * head_dim / (2 * weights) * ATTENTION_SLOWNESS


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step may look like on the devices at hand.

    `slots` is what one device works on at a time; rows are a multiple of `devices`; `fractions` are the
    sizes of smaller steps for what is left at an end, as parts of a full one.
    """

    slots: int
    devices: int = 1
    fractions: tuple[int, ...] = ()


def longest_row(max_length: int) -> int:
    """The row that the longest text stands in: whole blocks of queries, or half a block."""
    longest = -(-max_length // _ALIGNMENT) * _ALIGNMENT
    if longest > 2 * _ALIGNMENT:
        longest = -(-longest // (2 * _ALIGNMENT)) * 2 * _ALIGNMENT
    return longest


def shapes_unseen(max_length: int, size: StepSize, cost: StepCost) -> ShapeSet:
    """The shapes for texts of which nothing is known: a row length for each doubling.

    Where attention goes text by text, rows shorter than a whole step are of no use.
    """
    longest = _top(max_length, size, cost)
    least = size.slots if not cost.attention else 0
    return _shapes([*(length for length in LENGTHS if least <= length < longest), longest], size)


def shapes_for(seen: Mapping[int, float], max_length: int, size: StepSize, cost: StepCost) -> ShapeSet:
    """The shapes whose steps and compilations cost least for `seen[n]` texts of n tokens, n from 1 on.

    They take texts of any length up to `max_length`, whether one was seen or not. A shape must earn its
    compilation on these very texts, so the choice is right however many more come.
    """
    top = _top(max_length, size, cost)
    candidates = [*(length for length in _FINE if length < top), top]
    counts = np.zeros(top + 1)
    for length, texts in seen.items():
        counts[min(length, top)] += texts
    return _shapes(choose_lengths(counts, candidates, cost), size)


def _top(max_length: int, size: StepSize, cost: StepCost) -> int:
    longest = longest_row(max_length)
    return longest if cost.attention else max(longest, size.slots)


def choose_lengths(seen: np.ndarray, candidates: Sequence[int], cost: StepCost) -> list[int]:
    """Row lengths out of ascending candidates, the last of which is always taken.

    `seen[n]` texts have n tokens. A text goes to the shortest row that takes it, together with texts of its
    own length only: a bound, because gaps are filled with shorter ones. The best choice of all,
    by dynamic programming over the candidates: cheapest[j] is for texts up to candidate j.
    """
    cheapest, before = [0.0], [-1]
    for j, length in enumerate(candidates):
        options = [
            cheapest[i] + _class_cost(seen, candidates[i - 1] if i else 0, length, cost) for i in range(j + 1)
        ]
        best = int(np.argmin(options))
        cheapest.append(options[best])
        before.append(best)
    chosen, j = [], len(candidates)
    while j > 0:
        chosen.append(candidates[j - 1])
        j = before[j]
    return chosen[::-1]


def _class_cost(seen: np.ndarray, above: int, length: int, cost: StepCost) -> float:
    """Of all texts with more than `above` and at most `length` tokens in rows of that length."""
    sizes = np.arange(above + 1, min(length + 1, len(seen)))
    in_a_row = np.minimum(length // sizes, max(1, length // SLOTS_PER_TEXT))
    slots = float((seen[sizes] / in_a_row).sum()) * length
    return slots * (1 + cost.attention * length) + cost.compilation


def _shapes(lengths: Sequence[int], size: StepSize) -> ShapeSet:
    full = [_shape(length, max(1, size.slots // length), size) for length in lengths]
    tails = {_tail(shape, fraction, size) for shape in full for fraction in size.fractions}
    return ShapeSet(tuple(full), tuple(sorted(tails - set(full))))


def _tail(full: Shape, fraction: int, size: StepSize) -> Shape:
    """A part of a full step: fewer rows, or where there are too few of them a shorter one."""
    rows = full.rows // size.devices
    if rows >= fraction:
        return _shape(full.length, rows // fraction, size)
    return _shape(-(-full.length * rows // fraction // _ALIGNMENT) * _ALIGNMENT, 1, size)


def _shape(length: int, rows: int, size: StepSize) -> Shape:
    return Shape(length, size.devices * rows, max(1, length // SLOTS_PER_TEXT))
