"""Each seeded defect is caught, by an invariant that says what is wrong, within so many seeds.

`caught` names the seed that caught each when somebody last looked: it is played first, and all from the first
one on only where it does not catch the defect any more. `python -m tests.simulator.test_mutants` looks again.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest

from tests.simulator.mutants import MUTANTS
from tests.simulator.planting import Mutant
from tests.simulator.shape import draw_at
from tests.simulator.simulate import simulate
from tests.simulator.world import ViolationError

WITHIN_SEEDS = 1000
AREAS = {
    *("ledger", "claim", "replay", "budget", "caps", "commit", "compaction"),
    *("retry", "repair", "answer", "share", "settle", "segments", "parts", "sleepers"),
}
CAUGHT = Path(__file__).with_name("caught")
PLAYED_AT = {"segments": "--objects", "parts": "--parts", "sleepers": "--sleepers"}


def caught() -> dict[str, int]:
    lines = [line.split() for line in CAUGHT.read_text(encoding="utf-8").splitlines()]
    return {name: int(seed) for name, seed in lines}


def first_violation(mutant: Mutant, known: int = 0) -> tuple[int, ViolationError] | None:
    with mutant.planted():
        for seed in (known, *range(WITHIN_SEEDS)):
            violation = simulate(seed, draw_at(PLAYED_AT.get(mutant.area, ""), seed)).violation
            if violation is not None:
                return seed, violation
    return None


@pytest.mark.parametrize("name", MUTANTS)
def test_a_seeded_defect_is_caught(name: str, record_property: pytest.RecordProperty) -> None:
    mutant = MUTANTS[name]
    found = first_violation(mutant, caught().get(name, 0))
    assert found is not None, f"{name} was not caught within {WITHIN_SEEDS} seeds"
    seed, violation = found
    record_property("caught", f"{name}: seed {seed}, {violation.invariant}")
    assert violation.invariant in mutant.caught_by, f"{name}, seed {seed}: {violation}"


def test_there_are_defects_of_every_kind_and_none_stays_behind() -> None:
    assert len(MUTANTS) >= 20
    areas = Counter(mutant.area for mutant in MUTANTS.values())
    assert set(areas) == AREAS
    for mutant in MUTANTS.values():
        with mutant.planted():
            pass
    assert all(simulate(seed).violation is None for seed in range(20))
    assert all(seed < WITHIN_SEEDS for seed in caught().values())
    assert set(caught()) <= set(MUTANTS)


def look_again() -> None:
    """Write down the first seed that catches each defect; some minutes."""
    logging.disable(logging.CRITICAL)
    found = {name: first_violation(mutant) for name, mutant in MUTANTS.items()}
    lines = [f"{name} {first[0]}\n" for name, first in found.items() if first is not None]
    CAUGHT.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    look_again()
