"""`make bench-resume` at a small size: operations instead of seconds."""

from __future__ import annotations

from pathlib import Path

from infra.bench.scale.resume import fill, measure


def test_resuming_and_settling_cost_what_is_open_and_a_few_reads(tmp_path: Path) -> None:
    fill(tmp_path / "out", 4000, 40)
    resumed, settled = measure(tmp_path / "out", 4000, 40, 0.0)
    assert resumed.operations["read commits"] == 40
    assert resumed.operations["read compacted"] == 1
    assert "list commits" not in resumed.operations
    assert settled.operations["read commits"] == 20, "what was found is compacted by now"
    assert sum(resumed.operations.values()) < 40 + 12
    assert sum(settled.operations.values()) < 20 + 16
