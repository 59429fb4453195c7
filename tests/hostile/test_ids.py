"""Looking for repeated ids reads every file in the planning process's name: it must survive all of them."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.documents import rows, write
from tests.support.runs import Place
from transforms.duplicates import IdRun, find_duplicates

SCHEMA = pa.schema([("id", pa.large_string())])


def duplicates(paths: list[Path]) -> dict[str, set[int]]:
    runs = [
        IdRun(str(path), group) for path in paths for group in range(pq.read_metadata(path).num_row_groups)
    ]
    found = find_duplicates(runs, SCHEMA, "id", None)
    marked = {f"{Path(run.uri).name} {run.row_group}": set(found.rows_of(n)) for n, run in enumerate(runs)}
    return {group: rows for group, rows in marked.items() if rows}


def damage_ids(path: Path, group: int) -> Path:
    """Zero the pages of the ids of a row group; size and time stay as they were."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(group).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return path


def test_repeated_ids_are_found_around_a_row_group_whose_ids_are_damaged(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", rows(["x", "y", "z"]))
    second = damage_ids(write(tmp_path / "b.parquet", rows(["x", "p", "x", "q", "x", "p"]), 2), 1)
    third = write(tmp_path / "c.parquet", rows(["q", "y"]))
    assert duplicates([first, second, third]) == {
        "b.parquet 0": {0},
        "b.parquet 2": {0, 1},
        "c.parquet 0": {1},
    }


def test_an_enormous_id_does_not_reach_the_planning_process(tmp_path: Path) -> None:
    ids = pa.array([*(f"id {i}" for i in range(4)), "A" * 400_000_000], pa.large_string())
    bomb = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"id": ids}), bomb, compression="zstd", use_dictionary=False, write_statistics=False
    )
    good = write(tmp_path / "b.parquet", rows(["id 9", "id 9"]))
    assert duplicates([bomb, good]) == {"b.parquet 0": {1}}


def test_damaged_ids_fail_their_batches_alone_in_a_run(tmp_path: Path) -> None:
    place = Place(tmp_path / "place", {"limits__batch_rows": 2})
    write(place.folder / "in" / "a.parquet", rows(["a1", "a2", "a2"]))
    damage_ids(write(place.folder / "in" / "b.parquet", rows(["b1", "b2", "b3", "a1"]), 2), 0)
    run = place.run()
    (failed,) = [report for report in run.reports if report.state == "failed"]
    assert "in/b.parquet, row group 0, rows 0–1: can't be read" in failed.error
    assert {row["document_id"] for row in place.rows("results/route=ask")} == {"a1", "a2", "b3"}
    assert [(document, kind) for document, _, kind in place.failures()] == [
        ("a2", "duplicate_id"),
        ("a1", "duplicate_id"),
    ]
    assert run.manifest.state == "incomplete"
