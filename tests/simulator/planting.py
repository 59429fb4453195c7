"""Seeded defects: production code with one thing broken. The simulator is worth what it catches of them.

A defect is planted by replacing an attribute of the production code while it is in force; nothing else of
it is touched. `caught_by` names the invariants of which one must break.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

Plant = Callable[[ExitStack], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One defect."""

    name: str
    area: str
    plant: Plant
    caught_by: frozenset[str]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Work with the defect in place."""
        with ExitStack() as replaced:
            self.plant(replaced)
            yield


MUTANTS: dict[str, Mutant] = {}


def defect(area: str, *caught_by: str) -> Callable[[Plant], Plant]:
    """Registers a function that plants a defect; its name is the defect's."""

    def register(plant: Plant) -> Plant:
        name = plant.__name__
        MUTANTS[name] = Mutant(name, area, plant, frozenset(caught_by))
        return plant

    return register


def swap(replaced: ExitStack, owner: Any, attribute: str, value: Any) -> Any:
    """Replace an attribute for as long as the defect is in force; what was there before."""
    before = getattr(owner, attribute)
    replaced.enter_context(patch.object(owner, attribute, value))
    return before
