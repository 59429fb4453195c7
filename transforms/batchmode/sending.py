"""From an intended job to a batch at the provider: exactly one, whatever is lost on the way.

Before each attempt a record says that it is about to begin. An attempt without a recorded end may have
made a batch: nothing is sent again before listing has shown that there is none, and not before SETTLE_S
have passed, in which the provider may still be making it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from schemas.errors import StoreError
from transforms.batchmode.clients import BatchClient, BatchLostError, BatchRefusedError, Request
from transforms.batchmode.jobs import Job, JobState, write_record
from transforms.batchmode.tickets import read_bodies, read_ticket
from transforms.store import Store

SETTLE_S = 900.0
"""What a submission whose end is unknown gets to show up in the provider's list."""


@dataclass(frozen=True, slots=True)
class Sent:
    """How far a submission came: at the provider, to be tried again, or refused for good; and a sentence."""

    word: Literal["submitted", "later", "refused"]
    sentence: str


class Sender:
    """Submits jobs. `now` is when this run looks; at most one driver of an output is at work."""

    def __init__(self, store: Store, now: datetime) -> None:
        self._store = store
        self._now = now

    def proceed(self, state: JobState, client: BatchClient, known: Collection[str], *, late: bool) -> Sent:
        """Take a job without a known batch as far as it goes. `late` forbids a new submission.

        `known` are the provider's ids of other jobs' batches. After "submitted", `state` has the batch's id.

        Raises:
            BatchRefusedError, BatchLostError: the provider's list could not be had; nothing has changed.
        """
        if state.undecided:
            found = self._look(state, client, known)
            if found is not None:
                return found
        if late:
            return Sent("refused", f"provider batch {state.job.tag} was not submitted before its deadline")
        return self._send(state, client, known)

    def _look(self, state: JobState, client: BatchClient, known: Collection[str]) -> Sent | None:
        """What became of a submission whose end is unknown; None when it has made no batch."""
        job = state.job
        first, last = (datetime.fromisoformat(state.undecided[n]) for n in (0, -1))
        finding = client.find(job.tag, job.sent, first, known)
        if finding.batch_id is not None:
            self._submitted(state, finding.batch_id, adopted=True)
            more = f"; it has more batches of this tag: {', '.join(finding.more)}" if finding.more else ""
            return Sent(
                "submitted",
                f"provider batch {finding.batch_id} was found at {job.backend}: a submission whose "
                f"response was lost had made it{more}",
            )
        if finding.undecided:
            return Sent("later", f"a batch at {job.backend} may be that of {job.tag}: told when it has ended")
        settled = last + timedelta(seconds=SETTLE_S)
        if self._now < settled:
            return Sent(
                "later",
                f"whether {job.backend} has made a batch of {job.tag} is not known yet: looked for again "
                f"from {settled:%H:%M} UTC on, before anything is sent twice",
            )
        return None

    def _send(self, state: JobState, client: BatchClient, known: Collection[str]) -> Sent:
        job, number = state.job, state.last_attempt + 1
        try:
            requests = self._requests(job)
        except (StoreError, FileNotFoundError) as error:
            return Sent("refused", str(error))
        at = self._now.isoformat()
        write_record(self._store, job.tag, f"sending-{number:04d}", at=at)
        state.sent_at[number] = at
        try:
            batch_id = client.submit(job.tag, requests)
        except BatchRefusedError as error:
            refusal = {"class": error.failure.value, "message": str(error), "lasting": error.lasting}
            write_record(self._store, job.tag, f"refused-{number:04d}", at=at, **refusal)
            state.refused[number] = refusal
            word: Literal["later", "refused"] = "refused" if error.lasting else "later"
            return Sent(word, f"{job.backend} did not take a batch of {job.sent:,} requests: {error}")
        except BatchLostError as error:
            return self._look_at_once(state, client, known, error)
        self._submitted(state, batch_id, adopted=False)
        return Sent("submitted", f"{job.sent:,} requests went to {job.backend} as batch {batch_id}")

    def _look_at_once(
        self, state: JobState, client: BatchClient, known: Collection[str], error: BatchLostError
    ) -> Sent:
        try:
            found = self._look(state, client, known)
        except (BatchRefusedError, BatchLostError):
            found = None
        return found or Sent("later", f"the end of a submission to {state.job.backend} is not known: {error}")

    def _requests(self, job: Job) -> Iterator[Request]:
        """The job's requests, read ticket by ticket; all tickets are looked at before the first is given."""
        tickets = [(part, read_ticket(self._store, part.batch_id, part.number)) for part in job.tickets]
        for _, ticket in tickets:
            if not self._store.exists(ticket.bodies):
                read_bodies(self._store, ticket)  # says what is wrong

        def each() -> Iterator[Request]:
            for part, ticket in tickets:
                for index, body in enumerate(read_bodies(self._store, ticket)):
                    if part.first + index not in job.repeated:
                        yield Request(job.custom_id(part.first + index), body)

        return each()

    def _submitted(self, state: JobState, batch_id: str, *, adopted: bool) -> None:
        at = self._now.isoformat()
        values = {"provider_batch_id": batch_id, "at": at, "adopted": adopted}
        write_record(self._store, state.job.tag, "submitted", **values)
        state.provider_batch_id, state.submitted_at = batch_id, at
