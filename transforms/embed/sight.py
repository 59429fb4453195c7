"""The two values that every kind of attention takes: what a token sees, and heads side by side."""

from __future__ import annotations

from dataclasses import dataclass

import jax


@dataclass(frozen=True, slots=True)
class Sight:
    """Which tokens of its own segment a token sees: all, those before it, or those near it."""

    causal: bool = False
    window: int = 0  # at most this far to either side; 0: any distance


EVERYTHING = Sight()


@dataclass(frozen=True, slots=True)
class Heads:
    """Some heads of an array that may hold others too: `count` of them, `width` wide, from `first` on.

    `values` is `[rows, length, heads * width]`. A kernel can so read query, key and value where one
    product wrote them, without a copy.
    """

    values: jax.Array
    count: int
    width: int
    first: int = 0

    @property
    def lanes(self) -> int:
        """Components of all heads of a token."""
        return self.count * self.width

    def split(self) -> jax.Array:
        """`[rows, count, length, width]`."""
        rows, length, lanes = self.values.shape
        heads = self.values.reshape(rows, length, lanes // self.width, self.width)
        return heads[:, :, self.first : self.first + self.count].transpose(0, 2, 1, 3)
