"""Every control call of every provider, with every fault: nothing is lost, sent twice, or taken for an end.

The driver's steps alone, without Beam: an output is set back between the cells of the matrix.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest

from schemas.load import load_workload
from schemas.run import RunContext
from tests.support import documents
from tests.support.drive import drive
from tests.transforms.batchmode.conftest import CANARY, FULL, Job
from tests.transforms.batchmode.crashes import KEYS, step
from tests.transforms.batchmode.rewinding import Rewound

pytestmark = pytest.mark.slow
FOUR = Counter(f"d{n}" for n in range(4))
TEXTS = Counter(f"text d{n}" for n in range(4))
FAULTS: tuple[int | str, ...] = (401, 403, 404, 429, 500, 503, "drop", "half", "empty", "html")
SETTLED = timedelta(minutes=20)
PAST_DEADLINE = timedelta(hours=25)


@pytest.fixture
def job(job: Job) -> Job:
    """Two batches of two rows."""
    documents.write(job.folder / "in/a.parquet", documents.rows(FOUR, text=list(TEXTS)), row_group=2)
    return job


def act(job: Job, name: str, ahead: timedelta = timedelta()) -> list[str]:
    """The step `collect` or `submit` alone."""
    loaded = load_workload(job.workload)
    run = RunContext("r", loaded.output_uri, loaded.workload.digest(), False, 8)
    said = step(name, ahead=ahead)(loaded.workload, run)
    assert not any(secret in sentence for secret in (CANARY, *KEYS.values()) for sentence in said)
    return said


def faulty(job: Job, kind: str, fault: int | str, name: str, ahead: timedelta = timedelta()) -> list[str]:
    """A step during which one kind of control call goes wrong."""
    job.emulator.faults[kind] = fault
    try:
        return act(job, name, ahead)
    finally:
        job.emulator.faults.clear()


def collect_all(job: Job, ahead: timedelta = SETTLED) -> None:
    """Collect until nothing is open; a batch that ends meanwhile is finished by its provider."""
    for _ in range(4):
        for batch in job.batches:
            if not batch.ends:
                job.emulator.finish(batch)
        act(job, "collect", ahead)


def assert_paid_once(job: Job, where: str) -> None:
    """One batch, and each answer in a ledger once."""
    assert len(job.batches) == 1, where
    assert job.emulator.bill == TEXTS, where
    assert Counter(call.end for call in job.calls()) == {"answered": 4}, where
    assert sum(call.charge.amount or 0 for call in job.calls()) == 2 * FULL[job.provider], where
    assert job.records()["ended"] == 1, where


def test_a_fault_while_submitting_makes_one_batch_in_the_end(job: Job) -> None:
    drive(job.workload, beam=False, submit=lambda *_: None)
    rewound = Rewound(job)
    for kind in ("upload", "create"):
        if kind == "upload" and job.provider == "anthropic":
            continue  # it takes no files
        for fault in FAULTS:
            where = f"{kind}: {fault}"
            rewound.rewind()
            (sentence,) = faulty(job, kind, fault, "submit")
            made = kind == "create" and not isinstance(fault, int)
            assert len(job.batches) == made, where
            assert job.records().get("submitted", 0) <= made, f"{where}: {sentence}"
            collect_all(job)
            assert_paid_once(job, where)


def test_a_list_that_can_not_be_had_is_no_reason_to_send_again(job: Job) -> None:
    drive(job.workload, beam=False, submit=lambda *_: None)
    rewound = Rewound(job)
    for fault in FAULTS:
        rewound.rewind()
        job.emulator.faults["create"] = "drop"
        faulty(job, "list", fault, "submit")
        faulty(job, "list", fault, "collect", SETTLED)
        assert len(job.batches) == 1, fault
        assert "submitted" not in job.records(), fault
        collect_all(job)
        assert_paid_once(job, f"list: {fault}")


def test_a_fault_while_polling_or_reading_results_changes_nothing(job: Job) -> None:
    job.run()
    job.emulator.finish(job.batches[0])
    rewound = Rewound(job)
    before = job.records()
    for kind in ("poll", "results"):
        for fault in (*FAULTS, *(["cut"] if kind == "results" else [])):
            where = f"{kind}: {fault}"
            rewound.rewind()
            (sentence,) = faulty(job, kind, fault, "collect")
            assert job.records() == before, f"{where}: {sentence}"
            assert not job.calls(), where
            act(job, "collect")
            assert_paid_once(job, where)


def test_a_fault_while_cancelling_is_made_good_by_asking_again(job: Job) -> None:
    job.run()
    rewound = Rewound(job)
    for fault in FAULTS:
        rewound.rewind()
        job.batches[0].cancel_asked = False
        faulty(job, "cancel", fault, "collect", PAST_DEADLINE)
        if isinstance(fault, int):
            assert "cancelled" not in job.records(), fault
        act(job, "collect", PAST_DEADLINE)
        assert job.batches[0].cancel_asked, fault
        assert job.records()["cancelled"] == 1, fault


def test_a_key_that_is_revoked_while_a_batch_waits_loses_nothing(job: Job) -> None:
    job.run()
    job.emulator.finish(job.batches[0])
    job.emulator.faults.update({"poll": 401, "results": 401, "list": 401, "create": 401})
    for _ in range(2):
        waiting = job.run()
        assert (waiting.state, waiting.reason_class) == ("incomplete", "provider_batches")
    job.emulator.faults.clear()
    done = job.run()
    assert (done.state, job.accounted()) == ("complete", FOUR)
    assert_paid_once(job, "revoked")
