"""Decisions about a submission, in a time and with a provider of the test's own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from schemas.backends import HostedBackend
from schemas.failures import FailureClass
from tests.transforms.batchmode.requests import held
from transforms.batchmode.clients import BatchLostError, BatchRefusedError, Finding, Request, Standing
from transforms.batchmode.jobs import JobState, job_path, read_jobs
from transforms.batchmode.packing import pack
from transforms.batchmode.results import ResultLine
from transforms.batchmode.sending import SETTLE_S, Sender, Sent
from transforms.batchmode.tickets import Waiting, write_tickets
from transforms.store import LocalStore

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@dataclass
class FakeProvider:
    """Does to submissions what `script` says, and finds by listing what `findings` say."""

    script: list[Exception | str] = field(default_factory=list)
    findings: list[Finding | Exception] = field(default_factory=list)
    sent: list[list[Request]] = field(default_factory=list)
    looked: list[tuple[str, int, datetime, set[str]]] = field(default_factory=list)

    def submit(self, tag: str, requests: Iterable[Request]) -> str:
        self.sent.append(list(requests))
        reply = self.script.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def find(self, tag: str, requests: int, since: datetime, known: Collection[str]) -> Finding:
        self.looked.append((tag, requests, since, set(known)))
        reply = self.findings.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def standing(self, batch_id: str) -> Standing:
        raise AssertionError("not asked for here")

    def results(self, batch_id: str) -> Iterator[ResultLine]:
        raise AssertionError("not asked for here")

    def cancel(self, batch_id: str) -> None:
        raise AssertionError("not asked for here")

    def close(self) -> None:
        raise AssertionError("not closed here")


class Bench:
    def __init__(self, folder: Path) -> None:
        self.store = LocalStore(str(folder))
        tickets = write_tickets(
            self.store, "b1", 1, [Waiting(held(n), NOON.isoformat()) for n in (1, 2)]
        ) + write_tickets(self.store, "b2", 1, [Waiting(held(3), NOON.isoformat())])
        backends = {"mini": HostedBackend(provider="openai", model="m", mode="batch")}
        (self.job,) = pack(tickets, set(), backends, NOON)
        self.store.create(job_path(self.job.tag, "intended"), self.job.to_json())
        self.provider = FakeProvider()

    def proceed(self, seconds: float = 0, *, late: bool = False, known: Collection[str] = ()) -> Sent:
        """A run, so many seconds after noon."""
        (state,) = read_jobs(self.store)
        sender = Sender(self.store, NOON + timedelta(seconds=seconds))
        return sender.proceed(state, self.provider, known, late=late)

    def state(self) -> JobState:
        (state,) = read_jobs(self.store)
        return state


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def lost() -> BatchLostError:
    return BatchLostError("no answer")


def refused(*, lasting: bool) -> BatchRefusedError:
    return BatchRefusedError(FailureClass.RATE_LIMITED, "no", lasting=lasting)


def test_a_job_goes_out_with_all_its_requests_under_its_custom_ids(bench: Bench) -> None:
    bench.provider.script = ["batch_1"]
    assert bench.proceed().word == "submitted"
    expected = [Request(bench.job.custom_id(n), held(n + 1).body) for n in range(3)]
    assert sorted(bench.provider.sent[0], key=lambda r: r.custom_id) == expected
    assert bench.state().provider_batch_id == "batch_1"
    assert not bench.provider.looked, "what was never sent is not looked for"


def test_a_lost_response_is_looked_for_at_once_and_adopted(bench: Bench) -> None:
    bench.provider.script, bench.provider.findings = [lost()], [Finding("batch_7")]
    assert bench.proceed(known={"batch_1"}).word == "submitted"
    assert bench.provider.looked == [(bench.job.tag, 3, NOON, {"batch_1"})]
    assert bench.state().provider_batch_id == "batch_7"


def test_nothing_is_sent_again_before_the_provider_had_time_to_show_the_batch(bench: Bench) -> None:
    bench.provider.script, bench.provider.findings = [lost()], [Finding()]
    assert bench.proceed().word == "later"
    bench.provider.findings = [Finding()]
    assert bench.proceed(SETTLE_S - 1).word == "later"
    bench.provider.findings = [Finding("batch_1")]
    assert bench.proceed(SETTLE_S + 1).word == "submitted"
    assert len(bench.provider.sent) == 1


def test_a_submission_that_made_no_batch_is_repeated_after_that_time(bench: Bench) -> None:
    bench.provider.script, bench.provider.findings = [lost(), "batch_2"], [Finding(), Finding()]
    bench.proceed()
    assert bench.proceed(SETTLE_S).word == "submitted"
    assert [len(sent) for sent in bench.provider.sent] == [3, 3]
    assert bench.provider.sent[0] == bench.provider.sent[1], "the same ids, so that either is found"
    assert bench.state().sent_at.keys() == {1, 2}


def test_while_a_batch_may_be_ours_nothing_is_sent_however_long_it_takes(bench: Bench) -> None:
    bench.provider.script = [lost()]
    for hours in (0, 1, 20):
        bench.provider.findings = [Finding(undecided=True)]
        assert bench.proceed(hours * 3600).word == "later"
    assert len(bench.provider.sent) == 1


def test_a_listing_that_fails_decides_nothing(bench: Bench) -> None:
    bench.provider.script, bench.provider.findings = [lost()], [lost()]
    assert bench.proceed().word == "later"
    bench.provider.findings = [lost()]
    with pytest.raises(BatchLostError):
        bench.proceed(10 * SETTLE_S)
    assert len(bench.provider.sent) == 1


def test_a_definite_refusal_is_sent_again_by_the_next_run_without_looking(bench: Bench) -> None:
    bench.provider.script = [refused(lasting=False), "batch_1"]
    assert bench.proceed().word == "later"
    assert not bench.state().undecided
    assert bench.proceed(1).word == "submitted"
    assert not bench.provider.looked


def test_an_earlier_lost_response_is_still_looked_for_after_a_later_one(bench: Bench) -> None:
    bench.provider.script = [lost(), lost()]
    bench.provider.findings = [Finding(), Finding(), Finding()]
    bench.proceed()
    bench.proceed(SETTLE_S)
    bench.provider.findings = [Finding("batch_1", more=("batch_2",))]
    said = bench.proceed(SETTLE_S + 5)
    assert bench.provider.looked[-1][2] == NOON, "from the first attempt on"
    assert said.word == "submitted"
    assert "batch_2" in said.sentence, "a second batch is named"


def test_a_lost_response_is_looked_for_even_after_a_later_attempt_was_refused(bench: Bench) -> None:
    bench.provider.script = [lost(), refused(lasting=False)]
    bench.provider.findings = [Finding(), Finding(), Finding("batch_1")]
    bench.proceed()
    assert bench.proceed(SETTLE_S).word == "later"
    assert bench.proceed(SETTLE_S + 1).word == "submitted"
    assert len(bench.provider.sent) == 2


def test_a_refusal_that_lasts_ends_the_job(bench: Bench) -> None:
    bench.provider.script = [refused(lasting=True)]
    assert bench.proceed().word == "refused"


def test_nothing_new_is_submitted_after_the_deadline(bench: Bench) -> None:
    assert bench.proceed(late=True).word == "refused"
    assert not bench.provider.sent


def test_what_may_have_been_submitted_is_looked_for_after_the_deadline_too(bench: Bench) -> None:
    bench.provider.script, bench.provider.findings = [lost()], [Finding(), Finding("batch_1")]
    bench.proceed()
    assert bench.proceed(SETTLE_S * 100, late=True).word == "submitted"


def test_requests_whose_texts_are_gone_are_not_sent(bench: Bench) -> None:
    for path in list(bench.store.list("provider_batches/bodies")):
        bench.store.delete(path)
    assert bench.proceed().word == "refused"
    assert not bench.provider.sent
    assert not bench.state().sent_at
