"""Jobs: one batch at a provider each, as records that are created once and never changed.

::

    provider_batches/jobs/<tag>/intended.json        what goes out together, before anything is sent
    provider_batches/jobs/<tag>/sending-0001.json    an attempt at submission is about to begin
    provider_batches/jobs/<tag>/refused-0001.json    ... and the provider definitely made no batch of it
    provider_batches/jobs/<tag>/submitted.json       the provider's id of the batch
    provider_batches/jobs/<tag>/cancelled.json       cancellation was asked for: the deadline has passed
    provider_batches/jobs/<tag>/ended.json           every request has its end in a ledger

An attempt at submission without `refused` or `submitted` has an unknown end: the provider may have made
a batch of it. The tag is random, part of every custom id, and found again by listing.
"""

from __future__ import annotations

import json
import secrets
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any

from schemas.errors import StoreError
from schemas.ids import canonical_json
from schemas.outcomes import money
from transforms.batchmode.tickets import FOLDER
from transforms.store import Store

JOB_VERSION = "job/1"
JOBS = f"{FOLDER}/jobs"


@dataclass(frozen=True, slots=True)
class TicketRange:
    """A ticket of a job; its requests have the custom ids `<tag>-<first>` and following."""

    batch_id: str
    number: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """A request of a job that is not sent: it asks what the one at `position` of another ticket asks."""

    index: int
    batch_id: str
    number: int
    position: int


@dataclass(frozen=True)
class Job:
    """What goes out together: the most that it can cost, and since when its oldest request waits.

    `size` and `worst` are of the requests that are sent: all `requests` but the `repeats`.
    """

    tag: str
    backend: str
    model: str
    created_at: str
    since: str
    requests: int
    size: int
    worst: str
    tickets: tuple[TicketRange, ...]
    repeats: tuple[Repeat, ...] = ()

    @cached_property
    def repeated(self) -> dict[int, Repeat]:
        """The requests that are not sent, by their number."""
        return {repeat.index: repeat for repeat in self.repeats}

    def not_sent(self) -> Iterator[tuple[str, int, int]]:
        """Batch, ticket and position of each request that is not sent."""
        for part in self.tickets:
            for index in range(part.first, part.first + part.count):
                if index in self.repeated:
                    yield part.batch_id, part.number, index - part.first

    @property
    def sent(self) -> int:
        """How many requests go to the provider."""
        return self.requests - len(self.repeats)

    def custom_id(self, index: int) -> str:
        """The custom id of the request number `index` (from 0)."""
        return f"{self.tag}-{index}"

    def index_of(self, custom_id: Any) -> int | None:
        """The number of the request with this custom id; None for an id that is not of this job."""
        tag, _, number = custom_id.rpartition("-") if isinstance(custom_id, str) else ("", "", "")
        if tag != self.tag or not number.isdecimal() or number != str(int(number)):
            return None
        index = int(number)
        return index if index < self.requests and index not in self.repeated else None

    @property
    def reserved(self) -> Decimal:
        """The most that the job can cost."""
        return money(self.worst)

    def to_json(self) -> bytes:
        """Canonical JSON bytes."""
        values = asdict(replace(self, repeats=()))  # of which there may be many: without their names
        values["repeats"] = [[r.index, r.batch_id, r.number, r.position] for r in self.repeats]
        return canonical_json({"version": JOB_VERSION, **values})

    @classmethod
    def from_json(cls, data: bytes) -> Job:
        """The job behind bytes; StoreError for another version."""
        values: dict[str, Any] = json.loads(data)
        if values.pop("version", None) != JOB_VERSION:
            raise StoreError("the record of a provider batch is another version's: use the one that wrote it")
        values["tickets"] = tuple(TicketRange(**part) for part in values["tickets"])
        values["repeats"] = tuple(Repeat(*part) for part in values["repeats"])
        return cls(**values)


def new_tag() -> str:
    """A tag that no other job has, of characters that every provider takes in a custom id."""
    return f"switchgear-{secrets.token_hex(12)}"


@dataclass(slots=True)
class JobState:
    """A job and where it stands by its records. `sent_at` and `refused` are by number of the attempt."""

    job: Job
    sent_at: dict[int, str] = field(default_factory=dict)
    refused: dict[int, dict[str, Any]] = field(default_factory=dict)
    provider_batch_id: str | None = None
    submitted_at: str | None = None
    cancelled_at: str | None = None
    ended: bool = False

    @property
    def last_attempt(self) -> int:
        """Number of the last attempt at submission; 0 when there was none."""
        return max(self.sent_at, default=0)

    @property
    def undecided(self) -> list[str]:
        """When the attempts began of which nobody knows whether the provider has made a batch."""
        if self.provider_batch_id is not None:
            return []
        return sorted(at for number, at in self.sent_at.items() if number not in self.refused)

    def deadline(self, hours: float) -> datetime:
        """When what is left goes out online."""
        return datetime.fromisoformat(self.job.since) + timedelta(hours=hours)


def job_path(tag: str, record: str) -> str:
    """Where a record of a job is."""
    return f"{JOBS}/{tag}/{record}.json"


def write_record(store: Store, tag: str, record: str, **values: Any) -> bool:
    """Create a record of a job; False if it was there."""
    return store.create(job_path(tag, record), canonical_json(values))


def read_jobs(store: Store, *, ended: bool = False) -> Iterator[JobState]:
    """The open jobs, oldest first; with `ended`, all."""
    records: dict[str, set[str]] = defaultdict(set)
    for path in store.list(JOBS):
        tag, name = path.split("/")[-2:]
        records[tag].add(name.removesuffix(".json"))
    states = [
        _read_job(store, tag, names)
        for tag, names in records.items()
        if "intended" in names and (ended or "ended" not in names)
    ]
    yield from sorted(states, key=lambda state: (state.job.created_at, state.job.tag))


def _read_job(store: Store, tag: str, names: set[str]) -> JobState:
    def read(name: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(store.read(job_path(tag, name)))
        return values

    state = JobState(Job.from_json(store.read(job_path(tag, "intended"))), ended="ended" in names)
    for name in names:
        kind, _, number = name.partition("-")
        if kind == "sending":
            state.sent_at[int(number)] = read(name)["at"]
        elif kind == "refused":
            state.refused[int(number)] = read(name)
    if "submitted" in names:
        submitted = read("submitted")
        state.provider_batch_id, state.submitted_at = submitted["provider_batch_id"], submitted["at"]
    if "cancelled" in names:
        state.cancelled_at = read("cancelled")["at"]
    return state
