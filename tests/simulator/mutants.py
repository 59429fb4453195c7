"""All seeded defects, by name."""

from __future__ import annotations

from tests.simulator import (
    mutants_budget,
    mutants_caps,
    mutants_commit,
    mutants_compaction,
    mutants_flow,
    mutants_ledger,
    mutants_parts,
    mutants_repair,
    mutants_segments,
    mutants_sharing,
    mutants_sleepers,
)
from tests.simulator.planting import MUTANTS

__all__ = [
    "MUTANTS",
    "mutants_budget",
    "mutants_caps",
    "mutants_commit",
    "mutants_compaction",
    "mutants_flow",
    "mutants_ledger",
    "mutants_parts",
    "mutants_repair",
    "mutants_segments",
    "mutants_sharing",
    "mutants_sleepers",
]
