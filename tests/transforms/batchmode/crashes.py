"""The driver's steps with a countdown: the process dies at the n-th thing that could matter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from google.oauth2.credentials import Credentials

from schemas.run import RunContext
from schemas.workload import Workload
from tests.support.stepping import MUTATIONS, CrashError, SteppedStore
from transforms.batchmode.clients import BatchClient, Finding, Request, Standing
from transforms.batchmode.driving import ProviderBatches, open_client, served_backends, served_places
from transforms.batchmode.results import ResultLine
from transforms.call.ledger_file import LocalDisk, LocalLedgers
from transforms.call.site import Site, build_sites
from transforms.price import PriceBook

T = TypeVar("T")
KEYS = {"OPENAI_API_KEY": "k-1", "ANTHROPIC_API_KEY": "k-1", "GEMINI_API_KEY": "k-1"}


@dataclass
class Countdown:
    """Dies at step number `at` (from 0); without one it only counts. `steps` are those that were begun."""

    at: int | None = None
    steps: list[str] = field(default_factory=list)
    dead: bool = False

    def __call__(self, step: str) -> None:
        if self.dead:
            raise CrashError("a dead process does nothing")
        self.steps.append(step)
        if self.at is not None and len(self.steps) > self.at:
            self.dead = True
            raise CrashError(step)


@dataclass
class LaterClock:
    """The machine's clock, ahead by so much."""

    ahead: timedelta = timedelta()

    def monotonic(self) -> float:
        return self.now().timestamp()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(f"nothing here waits ({seconds} s)")


class _Disk(LocalDisk):
    def __init__(self, countdown: Countdown) -> None:
        self._countdown = countdown

    def write(self, fd: int, data: bytes) -> int:
        """Dies before it, or in the middle of the frame."""
        self._countdown("ledger write")
        written = super().write(fd, data[: len(data) // 2])
        self._countdown("torn ledger write")
        return written + super().write(fd, data[written:])


class _Client:
    """A provider's client whose process may die just before and just after each call."""

    def __init__(self, inner: BatchClient, countdown: Countdown) -> None:
        self._inner = inner
        self._countdown = countdown

    def _call(self, name: str, act: Callable[[], T]) -> T:
        self._countdown(f"before {name}")
        done = act()
        self._countdown(f"after {name}")
        return done

    def submit(self, tag: str, requests: Iterable[Request]) -> str:
        return self._call("submit", lambda: self._inner.submit(tag, requests))

    def find(self, tag: str, requests: int, since: datetime, known: Collection[str]) -> Finding:
        return self._call("find", lambda: self._inner.find(tag, requests, since, known))

    def standing(self, batch_id: str) -> Standing:
        return self._call("standing", lambda: self._inner.standing(batch_id))

    def results(self, batch_id: str) -> Iterator[ResultLine]:
        for line in self._inner.results(batch_id):
            self._countdown("result line")
            yield line

    def cancel(self, batch_id: str) -> None:
        self._call("cancel", lambda: self._inner.cancel(batch_id))

    def close(self) -> None:
        self._inner.close()


def batches_of(
    workload: Workload, run: RunContext, countdown: Countdown | None = None, clock: Any = None
) -> ProviderBatches:
    """The provider batches of an output as a run opens them, with a countdown and a clock of one's own.

    Vertex's bucket `gs://NAME` is the folder NAME beside the output.
    """
    clock, countdown = clock or LaterClock(), countdown or Countdown()
    places = served_places(workload, KEYS)
    sites = build_sites(served_backends(workload), places, clock, PriceBook(), rehearsal=False)

    def gate(operation: str, path: str) -> None:
        if operation in MUTATIONS:
            countdown(f"{operation} {path.rsplit('/', 1)[-1]}")

    def bucket(uri: str) -> SteppedStore:
        return SteppedStore(str(Path(run.output).parent / uri.removeprefix("gs://")), gate)

    def client(site: Site) -> _Client:
        token = Credentials(token="ya29.none")  # type: ignore[no-untyped-call]
        inner = open_client(site, places, credentials=lambda: token, open_bucket=bucket)
        return _Client(inner, countdown)

    return ProviderBatches(
        SteppedStore(run.output, gate),
        LocalLedgers(run.output, disk=_Disk(countdown), sync_every_s=0.001),
        sites,
        workload.limits.batch_deadline_h,
        clock,
        client,
    )


def step(
    name: str, countdown: Countdown | None = None, ahead: timedelta = timedelta()
) -> Callable[[Workload, RunContext], list[str]]:
    """The step `collect` or `submit` of a run, for `drive`."""

    def act(workload: Workload, run: RunContext) -> list[str]:
        with closing(batches_of(workload, run, countdown, LaterClock(ahead))) as batches:
            said: list[str] = getattr(batches, name)()
            return said

    return act
