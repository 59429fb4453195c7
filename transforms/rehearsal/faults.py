"""Which of the configured faults a request meets."""

from __future__ import annotations

from typing import Literal

from schemas.rehearsal import Faults
from transforms.rehearsal.draws import fraction

Fault = Literal[
    "rate_limited",
    "server_error",
    "overloaded",
    "connection_reset",
    "hang",
    "truncated_body",
    "max_tokens",
    "invalid_json",
    "refusal",
]
_ORDER: tuple[Fault, ...] = (
    "rate_limited",
    "server_error",
    "overloaded",
    "connection_reset",
    "hang",
    "truncated_body",
    "max_tokens",
    "invalid_json",
    "refusal",
)


def any_fault(faults: Faults) -> bool:
    """Whether anything is configured to go wrong."""
    return any(getattr(faults, name) > 0 for name in _ORDER)


def fault_of(faults: Faults, key: bytes, nth: int) -> Fault | None:
    """The fault that a request meets the `nth` time it is seen, counted from 0; None: all goes well.

    Each fault gets its share of the interval from 0 to 1, in the order of the configuration.
    """
    place = fraction(key, f"fault {nth}")
    for name in _ORDER:
        place -= getattr(faults, name)
        if place < 0:
            return name
    return None
