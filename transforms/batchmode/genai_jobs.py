"""Jobs of Google's batch APIs, Gemini's and Vertex's: what is the same of both through google-genai's SDK.

A job is found again by its display name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from transforms.batchmode.clients import BatchLostError, Finding, Standing, finding_of
from transforms.batchmode.results import ResultLine
from transforms.batchmode.sdk import (
    CREATED_AT_SLACK_S,
    TIMEOUT_S,
    Asker,
    Raised,
    http_client,
    raised_by,
    trusted,
)
from transforms.call.secret import Secret
from transforms.call.site import Place
from transforms.call.wire import parse_object

_STATES: dict[str, Standing] = {
    "JOB_STATE_SUCCEEDED": Standing("JOB_STATE_SUCCEEDED", ended=True),
    "JOB_STATE_PARTIALLY_SUCCEEDED": Standing("JOB_STATE_PARTIALLY_SUCCEEDED", ended=True),
    "JOB_STATE_FAILED": Standing("JOB_STATE_FAILED", ended=True, missing="failed"),
    "JOB_STATE_CANCELLED": Standing("JOB_STATE_CANCELLED", ended=True, may_be_empty=True),
    "JOB_STATE_EXPIRED": Standing("JOB_STATE_EXPIRED", ended=True, may_be_empty=True),
}
"""The states that are ends; every other one, known to us or not, is waited out."""


class GenaiJobs:
    """Finds, polls and cancels the jobs of one place; how they are submitted and read is each API's own.

    `named` is the API in errors, `key` what errors never show, and `who` how the SDK says who asks.
    """

    def __init__(self, place: Place, named: str, key: Secret | None, **who: Any) -> None:
        from google import genai

        self._asker = Asker(named, _raised(), key)
        self._http = http_client(place, [_check_list])
        base_url, version = _split_version(place.base_url)
        self._client = genai.Client(
            **who,
            http_options=genai.types.HttpOptions(
                base_url=base_url,
                api_version=version,
                httpx_client=self._http,
                # Of the clients that the SDK makes besides, which nobody uses: they would each read it anew.
                async_client_args={"verify": trusted(), "ssl": trusted()},
                timeout=round(TIMEOUT_S * 1000),
            ),
        )

    def find(
        self,
        tag: str,
        requests: int,  # noqa: ARG002
        since: datetime,
        known: Collection[str],  # noqa: ARG002
    ) -> Finding:
        """The job whose display name is the tag; see `BatchClient`.

        Nothing is promised about a list's order: it is read whole.
        """
        oldest = since.timestamp() - CREATED_AT_SLACK_S
        found: list[tuple[float, str]] = []
        pager = self._asker.ask(lambda: self._client.batches.list(config={"page_size": 100}))
        while True:
            for job in pager.page:
                created, name, its_tag = self._asker.ask(lambda job=job: _seen(job))  # type: ignore[misc]
                if its_tag == tag and created >= oldest:
                    found.append((created, name))
            if not pager.config.get("page_token"):
                return finding_of(found)
            self._asker.ask(pager.next_page)

    def standing(self, batch_id: str) -> Standing:
        """Where a job stands; see `BatchClient`."""
        return self._asker.ask(lambda: standing_of(self._client.batches.get(name=batch_id)))

    def cancel(self, batch_id: str) -> None:
        """Ask for the end; see `BatchClient`."""
        self._asker.ask(lambda: self._client.batches.cancel(name=batch_id))

    def close(self) -> None:
        """Close connections."""
        self._http.close()


def _raised() -> Raised:
    """What google-genai raises: errors of its own, its transport's, and those of google-auth's tokens."""
    import httpx2
    from google.auth.exceptions import GoogleAuthError
    from google.genai import errors

    raised = raised_by(errors.APIError, errors.APIError, httpx2.TimeoutException)
    return replace(raised, any=(*raised.any, GoogleAuthError))


def _split_version(base_url: str) -> tuple[str, str]:
    """A base URL without its last segment, and that segment: the SDK wants the API's version by itself."""
    parts = urlsplit(base_url)
    path, _, version = parts.path.rpartition("/")
    return urlunsplit(parts._replace(path=path)), version


def _check_list(response: Any) -> None:
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
    ended = _STATES.get(state)
    if ended is None:
        return Standing(state, ended=False)
    said = str((job.error and job.error.message) or "")[:500]
    return Standing(state, ended=True, missing=ended.missing, message=said, may_be_empty=ended.may_be_empty)


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
