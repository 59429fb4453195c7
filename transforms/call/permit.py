"""A call's leave to be sent on a lane, and what the lane remembers of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Permit:
    """Given by a lane, and given back to it.

    `serial` counts the calls of the lane (0: only to be told why nothing is sent), `at` is the instant,
    `tokens` what had been asked of each token bucket until then. A `probe` is the one call that finds
    out whether a provider is up again.
    """

    serial: int
    at: float
    tokens: tuple[float, ...] = ()
    probe: bool = False
    told: bool = False  # whether its end is known to the lane
