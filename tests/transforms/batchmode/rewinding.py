"""One job, from the same state each time: its process dies at each step in turn, and others finish it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta

from schemas.run import Manifest
from tests.support.drive import drive
from tests.support.stepping import CrashError
from tests.transforms.batchmode.conftest import Job
from tests.transforms.batchmode.crashes import Countdown, step

_MOST_STEPS = 100


class Rewound:
    """A job whose output, bucket and provider can be set back to where they stand now."""

    def __init__(self, job: Job) -> None:
        self._emulator = job.emulator
        self._kept = job.folder / "kept"
        self._folders = [job.output, job.emulator.objects]
        for folder in self._folders:
            folder.mkdir(exist_ok=True)
            shutil.copytree(folder, self._kept / folder.name)
        self._batches = list(job.emulator.batches)
        self._bill = job.emulator.bill.copy()

    def rewind(self) -> None:
        for folder in self._folders:
            shutil.rmtree(folder)
            shutil.copytree(self._kept / folder.name, folder)
        self._emulator.batches[:] = self._batches
        self._emulator.bill.clear()
        self._emulator.bill.update(self._bill)


def killed_at_each_step(job: Job, name: str) -> Iterator[str]:
    """Where a run died in its driver's step `name`, each time one thing later; nothing has followed yet."""
    rewound = Rewound(job)
    for at in range(_MOST_STEPS):
        rewound.rewind()
        countdown = _crash(job, name, at)
        if countdown is None:
            return
        yield countdown.steps[-1]
    raise AssertionError(f"{name} has more than {_MOST_STEPS} steps")


def _crash(job: Job, name: str, at: int) -> Countdown | None:
    """A run that dies at step `at` of its driver's step `name`; None when that has fewer steps."""
    countdown = Countdown(at)
    other = "submit" if name == "collect" else "collect"
    steps = {name: step(name, countdown), other: step(other)}
    try:
        drive(job.workload, beam=False, **steps)
    except CrashError:
        return countdown
    assert countdown.steps, "there was nothing to do"
    return None


def run_later(job: Job) -> Manifest:
    """A clean run, when what a provider may still be making has had the time to show up."""
    ahead = timedelta(minutes=20)
    return drive(
        job.workload, beam=False, collect=step("collect", ahead=ahead), submit=step("submit", ahead=ahead)
    )


def finish_all(job: Job) -> None:
    """The provider finishes what it has."""
    for batch in job.batches:
        if not batch.ends:
            job.emulator.finish(batch)


def finished_later(job: Job) -> Manifest:
    """What clean runs and the provider make of it in the end."""
    run_later(job)
    finish_all(job)
    run_later(job)
    return run_later(job)
