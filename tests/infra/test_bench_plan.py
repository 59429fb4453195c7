"""Planning grows as the input does and no faster: counted, not timed; and what the bench says of that."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.bench.scale.planning import MOST_BYTES, Planned, broken, bytes_a_batch, line, plan, slopes
from schemas.load import LoadedWorkload
from tests.support.records import run_context
from tests.support.workloads import workload
from transforms.input_files import Files, InputFile, InputFiles, RowGroup
from transforms.plan import Plan, find_due, freeze_plan

FEW, MANY = 4_000, 16_000
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("kind", pa.string()), ("size", pa.int64())])


def described(batches: int) -> InputFiles:
    """Files of ten batches each, in two row groups."""
    groups = (RowGroup(0, 600, 1), RowGroup(1, 400, 1))
    files = (
        InputFile(f"gs://bucket/input/{n:09}.parquet", f"gcs:{n:016}", 10**6, 0, SCHEMA, groups)
        for n in range(batches // 10)
    )
    return InputFiles(Files.of(files), SCHEMA, ())


def planned(folder: Path, batches: int) -> Plan:
    """Describe, cut, look up, freeze: all that planning does after the footers."""
    folder.mkdir()
    settings = workload(limits__batch_rows=100, input__unique_ids="batch")
    loaded = LoadedWorkload(settings, folder / "w.toml", b"", "gs://bucket/input", str(folder / "out"))
    return freeze_plan(loaded, run_context(folder / "out"), find_due(loaded, None, found=described(batches)))


def calls_of(work: Callable[[], object]) -> int:
    """How many functions were called, Python's and C's: the same each time, however busy the machine is."""
    count = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_four_times_as_many_batches_take_four_times_as_many_steps(tmp_path: Path) -> None:
    planned(tmp_path / "first", 100)  # what is imported or compiled when it is used first
    few = calls_of(lambda: planned(tmp_path / "few", FEW))
    many = calls_of(lambda: planned(tmp_path / "many", MANY))
    assert many < 4.2 * few
    assert many < 16 * MANY


def test_a_batch_takes_at_most_300_bytes_of_the_driver(tmp_path: Path) -> None:
    """Python's and numpy's memory at its peak, and Arrow's."""

    def peak(name: str, batches: int) -> int:
        arrow = pa.total_allocated_bytes()
        tracemalloc.start()
        try:
            found = planned(tmp_path / name, batches)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(found.refs) == batches
        return most + pa.total_allocated_bytes() - arrow

    peak("first", 100)
    each = (peak("many", MANY) - peak("few", FEW)) / (MANY - FEW)
    assert 60 < each < MOST_BYTES


def test_every_file_is_asked_for_once_and_the_listing_is_read_once(tmp_path: Path) -> None:
    found = plan(5_000, 0.0, tmp_path / "plan")
    assert (found.batches, found.files) == (5_000, 500)
    assert (found.pages, found.ranges, found.writes) == (1, 500, 2)
    assert not (tmp_path / "plan").exists()


# ---- what the bench says

FOUND = Planned(100_000, 10_000, 10.0, 1.0, 1.0, 0.01, 10.0, 30 << 20, 10, 10_000, 2, 2_000_000)
LINEAR = Planned(1_000_000, 100_000, 100.0, 10.0, 10.0, 0.01, 100.0, 230 << 20, 100, 100_000, 2, 20_000_000)


def test_growth_as_that_of_the_input_is_fine() -> None:
    assert slopes(FOUND, LINEAR) == pytest.approx(
        {"footers": 1, "due": 1, "freeze": 1, "CPU": 1, "ranges": 1, "peak": 0.88}, abs=0.01
    )
    assert bytes_a_batch(FOUND, LINEAR) == pytest.approx(233, abs=1)
    assert not list(broken([FOUND, LINEAR]))
    assert "100,000" in line(LINEAR, 0.05)
    assert "78.1" in line(LINEAR, 0.05)  # 100,000 files of 50 ms, 64 at once


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peak": 400 << 20}, "431 bytes a batch, to be at most 300"),
        ({"cpu_s": 200.0}, "CPU grows with the power 1.30"),
        ({"ranges": 200_000}, "ranges grows with the power 1.30"),
    ],
)
def test_growth_that_is_faster_is_said(changes: dict[str, Any], said: str) -> None:
    assert list(broken([FOUND, replace(LINEAR, **changes)])) == [f"from 100,000 to 1,000,000 batches: {said}"]
