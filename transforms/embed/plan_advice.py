"""Whether a step fits on a device, and what would where it doesn't: sentences for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transforms.embed.chips import GIB
from transforms.embed.packing import Shape

RESERVED = 0.95
"""Share of a device's memory that a plan may use: the rest is for the runtime and the next step's input."""
_MOST_HALVINGS = 8


@dataclass(frozen=True, slots=True)
class Load:
    """What a step puts on a device. Only the weights are divided among `parts` for certain.

    `weights` are all of the model's, `compared` those in float32 that `compute_dtype = "auto"` holds beside
    them for a while, to compare vectors (else 0).
    """

    shape: Shape
    parts: int
    weights: int
    compared: int
    needed: int
    limit: int

    @property
    def fits(self) -> bool:
        """Whether the step as it is fits."""
        return self.needed <= RESERVED * self.limit

    def would_fit(self, slots: int, parts: int) -> bool:
        """Whether a step of so many tokens would, the rest of its memory being proportional to them."""
        rest = max(0, self.needed - self.weights / self.parts) * slots / self.shape.slots
        return self.weights / parts + rest <= RESERVED * self.limit

    def can_compare(self, parts: int) -> bool:
        """Whether the weights fit in both dtypes."""
        return not self.compared or (self.weights + self.compared) / parts <= RESERVED * self.limit


def refusal(topology: str, load: Load, possible: Sequence[int]) -> str:
    """Why a load doesn't fit, and what would; empty if it fits.

    Args:
        topology: its name.
        load: of one device.
        possible: numbers of devices that can share a copy of this model on this topology.
    """
    limit = f"of a device's {load.limit / GIB:.1f}"
    if not load.fits:
        advice = (
            " or ".join(_ways(load, possible)) or "a chip with more memory, or a topology with more chips"
        )
        return (
            f"{topology}: a step of {load.shape.slots:,} tokens in rows of {load.shape.length} needs "
            f"{load.needed / GIB:.1f} GiB {limit} ({load.weights / load.parts / GIB:.1f} of it weights) and "
            f"does not fit; by proportion would fit: {advice}"
        )
    if not load.can_compare(load.parts):
        both = (load.weights + load.compared) / load.parts
        return (
            f'{topology}: compute_dtype = "auto" holds the weights in float32 and bfloat16 for a while to '
            f'compare their vectors, {both / GIB:.1f} GiB {limit}; would fit: compute_dtype = "bfloat16"'
        )
    return ""


def _ways(load: Load, possible: Sequence[int]) -> list[str]:
    halves = [load.shape.slots >> by for by in range(1, _MOST_HALVINGS + 1)]
    smaller = [slots for slots in halves if slots >= load.shape.length]

    def most(sizes: Sequence[int], parts: int) -> int | None:
        return next((slots for slots in sizes if load.would_fit(slots, parts)), None)

    def settings(slots: int, parts: int) -> str:
        keys = [f"tensor_parallel = {parts}"] if parts != load.parts else []
        keys += [f"step_tokens = {slots}"] if slots != load.shape.slots else []
        keys += [] if load.can_compare(parts) else ['compute_dtype = "bfloat16"']
        return " with ".join([keys[0], " and ".join(keys[1:])]) if keys[1:] else keys[0]

    found = [(most(smaller, load.parts), load.parts)]
    found += [(most([load.shape.slots, *smaller], more), more) for more in possible if more > load.parts]
    shared = next((each for each in found[1:] if each[0] is not None), None)
    ways = [settings(slots, parts) for slots, parts in (found[0], shared or (None, 0)) if slots is not None]
    if not ways and load.shape.length > 256:
        ways = [f"max_length = {load.shape.length // 2}"]
    return ways
