"""`make bench-resume` at a small size: operations instead of seconds."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from infra.bench.scale.resume import CANCELLED, fill, ids_of, measure
from transforms.batch_ids import name_of
from transforms.output import read_manifest


def test_resuming_and_settling_cost_what_is_open_and_a_few_reads(tmp_path: Path) -> None:
    fill(tmp_path / "out", 4000, 40)
    resumed, settled, cancelled = measure(tmp_path / "out", 4000, 40, 0.0)
    assert resumed.operations["read commits"] == 40
    assert resumed.operations["read compacted"] == 1
    assert "list commits" not in resumed.operations
    assert settled.operations["read commits"] == 20, "what was found is compacted by now"
    assert sum(resumed.operations.values()) < 40 + 12
    assert sum(settled.operations.values()) < 20 + 16
    assert cancelled.operations["list commits"] == 5, "which is cheaper than asking for 4,000 names"
    assert sum(cancelled.operations.values()) < 5 + 20 + 16
    manifest = read_manifest(str(tmp_path / "out"), CANCELLED)
    assert manifest is not None
    assert (len(manifest.failed_batches), manifest.failed_batches_count) == (1000, 4000)
    table = pq.read_table(tmp_path / "out" / manifest.failed_batches_file)
    assert table.column("batch_id").to_pylist() == [name_of(batch) for batch in ids_of(4000)]
    assert set(table.column("error").to_pylist()) == {"its run was stopped"}
