"""An operator at night: starts a run, sees what failed and why, presses Retry. Real clicks, real bills."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pyarrow.dataset as ds
import pytest
from playwright.sync_api import expect

from tests.browser.chromium import Ui
from tests.peers.mock_vendor import MockVendor
from tests.support import documents, workloads
from tests.support.serving import Served, wait_for

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(480)]

DOCUMENT = r"doc-\d+-\d+"
GROUPS, ROWS = 3, 5
DOWN = (1, 2)
ONE_GROUP = {"batch_rows": ROWS, "groups": 1, "max_calls": 1}
SCHEDULED = {"type": {"any_": ["SCHEDULED"]}}
ANSWER = {"topic": "data", "score": 1}


class Tickets:
    """A workload over the mock vendor: three files, each a batch and a group of its own."""

    def __init__(self, served: Served, vendor: MockVendor, name: str, **changes: Any) -> None:
        self.folder = served.folder / name
        self.name, self.vendor = name, vendor
        self.folder.mkdir()
        for file in range(GROUPS):
            ids = [f"doc-{file}-{n}" for n in range(ROWS)]
            table = documents.rows(ids, text=[f"Ticket {i} is about a printer" for i in ids])
            documents.write(self.folder / "in" / f"part-{file}.parquet", table)
        backend = {**workloads.HOSTED, "base_url": vendor.base_url("openai"), "requires_key": False}
        limits = {"batch_rows": ROWS, "groups": GROUPS, "parallel_groups": 2, "max_calls": 1}
        workloads.write_workload(
            self.folder,
            **{
                "name": "tickets",
                "backends__mini": backend,
                "prompts__topic": {"template": "{{ text }}", "json_schema": workloads.TOPIC_SCHEMA},
                "limits": limits,
                **changes,
            },
        )

    def ids(self, *files: int) -> set[str]:
        return {f"doc-{file}-{n}" for file in files for n in range(ROWS)}

    def results(self) -> Counter[str]:
        """How often each document is in `results/`."""
        folder = self.folder / "out" / "results"
        found: Counter[str] = Counter()
        if folder.exists():
            found.update(ds.dataset(folder).to_table(columns=["document_id"])["document_id"].to_pylist())
        return found

    def up(self) -> None:
        self.vendor.answer(ANSWER)

    def down(self, *files: int) -> None:
        """The vendor is down for the documents of some files."""
        failing = [self.vendor.failure(500, message="out of order", contains=f"doc-{n}-") for n in files]
        self.vendor.rules([*failing, self.vendor.rule(ANSWER)])


def failed_run(served: Served, vendor: MockVendor, name: str) -> tuple[Tickets, str]:
    """A run in one group that failed for two of its files, and whose vendor is well again."""
    tickets = Tickets(served, vendor, name, limits=ONE_GROUP)
    tickets.down(*DOWN)
    run_id = served.submit("enrich/enrich", workload=f"{name}/w.toml")
    assert served.ended(run_id)["type"] == "FAILED"
    tickets.up()
    return tickets, run_id


@pytest.fixture(scope="module", autouse=True)
def nightly(served: Served) -> str:
    """The deployment, with a schedule from the first test on: the last one sees the runs that it got."""
    deployment = served.api("GET", "/deployments/name/enrich/enrich")["id"]
    cron = {"schedule": {"cron": "30 2 * * *", "timezone": "UTC"}, "active": True}
    served.api("POST", f"/deployments/{deployment}/schedules", [cron])
    return str(deployment)


def answered(vendor: MockVendor) -> Counter[str]:
    """How often the vendor has answered, and billed, each document."""
    return vendor.answered(DOCUMENT)


def test_a_run_that_failed_in_two_groups_is_read_and_retried(
    served: Served, ui: Ui, mock_vendor: MockVendor
) -> None:
    tickets = Tickets(served, mock_vendor, "retried")
    tickets.down(*DOWN)

    ui.open_form("enrich")
    ui.fill("Workload", "retried/w.toml")
    ui.picture("form", whole=True)
    run_id = ui.submit()
    ui.wait_for_state("Failed")
    ui.picture("failed-run")

    ui.tab("Task Runs")
    groups = ui.page.get_by_role("tabpanel")
    expect(groups.get_by_role("link", name=re.compile("group-000[0-2]"))).to_have_count(GROUPS)
    groups.get_by_role("link", name="group-0001").click()
    expect(ui.page.get_by_role("main")).to_contain_text("5 of 5 documents have no answer (provider_error")
    ui.picture("failed-group")
    ui.open_run(run_id)

    good = [file for file in range(GROUPS) if file not in DOWN]
    assert tickets.results() == Counter(tickets.ids(*good))
    assert answered(mock_vendor) == Counter(tickets.ids(*good))
    ui.open_artifact("enrich-summary")
    page = ui.page.get_by_role("main")
    expect(page.get_by_role("heading", name="Run incomplete")).to_be_visible()
    expect(page).to_contain_text("10 documents can be tried again")
    expect(page).to_contain_text("press Retry")
    ui.picture("summary", whole=True)

    tickets.up()
    ui.open_run(run_id)
    ui.menu("Retry")
    ui.picture("retry")
    ui.confirm("Retry")
    ui.wait_for_state("Completed")
    ui.picture("completed-run")

    assert tickets.results() == Counter(tickets.ids(*range(GROUPS)))
    assert answered(mock_vendor) == Counter(tickets.ids(*range(GROUPS))), "nothing was paid twice"
    assert served.state(run_id)["type"] == "COMPLETED"
    prompts = [re.search(DOCUMENT, str(entry["body"])) for entry in mock_vendor.journal()]
    assert Counter(found.group(0) for found in prompts if found) == Counter(
        [*tickets.ids(*range(GROUPS)), *tickets.ids(*DOWN)]
    ), "a document whose group had failed was asked for twice, the others once"


def test_a_form_with_mistakes_says_what_is_wrong_beside_the_field_and_starts_nothing(
    served: Served, ui: Ui
) -> None:
    before = served.api("POST", "/flow_runs/count", {})
    ui.open_form("enrich")
    assert "'workload' is a required property" in ui.refused()
    expect(ui.told_of("Workload")).to_contain_text("'workload' is a required property")

    ui.fill("Workload", "nowhere/w.toml")
    ui.fill("Groups", "501", "int")
    ui.page.get_by_role("button", name="Submit").click()  # the browser itself says that 500 is the most
    assert ui.complaint_of("Groups") == "Value must be less than or equal to 500."
    ui.picture("refused-form", whole=True)

    assert served.api("POST", "/flow_runs/count", {}) == before


def test_two_people_who_press_retry_at_once_pay_for_nothing_twice(
    served: Served, ui: Ui, mock_vendor: MockVendor
) -> None:
    tickets, run_id = failed_run(served, mock_vendor, "pressed-twice")

    with ui.beside() as other:
        for each in (ui, other):
            each.open_run(run_id)
            each.wait_for_state("Failed")
            each.menu("Retry")
        ui.confirm("Retry")
        other.confirm("Retry")
        wait_for(lambda: tickets.results() == Counter(tickets.ids(*range(GROUPS))), "no retry ever completed")

    # The second press finds the first still waiting, and both are one; or its run finds the output at work.
    state = served.ended(run_id)
    assert state["type"] == "COMPLETED" or state["name"] == "OutputBusy", state
    assert answered(mock_vendor) == Counter(tickets.ids(*range(GROUPS))), "nothing was paid twice"


def test_the_repair_form_is_filled_in_for_the_failed_run_and_does_what_is_left(
    served: Served, ui: Ui, mock_vendor: MockVendor
) -> None:
    tickets, failed = failed_run(served, mock_vendor, "repaired")

    ui.open_run(failed)
    ui.open_artifact("enrich-summary")
    ui.page.get_by_role("link", name="the repair form, filled in for this run").click()
    ui.wait_for_form()
    assert ui.value("Output") == str(tickets.folder / "out")
    assert re.fullmatch(r"\d{8}T\d+Z-[0-9a-f]+", ui.value("Run"))
    ui.picture("repair-form", whole=True)
    repaired = ui.submit()
    ui.wait_for_state("Completed")

    assert repaired != failed
    assert answered(mock_vendor) == Counter(tickets.ids(*range(GROUPS))), "nothing was paid twice"
    assert tickets.results() == Counter(tickets.ids(*range(GROUPS)))


def test_a_run_over_its_limit_waits_for_a_person_and_goes_on_where_it_stood(
    served: Served, ui: Ui, mock_vendor: MockVendor
) -> None:
    tickets = Tickets(served, mock_vendor, "reviewed", review={"quote_above": "0.01"}, limits=ONE_GROUP)
    tickets.up()
    run_id = served.submit("enrich/enrich", workload="reviewed/w.toml")
    ui.open_run(run_id)
    ui.wait_for_state("Suspended")
    ui.picture("suspended-run")
    assert mock_vendor.journal() == [], "nothing is sent before somebody has said so"

    ui.menu("Resume")
    ui.wait_for_form()
    ui.choose("Decision", "approve")
    ui.fill("Your name", "Ada, on call")
    ui.fill("Reason", "the quote is what we expected")
    ui.picture("review-form", height=1300)
    ui.confirm("Resume")
    ui.wait_for_state("Completed")

    assert answered(mock_vendor) == Counter(tickets.ids(*range(GROUPS)))
    (manifest,) = (tickets.folder / "out" / "runs").glob("*/manifest.json")
    (approval,) = json.loads(manifest.read_text())["approvals"]
    assert (approval["by"], approval["reason"]) == ("Ada, on call", "the quote is what we expected")


def test_cancel_stops_sending_and_a_retry_pays_for_nothing_twice(
    served: Served, ui: Ui, mock_vendor: MockVendor
) -> None:
    tickets = Tickets(served, mock_vendor, "cancelled", limits={**ONE_GROUP, "max_in_flight": 2})
    mock_vendor.rules([mock_vendor.rule(ANSWER, latency_ms=[1500, 1500])])
    run_id = served.submit("enrich/enrich", workload="cancelled/w.toml")
    ui.open_run(run_id)
    wait_for(lambda: len(answered(mock_vendor)) >= 2, "nothing was ever sent")

    ui.menu("Cancel")
    ui.picture("cancel")
    ui.confirm("Cancel Flow Run")
    ui.wait_for_state("Cancelled")
    sent = len(mock_vendor.journal())
    ui.picture("cancelled-run")

    assert sent < GROUPS * ROWS
    assert tickets.results() <= answered(mock_vendor)
    tickets.up()
    ui.menu("Retry")
    ui.confirm("Retry")
    ui.wait_for_state("Completed")
    assert len(mock_vendor.journal()) == GROUPS * ROWS, "nothing was sent between cancel and retry, or twice"
    assert answered(mock_vendor) == Counter(tickets.ids(*range(GROUPS)))
    assert tickets.results() == Counter(tickets.ids(*range(GROUPS)))


def test_a_deployment_with_a_cron_schedule_gets_its_runs(served: Served, ui: Ui, nightly: str) -> None:
    scheduled = {"deployments": {"id": {"any_": [nightly]}}, "flow_runs": {"state": SCHEDULED}}
    wait_for(lambda: served.api("POST", "/flow_runs/filter", scheduled), "no run was ever scheduled")
    ui.open(f"/v2/deployments/deployment/{nightly}?tab=Upcoming")
    expect(ui.page.get_by_role("main")).to_contain_text("2:30:00 AM")
    ui.picture("schedule")
