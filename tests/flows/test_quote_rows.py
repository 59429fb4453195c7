"""The report says what was quoted beside what came."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from flows.report import report
from flows.report_html import report_html
from flows.tables import quote_rows
from schemas.load import load_workload
from tests.support import documents, workloads
from tests.support.drive import drive
from transforms.quote.build import quote_workload
from transforms.quote.compare import store_quote
from transforms.store import open_store


def test_a_run_is_held_to_the_quote_that_was_made_for_it(tmp_path: Path) -> None:
    documents.write(tmp_path / "in" / "a.parquet", documents.rows(range(40)))
    path = workloads.write_workload(tmp_path, rehearsal={"latency_ms": [0, 0]})
    quote = quote_workload(load_workload(path), datetime(2026, 11, 1, tzinfo=UTC))
    manifest = drive(path, rehearsal=True)
    output = str(tmp_path / "out")
    assert quote_rows(manifest, output) == [], "a run without a quote says nothing of one"

    assert store_quote(open_store(output), manifest.run_id, quote)
    (row,) = quote_rows(manifest, output)
    assert row["route"] == "ask"
    assert str(row["quoted"]).startswith("$")
    assert " to $" in str(row["likely"])
    assert row["verdict"] in ("as quoted", "below", "above")

    console = Console(file=io.StringIO(), width=160)
    console.print(report(manifest, output))
    assert isinstance(console.file, io.StringIO)
    assert "Quote against actual" in console.file.getvalue()
    assert "Quote against actual" in report_html(manifest, output)
    for page in (console.file.getvalue(), report_html(manifest, output)):
        assert "It took " in page
        assert "; the quote of a real run said " in page
