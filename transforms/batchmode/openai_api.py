"""OpenAI's Batch API: a file of requests, a batch made of it, and two files of results.

Source: the API reference of files and batches, and the official SDK (3.54), which makes the calls. A
batch is found again by its metadata.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from typing import Any

from schemas.backends import HostedBackend
from schemas.failures import FailureClass
from transforms.batchmode.clients import (
    BatchLostError,
    BatchRefusedError,
    Finding,
    Request,
    Standing,
    finding_of,
)
from transforms.batchmode.results import ResultLine, openai_line
from transforms.batchmode.sdk import CREATED_AT_SLACK_S, TIMEOUT_S, Asker, http_client, id_of, raised_by
from transforms.call.site import Place
from transforms.call.wire import parse_object

TAG_KEY = "switchgear"
ENDPOINTS = {"chat": "/v1/chat/completions", "embeddings": "/v1/embeddings"}
_ENDS: dict[str, str | None] = {
    "completed": None,
    "failed": "failed",
    "expired": "expired",
    "cancelled": "cancelled",
}
"""The statuses that are ends; every other one, known to us or not, is waited out."""


class OpenAIBatches:
    """The batch API of one place, for one kind of request."""

    def __init__(self, place: Place, backend: HostedBackend) -> None:
        import openai

        raised = raised_by(openai.OpenAIError, openai.APIStatusError, openai.APITimeoutError)
        self._asker = Asker("openai", raised, place.key)
        self._endpoint = ENDPOINTS[backend.operation]
        self._http = http_client(place)
        self._client = openai.OpenAI(
            api_key="none" if place.key is None else place.key.reveal(),
            base_url=place.base_url,
            max_retries=0,
            timeout=TIMEOUT_S,
            http_client=self._http,
        )

    def submit(self, tag: str, requests: Iterable[Request]) -> str:
        """Upload the requests and make a batch of them; see `BatchClient`.

        An upload whose end is unknown has made no batch: such a file lies there until it expires.
        """
        with tempfile.TemporaryFile(prefix="switchgear-") as lines:
            for request in requests:
                lines.write(self._line(request))
            lines.seek(0)
            try:
                file_id = self._asker.ask(
                    lambda: id_of(self._client.files.create(file=(f"{tag}.jsonl", lines), purpose="batch"))
                )
            except BatchLostError as error:
                raise BatchRefusedError(
                    FailureClass.CONNECTION, f"the upload: {error}", lasting=False
                ) from None
        return self._asker.ask(
            lambda: id_of(
                self._client.batches.create(
                    input_file_id=file_id,
                    endpoint=self._endpoint,  # type: ignore[arg-type]  # a literal of the SDK's
                    completion_window="24h",
                    metadata={TAG_KEY: tag},
                )
            )
        )

    def _line(self, request: Request) -> bytes:
        head = f'{{"custom_id":"{request.custom_id}","method":"POST","url":"{self._endpoint}","body":'
        return head.encode() + request.body + b"}\n"

    def find(
        self,
        tag: str,
        requests: int,  # noqa: ARG002
        since: datetime,
        known: Collection[str],  # noqa: ARG002
    ) -> Finding:
        """The batch whose metadata has the tag; see `BatchClient`."""
        oldest = since.timestamp() - CREATED_AT_SLACK_S
        found: list[tuple[float, str]] = []
        for batch in self._asker.listed(lambda: self._client.batches.list(limit=100)):
            created, batch_id, its_tag = self._asker.ask(lambda batch=batch: _seen(batch))  # type: ignore[misc]
            if created < oldest:
                break  # the newest come first
            if its_tag == tag:
                found.append((created, batch_id))
        return finding_of(found)

    def standing(self, batch_id: str) -> Standing:
        """Where a batch stands; see `BatchClient`."""
        return self._asker.ask(lambda: _standing(self._client.batches.retrieve(batch_id)))

    def results(self, batch_id: str) -> Iterator[ResultLine]:
        """The lines of the output file and of the error file; see `BatchClient`."""
        for file_id in self._asker.ask(lambda: _files_of(self._client.batches.retrieve(batch_id))):
            for line in self._lines(file_id):
                yield openai_line(line)

    def _lines(self, file_id: str) -> Iterator[dict[str, Any]]:
        """The objects of a file; it is read whole before the first is given, so that none is half."""
        content = self._asker.ask(lambda: self._client.files.content(file_id).read())
        if not content.strip():
            raise BatchLostError(f"file {file_id} of openai is empty")
        for line in content.splitlines():
            value = parse_object(line)
            if value is None and line.strip():
                raise BatchLostError(f"file {file_id} of openai holds a line that is no JSON object")
            if value is not None:
                yield value

    def cancel(self, batch_id: str) -> None:
        """Ask for the end; see `BatchClient`."""
        self._asker.ask(lambda: self._client.batches.cancel(batch_id))

    def close(self) -> None:
        """Close connections."""
        self._http.close()


def _seen(batch: Any) -> tuple[float, str, str | None]:
    """When a listed batch was made, its id, and our tag in it; ValueError when it does not say."""
    return float(batch.created_at), id_of(batch), (batch.metadata or {}).get(TAG_KEY)


def _files_of(batch: Any) -> list[str]:
    """The files of a batch that has ended; ValueError when it does not look like one."""
    files = [file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id]
    if batch.status not in _ENDS or (batch.status == "completed" and not files):
        raise ValueError("no end")
    return files


def _standing(batch: Any) -> Standing:
    status = str(batch.status)
    errors = [error.message or error.code or "" for error in (batch.errors and batch.errors.data) or []]
    return Standing(status, status in _ENDS, _ENDS.get(status), "; ".join(errors[:3])[:500])
