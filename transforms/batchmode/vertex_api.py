"""Vertex's batch prediction for Gemini: requests and predictions are files in a bucket of the workload's.

Source: the guide "Batch inference from Cloud Storage", the reference of `batchPredictionJobs` (v1beta1) and
the official SDK (google-genai 2.34), which makes the calls. A job is found again by its display name.
Predictions repeat the requests, in any order and without ids: a label in each request says whose it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from schemas.backends import HostedBackend
from schemas.errors import StoreError
from schemas.failures import FailureClass
from transforms.batchmode.clients import BatchLostError, BatchRefusedError, Request
from transforms.batchmode.genai_jobs import GenaiJobs, each_line, name_of, standing_of
from transforms.batchmode.results import VERTEX_ID_LABEL, ResultLine, vertex_line
from transforms.call.site import Place
from transforms.store import Store


class VertexBatches(GenaiJobs):
    """The batch API of one location, for one model. `bucket` is where the files lie: `batch_bucket`."""

    def __init__(self, place: Place, backend: HostedBackend, credentials: Any, bucket: Store) -> None:
        assert backend.batch_bucket is not None  # a workload without one is refused
        who = {"credentials": credentials, "project": backend.project, "location": backend.location}
        super().__init__(place, "vertex", None, vertexai=True, **who)
        self._model = backend.model
        self._bucket = bucket
        self._address = backend.batch_bucket.rstrip("/")

    def submit(self, tag: str, requests: Iterable[Request]) -> str:
        """Put the requests into the bucket and make a job of them; see `BatchClient`."""
        path = f"{tag}/requests.jsonl"
        try:
            self._bucket.create(path, b"".join(_line(request) for request in requests))
        except (StoreError, OSError) as error:
            raise BatchRefusedError(
                FailureClass.CONNECTION, f"the bucket {self._address}: {error}", lasting=False
            ) from None
        config = {"display_name": tag, "dest": f"{self._address}/{tag}"}
        return self._asker.ask(
            lambda: name_of(
                self._client.batches.create(
                    model=self._model,
                    src=f"{self._address}/{path}",
                    config=config,
                )
            )
        )

    def results(self, batch_id: str) -> Iterator[ResultLine]:
        """The lines of all files of predictions; see `BatchClient`."""
        job = self._asker.ask(lambda: self._client.batches.get(name=batch_id))
        folder = self._asker.ask(lambda: self._folder_of(job))
        if folder is None:
            return
        try:
            for path in sorted(self._bucket.list(folder)):
                if path.endswith(".jsonl"):
                    with self._bucket.open(path) as lines:
                        yield from each_line(lines, path, vertex_line)
        except (StoreError, OSError) as error:
            raise BatchLostError(f"the bucket {self._address} can't be read: {error}") from None

    def _folder_of(self, job: Any) -> str | None:
        """Where in the bucket the predictions are; ValueError when the job has no end, or names another."""
        standing = standing_of(job)
        if not standing.ended:
            raise ValueError("no end")
        directory = job.output_info.gcs_output_directory if job.output_info is not None else None
        if not directory:
            return None
        if not directory.startswith(f"{self._address}/"):
            raise ValueError("another bucket")
        return str(directory).removeprefix(f"{self._address}/").rstrip("/")


def _line(request: Request) -> bytes:
    body = orjson.loads(request.body)
    body["labels"] = {**body.get("labels", {}), VERTEX_ID_LABEL: request.custom_id}
    return orjson.dumps({"request": body}) + b"\n"
