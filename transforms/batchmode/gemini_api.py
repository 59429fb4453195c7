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
from collections.abc import Iterable, Iterator
from typing import IO, Any

from schemas.backends import HostedBackend
from schemas.failures import FailureClass
from transforms.batchmode.clients import BatchLostError, BatchRefusedError, Request
from transforms.batchmode.genai_jobs import GenaiJobs, each_line, name_of, standing_of
from transforms.batchmode.results import ResultLine, gemini_line
from transforms.call.site import Place


class GeminiBatches(GenaiJobs):
    """The batch API of one place, for one model."""

    def __init__(self, place: Place, backend: HostedBackend) -> None:
        key = "none" if place.key is None else place.key.reveal()
        # vertexai is said aloud, so that the environment has no say in it
        super().__init__(place, "gemini", place.key, vertexai=False, api_key=key)
        self._model = backend.model
        self._embeds = backend.operation == "embeddings"

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


def _results_of(job: Any) -> str | None:
    """The file of results of a job that has ended; ValueError when it does not look like one."""
    standing = standing_of(job)
    file_name = job.dest.file_name if job.dest is not None else None
    if not standing.ended:
        raise ValueError("no end")
    if not file_name and standing.missing is None and not standing.may_be_empty:
        raise ValueError("no results")
    return file_name or None
