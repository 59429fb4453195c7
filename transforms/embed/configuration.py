"""Reading numbers and choices of a model's config.json, with errors that name key, value and file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ModelError

MOST_LAYERS = 1024
"""No model has so many; a damaged number must not make a list of tensors that fills the memory."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A config.json and where it lies."""

    values: Mapping[str, Any]
    path: Path

    def number(self, key: str, default: int | None = None, most: int | None = None) -> int:
        """A whole number of at least 1, and of `most` at most."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= (most or value):
            allowed = "at least 1" if most is None else f"1 to {most}"
            raise ModelError(f"{self.path}: {key} = {value!r}; expected a whole number of {allowed}")
        return value

    def fraction(self, key: str, default: float) -> float:
        """A number between 0 and 1, neither included."""
        value = self.values.get(key, default)
        self.require(isinstance(value, float) and 0 < value < 1, key, "a number in (0, 1)", default)
        return float(value)

    def choice(self, key: str, allowed: Collection[str], default: str) -> str:
        """One of some names."""
        value = self.values.get(key, default)
        what = f"one of {', '.join(allowed)}" if len(allowed) > 1 else next(iter(allowed))
        self.require(value in allowed, key, what, default)
        return str(value)

    def off(self, key: str) -> None:
        """Refuses what is not supported when it is switched on."""
        self.require(not self.values.get(key), key, "false")

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key, default)
        self.require(isinstance(value, bool), key, "true or false", default)
        return bool(value)

    def require(self, holds: bool, key: str, allowed: str, default: object = None) -> None:
        """Raises ModelError unless the condition on a key holds."""
        if not holds:
            value = self.values.get(key, default)
            raise ModelError(f"{self.path}: {key} = {value!r} is not supported; supported: {allowed}")
