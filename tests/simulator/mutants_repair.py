"""Defects of second questions, and of what a run says of itself when it is settled."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from tests.simulator.planting import defect, swap
from transforms import settle, tally
from transforms.call import document
from transforms.call.question import Question
from transforms.call.repair import after_repair, repair_request
from transforms.call.tally import Answered, Tally

PAID_ONCE = "an answered row is never sent again"
TWICE = "a row is paid for twice at most"
SUMS = "the cost column adds up"
TOLD = "the manifest says what is there"


@defect("repair", PAID_ONCE, TWICE)
def a_second_question_is_asked_again_after_a_crash(replaced: ExitStack) -> None:
    swap(replaced, document, "replay_repair", lambda question, site: None)


@defect("repair", TWICE)
def an_answer_that_does_not_fit_is_sent_back_again_and_again(replaced: ExitStack) -> None:
    async def finish(question: Question, first: Answered) -> Any:
        for _ in range(3):
            request = repair_request(replace(question.request, rejected=None), first.answer)
            if request is None:
                break
            question.request = request
            recorded = document.replay_repair(question, first.site)
            first = after_repair(first, recorded or await document._ask(question, first.site))
        return question.tally.answered(first)

    swap(replaced, document, "_finish", finish)


@defect("repair", SUMS)
def a_first_answer_that_did_not_fit_costs_nothing(replaced: ExitStack) -> None:
    def add(self: Tally, usage: Any, charge: Any) -> None:
        self.charge = Tally(self.request).charge
        before(self, usage, charge)

    before = swap(replaced, Tally, "add_answer", add)


@defect("settle", TOLD)
def a_run_is_complete_although_documents_can_be_tried_again(replaced: ExitStack) -> None:
    swap(replaced, settle, "_reason", lambda *_: ("", ""))


@defect("settle", TOLD)
def a_manifest_counts_failures_that_were_replaced(replaced: ExitStack) -> None:
    swap(replaced, tally, "_newest", lambda table, index: table)


@defect("settle", TOLD)
def a_manifest_names_the_newest_attempts_ambiguous_calls_alone(replaced: ExitStack) -> None:
    def add_up(index: Any, run: Any) -> tally.Sums:
        sums = before(index, run)
        newest = dict(zip(index.committed, index.committed.attempts, strict=True))
        sums.ambiguous = [call for call in sums.ambiguous if call.attempt == newest[call.batch_id]]
        return sums

    before = swap(replaced, settle, "add_up", add_up)
