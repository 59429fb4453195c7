"""Identical requests of a run, in whatever batches of rows and of the provider: paid once, shared by all."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from flows.outputs import read_status
from tests.peers.batch_emulator import prompt_of
from tests.support import documents
from tests.support.drive import drive
from tests.transforms.batchmode.conftest import FULL, Job
from tests.transforms.batchmode.crashes import step
from tests.transforms.batchmode.rewinding import finish_all, finished_later, killed_at_each_step
from transforms.batchmode import driving
from transforms.batchmode.packing import Bounds, pack
from transforms.batchmode.standing import reserved
from transforms.store import LocalStore

pytestmark = pytest.mark.parametrize("provider", ["gemini"], indirect=True)  # they have no part in it
SIX = Counter(f"d{n}" for n in range(6))


@pytest.fixture
def job(job: Job) -> Job:
    """Rows in batches of two, which ask a, b | a, c | b, c."""
    write(job.folder / "in/a.parquet", dict(zip(SIX, "abacbc", strict=True)))
    return job


def write(path: Path, texts: dict[str, str]) -> None:
    documents.write(path, documents.rows(list(texts), text=list(texts.values())), row_group=2)


def prompts(job: Job) -> list[list[str]]:
    """What each provider batch asks."""
    return [sorted(prompt_of(body) for body in batch.requests.values()) for batch in job.batches]


def by_document(job: Job) -> dict[str, str | None]:
    """Whose answer each row has; None for its own."""
    origins = {row["document_id"]: row["lineage"]["shared_from"] for row in job.rows("results")}
    return {name: origin and origin["document_id"] for name, origin in origins.items()}


def test_each_row_says_whose_answer_it_shares_and_pays_nothing(job: Job) -> None:
    job.run()
    assert prompts(job) == [["a", "b", "c"]]
    job.emulator.finish(job.batches[0])
    done = job.run()
    assert (done.state, job.accounted()) == ("complete", SIX)
    assert job.emulator.bill == {"a": 1, "b": 1, "c": 1}
    assert {row["document_id"]: row["answer"] for row in job.rows("results")} == {
        name: f"answer to {text}" for name, text in zip(SIX, "abacbc", strict=True)
    }
    texts = dict(zip(SIX, "abacbc", strict=True))
    shared = by_document(job)
    assert all(leader is None or texts[leader] == texts[name] for name, leader in shared.items())
    assert sorted(texts[name] for name, leader in shared.items() if leader is None) == ["a", "b", "c"]
    amounts = sorted(row["cost"]["amount"] for row in job.rows("results"))
    assert amounts == [0, 0, 0, *[FULL[job.provider] / 2] * 3]


def test_only_what_is_sent_is_set_aside(job: Job) -> None:
    job.run()
    need = reserved(LocalStore(str(job.output)))["ask"]
    assert need.amount == Decimal(read_status(str(job.output)).provider_batches[0].reserved)
    job.configure(limits={"share_identical": False}, output={"uri": "each"})
    job.run()
    assert prompts(job)[1] == list("aabbcc")
    assert reserved(LocalStore(str(job.output / "../each")))["ask"].amount == 2 * need.amount


def test_where_the_first_one_failed_all_are_due_again_and_one_of_them_goes(job: Job) -> None:
    job.run()
    job.emulator.finish(job.batches[0], lambda prompt: "expired" if prompt == "a" else "succeeded")
    job.run()
    assert prompts(job) == [["a", "b", "c"], ["a"]]
    job.emulator.finish(job.batches[1], lambda prompt: "errored")
    done = job.run()
    assert (done.state, job.accounted()) == ("complete", SIX)
    assert job.emulator.bill == {"a": 1, "b": 1, "c": 1}
    assert job.emulator.online == {"a": 1}, "and online they share one answer, too"


def test_rows_that_come_later_share_the_answer_that_is_still_on_its_way(job: Job) -> None:
    job.run()
    write(job.folder / "in/b.parquet", {"d6": "a", "d7": "e"})
    job.run()
    assert prompts(job) == [["a", "b", "c"], ["e"]]
    job.emulator.finish(job.batches[1])
    job.run()
    assert by_document(job) == {}, "the second batch waits for the first, whose answer it shares"
    job.emulator.finish(job.batches[0])
    done = job.run()
    assert (done.state, done.results) == ("complete", 8)
    assert job.emulator.bill == {"a": 1, "b": 1, "c": 1, "e": 1}
    assert by_document(job)["d6"] in ("d0", "d2")


def test_rows_that_come_later_and_ask_only_what_is_on_its_way_make_no_batch(job: Job) -> None:
    job.run()
    write(job.folder / "in/b.parquet", {"d6": "a", "d7": "c"})
    job.run()
    assert prompts(job) == [["a", "b", "c"]]
    assert not list((job.output / "provider_batches/bodies").iterdir()), "their texts are not needed"
    job.emulator.finish(job.batches[0])
    done = job.run()
    assert (done.state, done.results) == ("complete", 8)
    assert job.emulator.bill == {"a": 1, "b": 1, "c": 1}


def test_rows_that_come_when_the_answer_is_there_take_it_at_once(job: Job) -> None:
    job.run()
    job.emulator.finish(job.batches[0])
    job.run()
    write(job.folder / "in/b.parquet", {"d6": "a", "d7": "c"})
    done = job.run()
    assert (done.state, done.results, len(job.batches)) == ("complete", 8, 1)
    assert job.emulator.bill == {"a": 1, "b": 1, "c": 1}


def test_identical_requests_in_several_provider_batches_are_sent_with_the_first(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = {"gemini": Bounds(2, 1 << 20)}
    monkeypatch.setattr(driving, "pack", lambda *args, **rest: pack(*args, bounds, **rest))
    job.run()
    assert len(job.batches) == 2
    assert sorted(text for batch in prompts(job) for text in batch) == ["a", "b", "c"]
    for batch in reversed(job.batches):
        job.emulator.finish(batch)
        job.run()
    done = job.run()
    assert (done.state, job.accounted()) == ("complete", SIX)
    assert job.emulator.bill == {"a": 1, "b": 1, "c": 1}


def test_a_batch_given_up_leaves_those_that_share_its_answers_to_be_asked(job: Job) -> None:
    job.run()
    ahead = timedelta(hours=49)
    drive(job.workload, beam=False, collect=step("collect", ahead=ahead), submit=step("submit", ahead=ahead))
    done = drive(
        job.workload, beam=False, collect=step("collect", ahead=ahead), submit=step("submit", ahead=ahead)
    )
    assert len(done.ambiguous) == 3, "those that were sent, and none that shared"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["submit", "collect"])
def test_a_process_killed_at_any_step_pays_identical_requests_once(job: Job, name: str) -> None:
    if name == "submit":
        drive(job.workload, beam=False, collect=step("collect"), submit=lambda *_: None)
    else:
        job.run()
        finish_all(job)
    died: list[str] = []
    for where in killed_at_each_step(job, name):
        died.append(where)
        done = finished_later(job)
        assert (done.state, job.accounted()) == ("complete", SIX), where
        assert (len(job.batches), job.emulator.bill) == (1, {"a": 1, "b": 1, "c": 1}), where
        assert job.cost() == 3 * FULL[job.provider] / 2, where
    assert "create intended.json" in died or "ledger write" in died
