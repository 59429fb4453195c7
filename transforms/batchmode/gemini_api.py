"""Gemini's Batch API: a file of requests, a batch job made of it, and a file of results.

Source: the guide and reference of the Batch API (v1beta) and the official SDK (google-genai 2.34), which
makes the calls. A job is found again by its display name. Requests always go as a file, so that results
come as one, too: inlined ones would come with every poll, and are bounded to 20 MB.

Google does not say whether requests of a cancelled or expired job without a result are billed: they
count as calls of unknown end.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

from schemas.failures import FailureClass
from schemas.workload import HostedBackend
from transforms.batchmode.clients import (
    BatchLostError,
    BatchRefusedError,
    Finding,
    Request,
    Standing,
    finding_of,
)
from transforms.batchmode.results import ResultLine, gemini_line
from transforms.batchmode.sdk import CREATED_AT_SLACK_S, TIMEOUT_S, Asker, Raised, http_client, raised_by
from transforms.call.site import Place
from transforms.call.wire import parse_object

STATES: dict[str, Standing] = {
    "JOB_STATE_SUCCEEDED": Standing("JOB_STATE_SUCCEEDED", ended=True),
    "JOB_STATE_PARTIALLY_SUCCEEDED": Standing("JOB_STATE_PARTIALLY_SUCCEEDED", ended=True),
    "JOB_STATE_FAILED": Standing("JOB_STATE_FAILED", ended=True, missing="failed"),
    "JOB_STATE_CANCELLED": Standing("JOB_STATE_CANCELLED", ended=True, may_be_empty=True),
    "JOB_STATE_EXPIRED": Standing("JOB_STATE_EXPIRED", ended=True, may_be_empty=True),
}
"""The states that are ends; every other one, known to us or not, is waited out."""


class GeminiBatches:
    """The batch API of one place, for one model."""

    def __init__(self, place: Place, backend: HostedBackend) -> None:
        from google import genai

        self._asker = Asker("gemini", raised_by_genai(), place.key)
        self._model = backend.model
        self._embeds = backend.operation == "embeddings"
        self._http = http_client(place, [check_list])
        base_url, version = split_version(place.base_url)
        self._client = genai.Client(
            vertexai=False,  # said aloud, so that the environment has no say in it
            api_key="none" if place.key is None else place.key.reveal(),
            http_options=genai.types.HttpOptions(
                base_url=base_url,
                api_version=version,
                httpx_client=self._http,
                timeout=round(TIMEOUT_S * 1000),
            ),
        )

    def submit(self, tag: str, requests: Iterable[Request]) -> str:
        """Upload the requests and make a job of them; see `BatchClient`.

        An upload whose end is unknown has made no job: such a file goes by itself after two days.
        """
        with tempfile.TemporaryFile(prefix="switchgear-") as lines:
            for request in requests:
                lines.write(f'{{"key":"{request.custom_id}","request":'.encode() + request.body + b"}\n")
            lines.seek(0)
            try:
                file_name = self._asker.ask(lambda: self._upload(tag, lines))
            except BatchLostError as error:
                raise BatchRefusedError(
                    FailureClass.CONNECTION, f"the upload: {error}", lasting=False
                ) from None
        return self._asker.ask(lambda: name_of(self._create(tag, file_name)))

    def _upload(self, tag: str, lines: IO[bytes]) -> str:
        config = {"display_name": f"{tag}.jsonl", "mime_type": "jsonl"}
        return name_of(self._client.files.upload(file=lines, config=config))

    def _create(self, tag: str, file_name: str) -> Any:
        if not self._embeds:
            config = {"display_name": tag}
            return self._client.batches.create(model=self._model, src=file_name, config=config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "experimental": it would be said in the middle of a run
            return self._client.batches.create_embeddings(
                model=self._model, src={"file_name": file_name}, config={"display_name": tag}
            )

    def find(
        self,
        tag: str,
        requests: int,  # noqa: ARG002
        since: datetime,
        known: Collection[str],  # noqa: ARG002
    ) -> Finding:
        """The job whose display name is the tag; see `BatchClient`."""
        return find_job(self._asker, self._client, tag, since)

    def standing(self, batch_id: str) -> Standing:
        """Where a job stands; see `BatchClient`."""
        return self._asker.ask(lambda: standing_of(self._client.batches.get(name=batch_id)))

    def results(self, batch_id: str) -> Iterator[ResultLine]:
        """The lines of the file of results; see `BatchClient`."""
        job = self._asker.ask(lambda: self._client.batches.get(name=batch_id))
        file_name = self._asker.ask(lambda: _results_of(job))
        if file_name is None:
            return
        with tempfile.TemporaryFile(prefix="switchgear-") as lines:
            # in one piece and on the disk first, so that no line is half and memory stays flat
            self._asker.ask(lambda: self._client.files.download(file=file_name, destination=lines))
            lines.seek(0)
            yield from each_line(lines, file_name, gemini_line)

    def cancel(self, batch_id: str) -> None:
        """Ask for the end; see `BatchClient`."""
        self._asker.ask(lambda: self._client.batches.cancel(name=batch_id))

    def close(self) -> None:
        """Close connections."""
        self._http.close()


def raised_by_genai() -> Raised:
    """What google-genai raises: errors of its own, its transport's, and those of google-auth's tokens."""
    import httpx2
    from google.auth.exceptions import GoogleAuthError
    from google.genai import errors

    raised = raised_by(errors.APIError, errors.APIError, httpx2.TimeoutException)
    return replace(raised, any=(*raised.any, GoogleAuthError))


def split_version(base_url: str) -> tuple[str, str]:
    """A base URL without its last segment, and that segment: the SDK wants the API's version by itself."""
    parts = urlsplit(base_url)
    path, _, version = parts.path.rpartition("/")
    return urlunsplit(parts._replace(path=path)), version


def check_list(response: Any) -> None:
    """Refuses a list of jobs that is none; ValueError.

    The SDK takes whatever has no jobs for an empty list, and to find nothing would be to send it again.
    """
    path = response.request.url.path
    if response.status_code != 200 or response.request.method != "GET":
        return
    names = {"batches": "operations", "batchPredictionJobs": "batchPredictionJobs"}
    name = names.get(path.rpartition("/")[2])
    if name is None:
        return
    response.read()
    data = parse_object(response.content)
    if data is None or (name not in data and data.keys() - {"nextPageToken"}):
        raise ValueError("no list")
    if not isinstance(data.get(name, []), list):
        raise ValueError("no list")


def find_job(asker: Asker, client: Any, tag: str, since: datetime) -> Finding:
    """The job whose display name is the tag; nothing is promised about a list's order: it is read whole."""
    oldest = since.timestamp() - CREATED_AT_SLACK_S
    found: list[tuple[float, str]] = []
    pager = asker.ask(lambda: client.batches.list(config={"page_size": 100}))
    while True:
        for job in pager.page:
            created, name, its_tag = asker.ask(lambda job=job: _seen(job))  # type: ignore[misc]
            if its_tag == tag and created >= oldest:
                found.append((created, name))
        if not pager.config.get("page_token"):
            return finding_of(found)
        asker.ask(pager.next_page)


def _seen(job: Any) -> tuple[float, str, str | None]:
    """When a listed job was made, its name, and the tag; ValueError when it does not say."""
    created: datetime = job.create_time
    return created.astimezone(UTC).timestamp(), name_of(job), job.display_name


def name_of(thing: Any) -> str:
    """The resource name of a job or file; ValueError when it has none."""
    if not isinstance(thing.name, str) or not thing.name:
        raise ValueError("no name")
    return thing.name


def standing_of(job: Any) -> Standing:
    """Where a job stands; ValueError when it does not say."""
    if job.state is None:
        raise ValueError("no state")
    state = str(job.state.value)
    ended = STATES.get(state)
    if ended is None:
        return Standing(state, ended=False)
    said = str((job.error and job.error.message) or "")[:500]
    return Standing(state, ended=True, missing=ended.missing, message=said, may_be_empty=ended.may_be_empty)


def _results_of(job: Any) -> str | None:
    """The file of results of a job that has ended; ValueError when it does not look like one."""
    standing = standing_of(job)
    file_name = job.dest.file_name if job.dest is not None else None
    if not standing.ended:
        raise ValueError("no end")
    if not file_name and standing.missing is None and not standing.may_be_empty:
        raise ValueError("no results")
    return file_name or None


def each_line(
    lines: Iterable[bytes], name: str, read: Callable[[dict[str, Any]], ResultLine]
) -> Iterator[ResultLine]:
    """The results in a file; BatchLostError when a line is half or the file is empty."""
    empty = True
    for line in lines:
        if not line.strip():
            continue
        value = parse_object(line)
        if value is None:
            raise BatchLostError(f"file {name} of results holds a line that is no JSON object")
        empty = False
        yield read(value)
    if empty:
        raise BatchLostError(f"file {name} of results is empty")
