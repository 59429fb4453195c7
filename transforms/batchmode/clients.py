"""What is asked of a provider's batch API, and in which ways an answer can fail to come.

Nothing here is tried again by itself: a control call that failed is asked again by the next run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from schemas.failures import FailureClass
from transforms.batchmode.results import ResultLine


class BatchRefusedError(Exception):
    """The provider definitely made no batch of it. `lasting`: asking again with the same can't help."""

    def __init__(self, failure: FailureClass, message: str, *, lasting: bool) -> None:
        super().__init__(message)
        self.failure = failure
        self.lasting = lasting


class BatchLostError(Exception):
    """Nobody knows what the provider did: no whole response, or one that says nothing."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a job in the provider's wire format."""

    custom_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """What listing found for a tag: the batch's id, or that it can't be told yet.

    `more` are further batches with the same tag: there should be none, and they are reported.
    """

    batch_id: str | None = None
    undecided: bool = False
    more: tuple[str, ...] = ()


def finding_of(found: Collection[tuple[float, str]], *, undecided: bool = False) -> Finding:
    """What was found: batches that have the tag, each with the instant at which it was made."""
    if not found:
        return Finding(undecided=undecided)
    first, *more = [batch_id for _, batch_id in sorted(found)]
    return Finding(first, more=tuple(more))


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a batch stands at its provider. `ended`: no more results will come, which is not success.

    `missing` (a key of `results.NOT_WORKED_ON`) is what became of requests without a result line in a
    batch that has ended; None when it should have had one for each: then they may have been billed.
    `may_be_empty`: a batch that has ended so may well have no results at all.
    """

    status: str
    ended: bool
    missing: str | None = None
    message: str = ""
    may_be_empty: bool = False


class BatchClient(Protocol):
    """One backend's batch API. All but `close` raise BatchRefusedError or BatchLostError."""

    def submit(self, tag: str, requests: Iterable[Request]) -> str:
        """Make a batch of the requests, in which the tag can be found again; the provider's id of it."""
        ...

    def find(self, tag: str, requests: int, since: datetime, known: Collection[str]) -> Finding:
        """The batch with this tag and number of requests, made not before `since`, by listing.

        `known` are the provider's ids of other jobs' batches: it is none of those.
        """
        ...

    def standing(self, batch_id: str) -> Standing:
        """Where a batch stands."""
        ...

    def results(self, batch_id: str) -> Iterator[ResultLine]:
        """The result lines of a batch that has ended, in any order."""
        ...

    def cancel(self, batch_id: str) -> None:
        """Ask for the batch to end with what it has."""
        ...

    def close(self) -> None:
        """Close connections."""
        ...
