"""Whole runs against emulated providers: what an operator sees, pays and gets."""

from __future__ import annotations

import json
import os
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from flows.outputs import read_status
from flows.waiting import waiting_rows
from schemas.load import load_workload
from schemas.run import RunContext
from tests.peers.batch_emulator import ID_FIELDS, prompt_of
from tests.transforms.batchmode.conftest import CANARY, FULL, Job
from tests.transforms.batchmode.crashes import step
from transforms.verify import verify_output

SIX = Counter(f"d{n}" for n in range(6))
TEXTS = Counter(f"text d{n}" for n in range(6))


def test_a_run_submits_one_ends_and_a_later_run_collects_every_row_once_at_half_the_price(job: Job) -> None:
    job.beam = True
    first = job.run()
    assert (first.state, first.reason_class, first.results) == ("incomplete", "provider_batches", 0)
    assert {row["error_class"] for row in job.rows("failures")} == {"awaiting_batch"}
    assert job.accounted() == SIX
    assert [len(batch.requests) for batch in job.batches] == [6], "two batches of rows went out together"

    waiting = job.run()
    assert (waiting.reason_class, waiting.batches_committed_by_this_run) == ("provider_batches", 0)

    job.emulator.finish(job.batches[0])
    done = job.run()
    assert (done.state, done.results, done.failures) == ("complete", 6, 0)
    assert job.accounted() == SIX
    assert job.emulator.bill == TEXTS
    assert not job.emulator.online, "nothing was asked online"
    assert {row["answer"] for row in job.rows("results")} == {f"answer to {text}" for text in TEXTS}
    half = FULL[job.provider] / 2
    assert {row["cost"]["amount"] for row in job.rows("results")} == {half}
    assert Decimal(done.amount) == 6 * half == job.cost()
    totals = done.totals["ask"]["mini"]
    assert (totals.documents, totals.calls, totals.ambiguous) == (6, 6, 0), "waiting is no work"

    again = job.run()
    assert (again.state, again.calls_by_this_run) == ("complete", 0)
    assert (len(job.batches), job.emulator.bill) == (1, TEXTS)


def test_a_lost_response_to_the_submission_makes_no_second_batch(job: Job) -> None:
    job.emulator.lose_creates = 1
    job.run()
    assert len(job.batches) == 1
    job.emulator.finish(job.batches[0])
    job.run()  # a batch of anthropic can be told to be ours only now
    job.run()
    done = job.run()
    assert done.state == "complete"
    assert len(job.batches) == 1, "one batch, and it was found"
    assert job.emulator.bill == TEXTS
    assert job.accounted() == SIX


def test_a_submission_that_may_still_show_up_is_not_repeated(job: Job) -> None:
    job.emulator.lose_creates, job.emulator.hide_new = 1, 3
    for _ in range(3):
        assert job.run().reason_class == "provider_batches"
    assert len(job.batches) == 1
    job.emulator.finish(job.batches[0])
    for _ in range(3):
        done = job.run()
    assert (done.state, len(job.batches), job.emulator.bill) == ("complete", 1, TEXTS)


def test_a_refused_submission_is_tried_again_by_the_next_run(job: Job) -> None:
    job.emulator.refuse_creates = [(429, "rate_limit_error", "slow down")]
    first = job.run()
    assert (len(job.batches), first.reason_class) == (0, "provider_batches")
    assert read_status(str(job.output)).provider_batches[0].state == "refused"
    job.run()
    assert len(job.batches) == 1
    job.emulator.finish(job.batches[0])
    assert job.run().state == "complete"


def test_what_a_batch_left_undone_goes_out_again_and_then_online(job: Job) -> None:
    job.beam = True
    ends = {"text d0": "expired", "text d1": "errored", "text d2": "cancelled"}
    job.run()
    job.emulator.finish(job.batches[0], lambda prompt: ends.get(prompt, "succeeded"))
    second = job.run()
    assert (second.results, second.failures, second.reason_class) == (3, 3, "provider_batches")
    assert sorted(job.batches[1].requests.values(), key=str) == sorted(
        (body for body in job.batches[0].requests.values() if prompt_of(body) in ends),
        key=str,
    ), "just those, and the same"
    job.emulator.finish(job.batches[1], lambda prompt: "errored" if prompt == "text d1" else "succeeded")
    done = job.run()
    assert (done.state, done.results, job.accounted()) == ("complete", 6, SIX)
    assert job.emulator.bill == TEXTS, "each was paid once"
    assert job.emulator.online == Counter({"text d1": 1}), "after two batches it goes out online"
    amounts = {row["document_id"]: row["cost"]["amount"] for row in job.rows("results")}
    assert amounts["d1"] == FULL[job.provider], "at full price"
    assert amounts["d0"] == FULL[job.provider] / 2


def test_a_request_that_is_refused_for_good_is_a_final_failure_and_not_asked_again(job: Job) -> None:
    job.run()
    job.emulator.finish(job.batches[0], lambda prompt: "invalid" if prompt == "text d0" else "succeeded")
    done = job.run()
    assert (done.state, done.results, done.failures) == ("complete", 5, 1)
    failure = job.rows("failures")[0]
    assert (failure["document_id"], failure["error_class"]) == ("d0", "bad_request")
    assert (failure["cost"]["calls"], failure["cost"]["amount"]) == (1, 0)
    assert len(job.batches) == 1
    assert not job.emulator.online


@pytest.mark.parametrize("end", ["missing", "missing_billed"])
def test_a_missing_line_counts_as_a_call_of_unknown_end_and_its_row_goes_back(job: Job, end: str) -> None:
    job.run()
    job.emulator.finish(job.batches[0], lambda prompt: end if prompt == "text d0" else "succeeded")
    job.run()
    assert len(job.batches[1].requests) == 1
    job.emulator.finish(job.batches[1])
    done = job.run()
    assert (done.state, done.results, job.accounted()) == ("complete", 6, SIX)
    assert [(call.cause, call.row) for call in done.ambiguous] == [("malformed", 0)]
    row = next(row for row in job.rows("results") if row["document_id"] == "d0")
    assert (row["cost"]["calls"], row["cost"]["ambiguous_calls"]) == (2, 1)
    assert row["cost"]["ambiguous_amount"] > 0
    assert job.emulator.bill["text d0"] <= 1 + row["cost"]["ambiguous_calls"]


def test_lines_of_strangers_and_repeated_lines_change_nothing(job: Job) -> None:
    job.run()
    batch = job.batches[0]
    known = next(iter(batch.requests))
    probe = type(batch)("x", job.provider, dict(batch.requests), batch.created_at)
    job.emulator.text = lambda prompt: f"another answer to {prompt}"
    job.emulator.finish(probe)
    field = ID_FIELDS[job.provider]
    lines = {line[field]: line for line in probe.lines}
    tag = known.rpartition("-")[0]
    ids = (known, "stranger-0", f"{tag}-6", f"{tag}-00", f"{tag}--1", "", 7)
    extra = tuple({**lines[known], field: custom_id} for custom_id in ids)
    job.emulator.bill.clear()
    job.emulator.text = lambda prompt: f"answer to {prompt}"
    job.emulator.finish(batch, extra=extra, backwards=False)
    done = job.run()
    assert (done.state, job.accounted(), job.emulator.bill) == ("complete", SIX, TEXTS)
    assert {row["answer"] for row in job.rows("results")} == {f"answer to {text}" for text in TEXTS}
    ended = json.loads(next((job.output / "provider_batches/jobs").glob("*/ended.json")).read_text())
    assert (ended["strangers"], ended["repeated"]) == (6, 1), "and they were counted"


def test_statuses_that_nobody_knows_are_waited_out(job: Job) -> None:
    job.run()
    job.batches[0].status = "being_thought_about"
    assert job.run().reason_class == "provider_batches"
    job.emulator.finish(job.batches[0])
    assert job.run().state == "complete"


def test_an_unreachable_provider_leaves_everything_as_it_is(job: Job) -> None:
    job.run()
    job.emulator.finish(job.batches[0])
    job.emulator.lose_polls = 1
    assert job.run().reason_class == "provider_batches"
    assert job.run().state == "complete"
    assert job.emulator.bill == TEXTS


def test_what_was_not_submitted_before_its_deadline_goes_online_at_full_price(job: Job) -> None:
    job.configure(limits={"batch_deadline_h": 1e-7})
    job.run()
    done = job.run()
    assert (done.state, len(job.batches)) == ("complete", 0)
    assert job.emulator.online == TEXTS
    assert job.cost() == 6 * FULL[job.provider]
    assert job.accounted() == SIX


def test_a_batch_past_its_deadline_is_cancelled_collected_and_the_rest_goes_online(job: Job) -> None:
    job.run()
    job.configure(limits={"batch_deadline_h": 1e-7})
    assert job.run().reason_class == "provider_batches"
    assert job.batches[0].cancel_asked
    assert not job.emulator.online, "nothing is asked again while the batch may still answer"
    some = ("text d0", "text d4")
    status = {"openai": "cancelled", "gemini": "BATCH_STATE_CANCELLED"}.get(job.provider)
    job.emulator.finish(job.batches[0], lambda p: "succeeded" if p in some else "cancelled", status)
    done = job.run()
    assert (done.state, job.accounted(), job.emulator.bill) == ("complete", SIX, TEXTS)
    assert set(job.emulator.online) == set(TEXTS) - set(some)
    assert job.cost() == 5 * FULL[job.provider], "two at half the price, four at the full one"


def test_other_routes_deliver_while_a_provider_batch_is_open(job: Job) -> None:
    online = {"provider": job.provider, "model": "x-1", "base_url": job.emulator.base_url(job.provider)}
    price = {"input_per_million": "1", "output_per_million": "1"}
    slow = {"provider": job.provider, "model": "x-2", "base_url": job.emulator.base_url(job.provider)}
    job.configure(
        backends={"mini": {**slow, "mode": "batch", "price": price}, "fast": {**online, "price": price}},
        routes=[
            {"name": "now", "when": "kind = 'a'", "backends": ["fast"], "prompt": "topic"},
            {"name": "later", "backends": ["mini"], "prompt": "topic"},
        ],
    )
    first = job.run()
    assert first.results_by_route == {"now": 3}
    assert (first.failures_by_route, first.reason_class) == ({"later": 3}, "provider_batches")
    job.emulator.finish(job.batches[0])
    done = job.run()
    assert (done.state, done.results_by_route) == ("complete", {"now": 3, "later": 3})
    assert job.emulator.bill == TEXTS
    by_route = {row["lineage"]["route"]: row["cost"] for row in job.rows("results")}
    assert by_route["now"]["amount"] == Decimal("0.00012")
    assert by_route["later"]["amount"] == Decimal("0.00006"), "half of the workload's own price"
    assert by_route["later"]["certainty"] == "estimated"


def test_identical_documents_of_a_run_go_out_once_and_share_the_answer(job: Job) -> None:
    job.configure(prompts__topic={"template": "{{ kind }}"})
    job.run()
    prompts = Counter(prompt_of(body) for body in job.batches[0].requests.values())
    assert prompts == {"a": 1, "b": 1}, "of two batches of rows, each with two different prompts"
    job.emulator.finish(job.batches[0])
    done = job.run()
    assert (done.state, done.results, job.accounted()) == ("complete", 6, SIX)
    assert job.emulator.bill == {"a": 1, "b": 1}
    assert job.cost() == 2 * FULL[job.provider] / 2
    shared = {row["document_id"]: row["lineage"]["shared_from"] for row in job.rows("results")}
    named = {name: origin and origin["document_id"] for name, origin in shared.items()}
    leaders = {name for name, origin in named.items() if origin is None}
    assert {int(name[1]) % 2 for name in leaders} == {0, 1}
    assert len(leaders) == 2
    for name, leader in named.items():  # even ones ask `a`, odd ones `b`
        assert name in leaders or (leader in leaders and int(leader[1]) % 2 == int(name[1]) % 2)


def test_a_backend_taken_out_of_batch_mode_still_gets_its_answers_from_the_open_batch(job: Job) -> None:
    job.run()
    job.configure(backend={"mode": "online"})
    assert job.run().reason_class == "provider_batches"
    job.emulator.finish(job.batches[0], lambda p: "expired" if p == "text d3" else "succeeded")
    done = job.run()
    assert (done.state, job.emulator.bill) == ("complete", TEXTS)
    assert job.emulator.online == Counter({"text d3": 1})


def test_open_batches_hold_their_worst_case_in_the_budget_until_they_are_settled(job: Job) -> None:
    job.run()
    status = read_status(str(job.output))
    held = Decimal(status.provider_batches[0].reserved)
    assert held > 6 * FULL[job.provider]
    job.configure(budget={"amount": str(held)})
    job.run()
    record = json.loads((job.output / "budget/record.json").read_text())
    assert Decimal(record["spent"]) == held
    job.emulator.finish(job.batches[0])
    assert job.run().state == "complete"
    record = json.loads((job.output / "budget/record.json").read_text())
    assert Decimal(record["spent"]) == 3 * FULL[job.provider] == job.cost()


def test_nothing_is_put_into_a_batch_that_the_cap_does_not_allow(job: Job) -> None:
    job.run()
    one = Decimal(read_status(str(job.output)).provider_batches[0].reserved) / 6
    other = job.folder / "second"
    other.mkdir()
    job.configure(budget={"amount": str(one * Decimal("3.5"))}, output={"uri": "second"})
    first = job.run()
    assert first.reason_class == "budget"
    counts = {group.error_class: group.count for group in first.failure_groups}
    assert counts == {"awaiting_batch": 3, "budget_exhausted": 3}
    assert len(job.batches[1].requests) == 3


def test_a_rehearsal_answers_online_at_the_batch_price_and_submits_nothing(job: Job) -> None:
    done = job.run(rehearsal=True)
    assert (done.state, done.results, done.amount) == ("complete", 6, "0.000000000000")
    assert not job.emulator.seen
    job.configure(backend={"mode": "online"}, output={"uri": "online"})
    full = job.run(rehearsal=True)
    assert Decimal(done.list_amount) * 2 == Decimal(full.list_amount) > 0


def test_answers_that_were_collected_and_not_delivered_yet_are_proven_too(job: Job) -> None:
    job.run()
    assert verify_output(str(job.output)).state == "proven", "waiting is nothing that does not add up"
    job.emulator.finish(job.batches[0])
    loaded = load_workload(job.workload)
    step("collect")(loaded.workload, RunContext("r", loaded.output_uri, loaded.workload.digest(), False, 8))
    collected = verify_output(str(job.output))
    assert (collected.state, collected.undelivered.answered) == ("incomplete", 6), collected.findings
    assert collected.undelivered.amount == 3 * FULL[job.provider]
    job.run()
    assert verify_output(str(job.output)).state == "proven"


def test_the_sum_of_the_rows_is_what_the_ledgers_hold(job: Job) -> None:
    ends = {"text d0": "expired", "text d1": "missing", "text d2": "invalid", "text d3": "odd"}
    job.run()
    job.emulator.finish(job.batches[0], lambda prompt: ends.get(prompt, "succeeded"))
    job.run()
    job.emulator.finish(job.batches[1])
    done = job.run()
    assert done.state == "complete"
    calls = job.calls()
    answered = [call for call in calls if call.end == "answered"]
    assert sum(call.charge.amount or 0 for call in answered) == job.cost() == Decimal(done.amount)
    unknown = [call for call in calls if call.end == "unknown"]
    rows = job.rows("results") + job.rows("failures")
    assert sum(row["cost"]["ambiguous_amount"] for row in rows) == sum(call.worst or 0 for call in unknown)
    assert sum(row["cost"]["calls"] for row in rows) == len(calls)
    assert all(call.end is not None for call in calls)


def test_the_status_shows_what_is_open_and_nothing_when_all_is_collected(job: Job) -> None:
    job.run()
    status = read_status(str(job.output))
    (batch,) = status.provider_batches
    assert (batch.state, batch.requests, batch.backend) == ("submitted", 6, "mini")
    assert batch.provider_batch_id == job.batches[0].id
    (row,) = waiting_rows(status.provider_batches, job.emulator.now())
    assert (row["requests"], row["state"], row["provider batch"]) == (6, "submitted", job.batches[0].id)
    assert str(row["set aside"]).startswith("$")
    assert json.loads(json.dumps(status.to_dict()))["provider_batches"][0]["requests"] == 6
    job.emulator.finish(job.batches[0])
    job.run()
    assert read_status(str(job.output)).provider_batches == ()


def test_texts_of_requests_lie_in_the_output_only_until_they_are_submitted(job: Job) -> None:
    job.emulator.refuse_creates = [(429, "rate_limit_error", "slow down")]
    job.run()
    bodies = job.output / "provider_batches/bodies"
    assert b"text d0" in b"".join(path.read_bytes() for path in bodies.iterdir())
    job.run()
    assert not list(bodies.iterdir())


def test_the_key_is_in_no_file_of_the_output(job: Job) -> None:
    job.emulator.text = lambda prompt: f"your key is {CANARY}"
    job.emulator.refuse_creates = [(401, "authentication_error", f"bad key {CANARY}")]
    said = [job.run().reason, job.run().reason]
    job.emulator.finish(job.batches[0])
    said.append(job.run().reason)
    assert any(CANARY in key for key in job.emulator.keys), "it was sent where it belongs"
    found = [path for path in _files(job.output) if CANARY.encode() in path.read_bytes()]
    assert not found
    assert CANARY not in "".join(said)


def _files(folder: Path) -> list[Path]:
    return [Path(root, name) for root, _, names in os.walk(folder) for name in names]
