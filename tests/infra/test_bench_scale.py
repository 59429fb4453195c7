"""What the benches of scale say of the runs that they have measured, and that they count every operation."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.bench.calls.measure import Measured
from infra.bench.scale import sizes, workers
from infra.bench.scale.running import ROOT, Ran, Size, write_documents
from tests.support.records import manifest

MANIFEST = manifest(rows_in=1000, assignments=1000, results=1000, batches=4, batches_committed=4)
OPERATIONS = {
    "stage _staging": 5,
    "create commits": 4,
    "publish results": 4,
    "publish runs": 1,
    "create failures": 1,
    "create ledger": 30,
    "swap budget": 2,
    "create runs": 5,
    "exists commits": 8,
    "read commits": 4,
}


def ran(documents: int = 1000, workers: int = 1, calling_s: float = 1.0, **measured: float) -> Ran:
    figures = {"wall_s": 2.0, "cpu_s": 1.0, "peak_mib": 800.0, "first_mib": 200.0, **measured}
    samples = ((0.0, 0.0, 0.0), (100.0, 100.0 * workers, 10.0))
    return Ran(
        size=Size(documents, workers),
        measured=Measured(
            True, 0, last_words="", samples=samples, cpu_of={"pipelines.enrich": 0.5}, **figures
        ),
        manifest=MANIFEST,
        provider={"first_at": 10.0, "last_at": 10.0 + calling_s},
        operations=Counter(OPERATIONS),
    )


def test_writes_are_told_apart_by_what_they_are_for() -> None:
    found = ran()
    assert (found.batch_writes, found.segments, found.other_writes, found.other_operations) == (
        12,
        30,
        10,
        12,
    )
    assert sizes.writes_per_batch(found) == 3.0


def test_a_slope_is_the_exponent_of_the_number_of_documents() -> None:
    few, many = ran(1000, cpu_s=2.0, first_mib=200.0), ran(100_000, cpu_s=200.0, first_mib=200.0)
    found = {text[:26].strip(): float(text[26:]) for text in list(sizes.slopes([few, many]))[1:]}
    assert found["CPU"] == 1.0
    assert found["driver's memory"] == 0.0


def test_a_driver_that_grows_by_more_than_a_quarter_and_a_fourth_write_are_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    small, flat = ran(100_000, first_mib=200.0), ran(10_000_000, first_mib=250.0)
    assert list(sizes.broken([small, flat])) == []
    assert list(sizes.broken([small, ran(10_000_000, first_mib=251.0)])) == [
        "driver's memory from 100,000 to 10,000,000 documents: 1.25 times"
    ]
    flat.operations["create commits"] += 1
    assert list(sizes.broken([small, flat])) == ["10,000,000 documents: 3.25 writes a batch and route"]
    assert "1.25 times (to be at most 1.25)" in capsys.readouterr().out


def test_workers_are_compared_with_one_worker_of_the_same_round() -> None:
    runs = [ran(1000, 1, 1.0), ran(2000, 2, 1.25), ran(2000, 2, 2.0), ran(1000, 1, 2.0)]
    assert workers.shares(runs, 1) == [1.0, 1.0]
    assert workers.shares(runs, 2) == pytest.approx([0.8, 1.0])
    row = list(workers.table(runs, [1, 2]))[2].split()
    assert row[:4] == ["2", "1,300", "0.90", "0.80-1.00"]
    assert row[4] == "250"  # half a second of the workers' own for 2,000 rows
    assert row[6:] == ["250", "1.00", "0.05", "2.00"]


def test_every_document_of_the_bench_is_another(tmp_path: Path) -> None:
    write_documents(tmp_path / "input", 70_000)
    table = pq.read_table(tmp_path / "input")
    assert table.num_rows == 70_000
    assert len(set(table.column("text").to_pylist())) == 70_000
    assert pq.ParquetFile(tmp_path / "input" / "0000000000.parquet").num_row_groups == 2


def test_what_a_process_asks_of_its_store_is_counted_once_an_operation(tmp_path: Path) -> None:
    code = (
        "from transforms.store import open_store\n"
        f"store = open_store({str(tmp_path / 'out')!r})\n"
        "store.create('commits/a', b'1'); store.create('commits/a', b'2')\n"
        "stream = store.stage('_staging/x/p'); stream.write(b'3'); store.finish(stream)\n"
        "store.publish('_staging/x/p', 'results/p')\n"
        "data, generation = store.read_versioned('commits/a'); store.swap('commits/a', data, generation)\n"
        "list(store.list('')); store.exists('results/p')\n"
    )
    (tmp_path / "operations").mkdir()
    folder = ROOT / "infra" / "bench" / "scale" / "counted"
    environ = {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "SWITCHGEAR_BENCH_STORE": str(tmp_path / "operations"),
    }
    subprocess.run([sys.executable, "-c", code], env=environ, check=True, timeout=240)
    (found,) = (tmp_path / "operations").iterdir()
    assert json.loads(found.read_text()) == {
        "create commits": 2,
        "stage _staging": 1,
        "publish results": 1,
        "read_versioned commits": 1,
        "swap commits": 1,
        "list ": 1,
        "exists results": 1,
    }
