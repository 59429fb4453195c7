"""Texts of the lengths that were sampled, in the steps that a run would make of them: pure, no JAX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from schemas.lengths import TextLengths
from transforms.embed.packing import Shape, ShapeSet, plan_steps
from transforms.embed.roofline import Estimate

LEAST_STEPS = 32
"""So many steps and more are packed, that the last one, which is not full, is no matter."""


@dataclass(frozen=True, slots=True)
class PackedSample:
    """How many steps of how long rows were made, the share of their slots that is filled, and their rate.

    `tokens_per_second` are those of one copy of the model at the steps' least times.
    """

    steps: dict[int, int]
    filled: float
    tokens_per_second: float


def pack_sample(texts: TextLengths, seconds: Mapping[Shape, float]) -> PackedSample:
    """Packs a sample, as often as it takes to fill many steps, into shapes that take so many seconds each."""
    shapes = ShapeSet(tuple(sorted(seconds)))
    tokens = sum(n * count for n, count in texts.counts)
    again = -(-LEAST_STEPS * max(shape.slots for shape in seconds) // tokens)
    lengths = np.repeat([n for n, _ in texts.counts], [count * again for _, count in texts.counts])
    made = [step.shape for step in plan_steps(lengths, shapes)]
    return PackedSample(
        steps=dict(sorted(Counter(shape.length for shape in made).items())),
        filled=again * tokens / sum(shape.slots for shape in made),
        tokens_per_second=again * tokens / sum(seconds[shape] for shape in made),
    )


@dataclass(frozen=True, slots=True)
class MixPlan:
    """What a topology does with texts of the lengths that were sampled, in the steps that a run would make.

    `steps` and `filled` are those of the sample, packed: see `PackedSample`.
    """

    topology: str
    steps: dict[int, int]
    filled: float
    estimate: Estimate
