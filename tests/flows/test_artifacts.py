"""The page and the tables of a settled run, as they are sent, without a server."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows import artifacts
from flows.artifacts import Settled, publish_artifacts
from flows.batch_file import BATCHES_SCHEMA, write_batch_file
from flows.batch_lines import BatchLine
from flows.groups import GroupOutcome
from flows.summary import Shown, markdown_table, plain, summary_markdown
from flows.tables import MAX_ROWS
from flows.worker import WorkerEnd
from flows.worst_first import worst_first
from schemas.batches import BatchReport
from schemas.run import FailureGroup, Manifest

Make = Callable[..., Manifest]
TIMEOUT = FailureGroup(
    "timeout", 7, True, "no answer in time", "run again", tuple(f"doc-{n}" for n in range(5)), "30 s"
)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What would be sent to Prefect, by key: text, rows or address."""
    found: dict[str, Any] = {}

    def table(rows: Any, *, key: str, description: str) -> None:
        found[key] = (rows, description)

    def markdown(text: str, *, key: str, description: str) -> None:
        found[key] = (text, description)

    def link(address: str, *, link_text: str, key: str, description: str) -> None:
        found[key] = ((address, link_text), description)

    monkeypatch.setattr(artifacts, "create_table_artifact", table)
    monkeypatch.setattr(artifacts, "create_markdown_artifact", markdown)
    monkeypatch.setattr(artifacts, "create_link_artifact", link)
    return found


def line(number: int, group: int = 0, state: str = "committed", **changes: Any) -> BatchLine:
    made = BatchLine(group, f"{number:032x}", 1, state, 10, 10, 0, 0, "0.5", f"/in/part-{number}.parquet", "")
    return replace(made, **changes)


def failing(folder: Path, manifest: Make, batches: int = 6, groups: int = 3, failed: int = 1) -> Settled:
    """A run whose first batches failed because a vendor was down."""
    error = "the vendor is down: " + "no answer " * 60
    per = -(-batches // groups)
    lines = [
        line(n, n // per, "failed", rows=0, results=0, amount="0", uri="", error=error)
        if n < failed
        else line(n, n // per)
        for n in range(batches)
    ]
    reports = [BatchReport(x.batch_id, 1, "failed", error) for x in lines[:failed]]
    outcomes = [
        GroupOutcome(
            g,
            tuple(x for x in lines if x.group == g),
            tuple(r for r, x in zip(reports, lines, strict=False) if x.group == g),
            WorkerEnd(0),
        )
        for g in range(groups)
    ]
    made = manifest(
        state="incomplete",
        reason="1 batch was not finished: the vendor is down. Run again to do what is missing",
        reason_class="batches",
        failures=17,
        failure_groups=(*manifest().failure_groups, TIMEOUT),
    )
    folder.mkdir(exist_ok=True)
    return Settled(
        made, outcomes, reports, str(folder), repair="/deployments/deployment/1/run?parameters=%7B%7D"
    )


def test_a_failed_run_shows_its_page_its_tables_and_the_way_to_its_repair(
    tmp_path: Path, manifest: Make, sent: dict[str, Any]
) -> None:
    settled = failing(tmp_path, manifest)
    publish_artifacts(settled)

    assert set(sent) == {
        "enrich-batches",
        "enrich-groups",
        "enrich-cost",
        "enrich-failures",
        "enrich-summary",
        "enrich-repair",
    }
    assert sent["enrich-repair"][0] == (settled.repair, "Repair this run")
    rows, description = sent["enrich-batches"]
    assert [row["state"] for row in rows] == ["failed"] + ["committed"] * 5
    run = settled.manifest.run_id
    assert description == (
        f"Run {run}: 6 batches, the worst first. All of them: {tmp_path}/runs/{run}/batches.parquet"
    )
    assert [row["group"] for row in sent["enrich-groups"][0]] == ["group-0000", "group-0001", "group-0002"]
    assert {row["reason"]: row["for example"] for row in sent["enrich-failures"][0]} == {
        "policy_rejected": "d1",
        "timeout": "doc-0, doc-1, doc-2, doc-3, doc-4",
    }
    assert sent["enrich-cost"][0][-1]["budget"] == "$1.25 of $5.00 (25 %)"


def test_ten_thousand_batches_make_tables_that_a_page_can_show_at_once(
    tmp_path: Path, manifest: Make, sent: dict[str, Any]
) -> None:
    settled = failing(tmp_path, manifest, batches=10_000, groups=200, failed=500)
    started = time.process_time()
    publish_artifacts(settled)
    spent = time.process_time() - started

    sizes = {key: len(json.dumps(value)) for key, (value, _) in sent.items()}
    assert max(sizes.values()) < 160_000, sizes
    assert sizes["enrich-summary"] < 12_000
    assert spent < 2.0
    assert len(sent["enrich-batches"][0]) == MAX_ROWS
    assert {row["state"] for row in sent["enrich-batches"][0]} == {"failed"}
    assert "the worst 200 of 10,000 batches." in sent["enrich-batches"][1]
    assert len(sent["enrich-groups"][0]) == 200
    assert "10 of 200." in sent["enrich-summary"][0]
    everything = pq.read_table(tmp_path / "runs" / settled.manifest.run_id / "batches.parquet")
    assert everything.num_rows == 10_000
    assert everything.column("state").to_pylist().count("failed") == 500


def test_a_run_to_which_nothing_was_due_has_no_table_and_no_file_of_batches(
    tmp_path: Path, manifest: Make, sent: dict[str, Any]
) -> None:
    publish_artifacts(Settled(manifest(), [], [], str(tmp_path)))

    assert set(sent) == {"enrich-cost", "enrich-failures", "enrich-summary"}
    assert "every batch" not in sent["enrich-summary"][0]
    assert list(tmp_path.rglob("*.parquet")) == []


def test_the_page_says_first_what_to_do_and_leads_to_the_form(tmp_path: Path, manifest: Make) -> None:
    settled = failing(tmp_path, manifest)
    groups = [
        {
            "group": "group-0000",
            "state": "not through",
            "batches": 2,
            "not committed": 1,
            "retryable": 0,
            "cost": "$0.5",
            "in a sentence": "1 of 2 batches failed",
        }
    ]
    page = summary_markdown(
        settled.manifest, Shown(groups, [], [], "/out", settled.repair, "/out/all.parquet")
    )

    parts = page.split("\n\n")
    assert parts[:3] == [
        "# Run incomplete",
        "Run `20261122T091500Z-1f3a9c` of workload `package_docs`.",
        plain("Incomplete: " + settled.manifest.reason),
    ]
    assert "press *Retry*" in parts[3]
    assert f"({settled.repair})" in parts[3]
    assert "| group-0000 | 1 | 0 | 1 of 2 batches failed |" in page
    assert "- every batch: `/out/all.parquet`" in page


def test_a_run_at_its_cap_asks_for_a_higher_one_and_for_no_retry(manifest: Make) -> None:
    spent = manifest(state="incomplete", reason="the budget was used up", reason_class="budget")
    page = summary_markdown(spent, Shown([], [], [], "/out", "/repair"))

    assert "have the cap raised, in [**the repair form, filled in for this run**](/repair)" in page
    assert "press *Retry*" not in page
    assert "have the cap raised, in the workload" in summary_markdown(spent, Shown([], [], [], "/out"))


def test_a_complete_run_asks_for_nothing(manifest: Make) -> None:
    page = summary_markdown(manifest(), Shown([], [], [], "/out", "/repair"))

    assert "What to do" not in page
    assert "/repair" not in page


def test_texts_from_data_cannot_become_markdown() -> None:
    hostile = "[click](javascript:alert(1)) | <img src=x> `code` **bold**"
    table = markdown_table([{"id": hostile, "n": 1200}], ["id", "n"])

    assert table.splitlines() == [
        "| id | n |",
        "|---|---:|",
        r"| \[click\]\(javascript:alert\(1\)\) \| \<img src=x\> \`code\` \*\*bold\*\* | 1,200 |",
    ]


def test_an_output_in_a_bucket_is_linked_and_a_folder_is_not() -> None:
    from flows.links import output_url

    assert output_url("/data/out") is None
    assert output_url("gs://answers/a b/") == (
        "https://console.cloud.google.com/storage/browser/answers/a%20b/"
    )


def test_a_form_is_filled_in_by_its_address() -> None:
    from flows.links import flow_run_url, form_url, ui_base

    address = form_url("42", {"parameters": {"run": "a&b", "batches": []}}, ui_base({}))

    assert address == (
        "/v2/deployments/deployment/42/run?parameters="
        "%7B%22parameters%22%3A%7B%22run%22%3A%22a%26b%22%2C%22batches%22%3A%5B%5D%7D%7D"
    )
    base = ui_base({"PREFECT_UI_URL": "https://prefect.example/"})
    assert flow_run_url("7", base) == "https://prefect.example/runs/flow-run/7"


def test_the_batch_file_holds_exactly_what_became_of_each_batch(tmp_path: Path) -> None:
    lines = [
        line(2, 3, amount=None),
        line(3, 3, failures=2, retryable=1),
        line(4, 5, "failed", rows=0, results=0, amount="0", uri="", error="reset"),
    ]
    failed = [
        BatchReport(f"{1:032x}", 1, "failed", "no disk"),
        BatchReport(f"{4:032x}", 1, "failed", "reset"),
    ]
    path = write_batch_file(worst_first(lines, failed), str(tmp_path), "r1")

    assert path == f"{tmp_path}/runs/r1/batches.parquet"
    table = pq.read_table(io.BytesIO(Path(path).read_bytes()))
    assert table.schema.equals(BATCHES_SCHEMA)
    columns = ("batch_id", "group", "state", "failures", "retryable", "amount", "source_uri", "error")
    assert [tuple(str(row[c]) for c in columns) for row in table.to_pylist()] == [
        (f"{1:032x}", "None", "failed", "0", "0", "None", "None", "no disk"),
        (f"{4:032x}", "5", "failed", "0", "0", "None", "None", "reset"),
        (f"{3:032x}", "3", "committed", "2", "1", "0.500000000000", "/in/part-3.parquet", "None"),
        (f"{2:032x}", "3", "committed", "0", "0", "None", "/in/part-2.parquet", "None"),
    ]
