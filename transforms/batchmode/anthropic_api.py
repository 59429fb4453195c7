"""Anthropic's Message Batches: one list of requests, one batch, one stream of results in any order.

Source: the API reference of Message Batches and the official SDK (2.12), which makes the calls. A batch
has no metadata; it is known by the custom ids of its requests, which only results show. So a batch that
might be ours, by its age and its number of requests, is waited for until it has ended and can be told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from transforms.batchmode.clients import Finding, Request, Standing, finding_of
from transforms.batchmode.results import ResultLine, anthropic_line
from transforms.batchmode.sdk import CREATED_AT_SLACK_S, TIMEOUT_S, Asker, http_client, id_of, raised_by
from transforms.call.site import Place

_COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")


class AnthropicBatches:
    """The batch API of one place."""

    def __init__(self, place: Place) -> None:
        import anthropic

        raised = raised_by(anthropic.AnthropicError, anthropic.APIStatusError, anthropic.APITimeoutError)
        self._asker = Asker("anthropic", raised, place.key)
        self._http = http_client(place)
        self._client = anthropic.Anthropic(
            api_key="none" if place.key is None else place.key.reveal(),
            base_url=place.base_url,
            max_retries=0,
            timeout=TIMEOUT_S,
            http_client=self._http,
        )

    def submit(self, tag: str, requests: Iterable[Request]) -> str:  # noqa: ARG002 - the ids carry it
        """Make a batch of the requests; see `BatchClient`."""
        listed: list[Any] = [{"custom_id": r.custom_id, "params": orjson.loads(r.body)} for r in requests]
        return self._asker.ask(lambda: id_of(self._client.messages.batches.create(requests=listed)))

    def find(self, tag: str, requests: int, since: datetime, known: Collection[str]) -> Finding:
        """The batch whose results have the tag in their custom ids; see `BatchClient`."""
        oldest = since - timedelta(seconds=CREATED_AT_SLACK_S)
        found: list[tuple[float, str]] = []
        undecided = False
        for batch in self._asker.listed(lambda: self._client.messages.batches.list(limit=100)):
            seen = self._asker.ask(lambda batch=batch: _seen(batch))  # type: ignore[misc]
            if seen.created_at < oldest:
                break  # the newest come first
            if seen.id in known or seen.requests != requests:
                continue
            if not seen.has_results:
                undecided = True
            elif self._is_tagged(seen.id, tag):
                found.append((seen.created_at.timestamp(), seen.id))
        return finding_of(found, undecided=undecided)

    def _is_tagged(self, batch_id: str, tag: str) -> bool:
        for line in self.results(batch_id):
            return isinstance(line.custom_id, str) and line.custom_id.startswith(f"{tag}-")
        return False

    def standing(self, batch_id: str) -> Standing:
        """Where a batch stands; see `BatchClient`."""
        retrieve = self._client.messages.batches.retrieve
        status = self._asker.ask(lambda: str(retrieve(batch_id).processing_status))
        return Standing(status, ended=status == "ended")

    def results(self, batch_id: str) -> Iterator[ResultLine]:
        """The result lines, streamed; see `BatchClient`."""
        for line in self._asker.each(lambda: self._client.messages.batches.results(batch_id)):
            values = self._asker.ask(lambda line=line: line.to_dict(mode="json", warnings=False))  # type: ignore[misc]
            yield anthropic_line(values)

    def cancel(self, batch_id: str) -> None:
        """Ask for the end; see `BatchClient`."""
        self._asker.ask(lambda: self._client.messages.batches.cancel(batch_id))

    def close(self) -> None:
        """Close connections."""
        self._http.close()


@dataclass(frozen=True, slots=True)
class _Seen:
    """A batch in a list."""

    id: str
    created_at: datetime
    requests: int
    has_results: bool


def _seen(batch: Any) -> _Seen:
    """What a listed batch says; an exception of any kind when it does not say it."""
    return _Seen(
        id=id_of(batch),
        created_at=batch.created_at.astimezone(UTC),
        requests=sum(getattr(batch.request_counts, name, None) or 0 for name in _COUNTS),
        has_results=batch.processing_status == "ended" and batch.results_url is not None,
    )
