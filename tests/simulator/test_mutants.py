"""Each seeded defect is caught, by an invariant that says what is wrong, within so many seeds."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulator.mutants import MUTANTS
from tests.simulator.planting import Mutant
from tests.simulator.shape import draw_at
from tests.simulator.simulate import simulate
from tests.simulator.world import ViolationError

WITHIN_SEEDS = 1000
AREAS = {
    *("ledger", "claim", "replay", "budget", "caps", "commit", "compaction"),
    *("retry", "repair", "answer", "share", "settle", "segments", "parts"),
}
PLAYED_AT = {"segments": "--objects", "parts": "--parts"}


def first_violation(mutant: Mutant) -> tuple[int, ViolationError] | None:
    with mutant.planted():
        for seed in range(WITHIN_SEEDS):
            violation = simulate(seed, draw_at(PLAYED_AT.get(mutant.area, ""), seed)).violation
            if violation is not None:
                return seed, violation
    return None


@pytest.mark.parametrize("name", MUTANTS)
def test_a_seeded_defect_is_caught(name: str, record_property: pytest.RecordProperty) -> None:
    mutant = MUTANTS[name]
    found = first_violation(mutant)
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
