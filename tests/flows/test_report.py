"""What people read about a run."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console, Group
from rich.text import Text

from flows.report import console, cost_sentence, end_sentence, report, unknown_ends
from flows.report_html import report_html
from flows.summary import Shown, summary_markdown
from flows.tables import spend_rows
from schemas.batches import AmbiguousCall, BackendTotals
from schemas.run import DeviceUse, FailedBatch, FailureGroup, Manifest

Make = Callable[..., Manifest]


def printed(manifest: Manifest, **options: bool) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200, highlight=False).print(report(manifest, "/out", **options))
    return stream.getvalue()


def test_the_report_has_rows_by_route_failures_by_reason_and_cost_by_backend(manifest: Make) -> None:
    text = printed(manifest())

    assert re.search(r"summary +390 +10", text)
    assert re.search(r"policy_rejected +10 +no +see the rule", text)
    assert re.search(r"summary +claude +400 +400 .*\$1\.25", text)
    assert re.search(r"vectors +minilm +800 .* unknown +unknown +device_seconds", text)
    assert "/out" in text


def test_an_unknown_price_is_named_beside_the_sum(manifest: Make) -> None:
    assert "$1.25, and 800 documents of unknown price; budget $5.00" in cost_sentence(manifest())


def test_without_a_budget_none_is_mentioned(manifest: Make) -> None:
    assert "budget" not in cost_sentence(manifest(budget_amount=None))


def test_calls_of_unknown_end_are_listed_with_the_most_they_may_have_cost(
    manifest: Make, ambiguous: AmbiguousCall
) -> None:
    text = printed(manifest(ambiguous=(ambiguous,) * 30))

    assert "30 calls of unknown end may have cost up to $0.06 more" in text
    assert "20 of 30 shown" in text
    assert text.count("crash") == 20


def test_calls_of_unknown_end_that_are_not_listed_count_too(manifest: Make, ambiguous: AmbiguousCall) -> None:
    totals = {"ask": {"mini": BackendTotals(ambiguous=1500, ambiguous_amount="3.00")}}
    made = manifest(ambiguous=(ambiguous,) * 30, totals=totals)

    assert "1,500 calls of unknown end may have cost up to $3.00 more" in cost_sentence(made)
    assert "20 of 1,500 shown" in printed(made)
    assert "Calls of unknown end, 30 of 1,500<" in report_html(made, "/out")
    assert "Calls of unknown end: 1,500." in summary_markdown(
        made, Shown([], [], spend_rows(made, []), "/out")
    )


def test_a_call_without_a_price_makes_the_worst_unknown(manifest: Make, ambiguous: AmbiguousCall) -> None:
    made = manifest(ambiguous=(ambiguous, replace(ambiguous, worst_amount=None)))

    assert unknown_ends(made) == (2, "an unknown amount")


def test_what_the_devices_did_is_a_table_and_late_compilation_a_sentence(manifest: Make) -> None:
    use = DeviceUse(10, 90, 100, 2, 6.0, 2.0, 1.5, 3, 1)
    text = printed(manifest(devices={"vec": use}))
    assert "Devices, in this run" in text
    assert "10.0%" in text  # padding
    assert "25.0%" in text  # idle
    assert "steady state" not in text
    text = printed(manifest(devices={"vec": replace(use, steady_programs=2)}))
    assert "Programs were compiled in steady state (2 for vec)" in text


def test_a_rehearsal_says_so_in_head_cost_and_end(manifest: Make) -> None:
    text = printed(manifest(rehearsal=True, amount="0", list_amount="1.25"))

    assert "(rehearsal: hosted models were answered by a stand-in)" in text
    assert "at list price it would have been $1.25" in text
    assert "Rehearsal: Complete" in text


def test_a_real_run_does_not_speak_of_rehearsal(manifest: Make) -> None:
    assert "rehears" not in printed(manifest()).lower()


def test_an_incomplete_run_ends_with_its_reason(manifest: Make) -> None:
    made = manifest(
        state="incomplete", reason="3 documents can be tried again. Run again", reason_class="failures"
    )

    assert end_sentence(made) == "Incomplete: 3 documents can be tried again. Run again"


def test_a_run_with_nothing_due_says_that_no_call_was_made(manifest: Make) -> None:
    text = end_sentence(manifest(), nothing_due=True)

    assert text.startswith("Nothing was due: no call was made and no result was rewritten. Complete: 1,190")


@pytest.mark.parametrize("hostile", ["[bold]x[/bold]", "[/]", "[link=http://a]b[/link]"])
def test_texts_from_data_are_never_markup_on_the_terminal(hostile: str, manifest: Make) -> None:
    group = FailureGroup(hostile, 1, False, "m", hostile, (hostile,), hostile)

    assert hostile in printed(manifest(failure_groups=(group,), skipped_files=(hostile,)))


class Tags(HTMLParser):
    """Notes every tag and attribute of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.addresses += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "action")]


def test_the_page_needs_nothing_from_anywhere(manifest: Make) -> None:
    tags = Tags(report_html(manifest(), "/out"))

    assert not tags.seen & {"script", "link", "img", "iframe", "object", "form", "a"}
    assert tags.addresses == []


def test_texts_from_data_stay_texts_on_the_page(
    manifest: Make, ambiguous: AmbiguousCall, failed_batch: FailedBatch
) -> None:
    hostile = "<script>alert(1)</script>{{ 7*7 }}"
    group = FailureGroup("refused", 1, False, hostile, hostile, (hostile,), hostile)
    page = report_html(
        manifest(
            failure_groups=(group,),
            failed_batches=(replace(failed_batch, error=hostile, uri=hostile),),
            ambiguous=(ambiguous,),
            skipped_files=(hostile,),
            state="incomplete",
            reason=hostile,
        ),
        hostile,
    )

    assert "script" not in Tags(page).seen
    assert "49" not in page
    assert page.count("&lt;script&gt;") >= 7


def test_the_page_names_some_batches_that_were_not_finished_and_says_where_all_are(
    manifest: Make, failed_batch: FailedBatch
) -> None:
    file = "runs/r1/failed_batches.parquet"
    page = report_html(
        manifest(failed_batches=(failed_batch,), failed_batches_count=1_000_000, failed_batches_file=file),
        "/out",
    )

    assert f"Batches that were not finished, the first 1 of 1,000,000; all of them: {file}" in page


def test_the_page_shows_what_the_terminal_shows(manifest: Make, failed_batch: FailedBatch) -> None:
    page = report_html(manifest(rehearsal=True, failed_batches=(failed_batch,)), "/out/here")

    for text in ("Rehearsal", "1,190", "policy_rejected", "claude", "unknown", "/out/here", "pages can"):
        assert text in page


def test_amounts_stand_under_each_other_on_the_page_and_words_do_not(manifest: Make) -> None:
    page = report_html(manifest(), "/out")

    assert '<th class="number">cost</th>' in page
    assert '<td class="number">$1.25</td>' in page
    assert "<th>backend</th>" in page
    assert "<td>claude</td>" in page


def test_where_there_is_no_terminal_a_sentence_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "word " * 100

    console().print(Group(Text(sentence)))

    assert capsys.readouterr().out == f"{sentence}\n"
