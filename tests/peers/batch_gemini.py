"""Gemini's side of the batch emulator: payloads of jobs, files and result lines, validated with its SDK.

The wire format is the REST one of v1beta, which the SDK turns into its own types: a payload is validated
as what the SDK makes of it.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from google.genai import batches, types

JOBS = "projects/p/locations/europe-west1/batchPredictionJobs/"
BUCKET = "gs://bucket"
CODES = {"expired": 4, "cancelled": 1, "errored": 13, "invalid": 3}
STATUSES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 409: "ABORTED",
    429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE",
}  # fmt: skip


def prompt_of(body: dict[str, Any]) -> str:
    content = body["content"] if "content" in body else body["contents"][-1]
    return "".join(part["text"] for part in content["parts"])


def operation(batch: Any) -> dict[str, Any]:
    """A job as a long-running operation; its state is said in the words of the batch service."""
    at = batch.created_at.isoformat()
    metadata = {
        "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
        "model": batch.metadata["model"],
        "displayName": batch.metadata["displayName"],
        "inputConfig": {"fileName": batch.input_file_id},
        "createTime": at,
        "updateTime": at,
        "batchStats": {"requestCount": str(len(batch.requests))},
        "state": batch.status,
        "name": batch.id,
    }
    if batch.lines:
        metadata["output"] = {"responsesFile": results_name(batch)}
    payload: dict[str, Any] = {"name": batch.id, "metadata": metadata}
    job = types.BatchJob.model_validate(batches._BatchJob_from_mldev(payload))
    assert (job.name, job.display_name) == (batch.id, batch.metadata["displayName"])
    return payload


def results_name(batch: Any) -> str:
    return f"files/results-{batch.id.removeprefix('batches/')}"


def listing(operations: list[dict[str, Any]], token: str | None) -> dict[str, Any]:
    """A page of jobs; like all proto3 JSON, an empty one has no list at all."""
    payload: dict[str, Any] = {"operations": operations} if operations else {}
    if token:
        payload["nextPageToken"] = token
    types.ListBatchJobsResponse.model_validate(batches._ListBatchJobsResponse_from_mldev(payload))
    return payload


def uploaded(name: str, size: int, now: datetime) -> dict[str, Any]:
    file = {
        "name": name,
        "mimeType": "jsonl",
        "sizeBytes": str(size),
        "createTime": now.isoformat(),
        "state": "ACTIVE",
        "source": "UPLOADED",
    }
    types.File.model_validate(file)
    return {"file": file}


def content(body: dict[str, Any], text: str, model: str, usage: tuple[int, int]) -> dict[str, Any]:
    """The answer to a generateContent or embedContent request."""
    if "content" in body:
        return embedding(body, usage)
    payload = {
        "candidates": [
            {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP", "index": 0}
        ],
        "usageMetadata": {
            "promptTokenCount": usage[0],
            "candidatesTokenCount": usage[1],
            "totalTokenCount": sum(usage),
        },
        "modelVersion": model.removeprefix("models/"),
        "responseId": "r-1",
    }
    types.GenerateContentResponse.model_validate(payload)
    return payload


def embedding(body: dict[str, Any], usage: tuple[int, int]) -> dict[str, Any]:
    """A vector that its text alone decides, and the tokens that were counted."""
    dimensions = body["outputDimensionality"]
    size = float(len(prompt_of(body)))
    payload = {"embedding": {"values": [size, *[0.5] * (dimensions - 1)]}, "tokenCount": usage[0]}
    types.SingleEmbedContentResponse.model_validate(payload)
    return payload


def line(key: str, end: str, answer: dict[str, Any]) -> dict[str, Any]:
    """A line of the file of results."""
    if end == "succeeded":
        return {"key": key, "response": answer}
    if end == "odd":  # neither a response nor an error
        return {"key": key, "metadata": {"postponed": True}}
    error = {"code": CODES[end], "message": f"this request has {end}"}
    types.JobError.model_validate(error)
    return {"key": key, "error": error}


def error(status: int, kind: str, message: str) -> dict[str, Any]:
    """An error response in Google's words; of a spent quota it says so in its details."""
    body: dict[str, Any] = {"code": status, "message": message, "status": STATUSES.get(status, "UNKNOWN")}
    if kind == "insufficient_quota":
        reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "BILLING_DISABLED"}
        body["details"] = [reason]
    return {"error": body}


def asked_of_a_job(asked: dict[str, Any]) -> dict[str, str]:
    """What a request for a prediction job says of it."""
    formats = (asked["inputConfig"]["instancesFormat"], asked["outputConfig"]["predictionsFormat"])
    assert formats == ("jsonl", "jsonl"), formats
    prefix = asked["outputConfig"]["gcsDestination"]["outputUriPrefix"]
    return {"model": asked["model"], "displayName": asked["displayName"], "prefix": prefix}


def prediction_requests(asked: dict[str, Any], objects: Path) -> dict[str, Any]:
    """The requests of a prediction job, by their label; like the provider, it reads them from the bucket."""
    uris = asked["inputConfig"]["gcsSource"]["uris"]
    (uri,) = [uris] if isinstance(uris, str) else uris
    lines = (objects / uri.removeprefix(f"{BUCKET}/")).read_bytes().splitlines()
    requests = [json.loads(line)["request"] for line in lines]
    return {request["labels"]["switchgear_id"]: request for request in requests}


def prediction_job(batch: Any, objects: Path) -> dict[str, Any]:
    """A job as `batchPredictionJobs` shows it; its predictions are written when it has some."""
    payload: dict[str, Any] = {
        "name": batch.id,
        "displayName": batch.metadata["displayName"],
        "model": batch.metadata["model"],
        "state": batch.status,
        "createTime": batch.created_at.isoformat(),
    }
    if batch.status == "JOB_STATE_FAILED":
        payload["error"] = {"code": 8, "message": "too many jobs"}
    if batch.lines:
        directory = f"{batch.metadata['prefix']}/prediction-model-1"
        folder = objects / directory.removeprefix(f"{BUCKET}/")
        folder.mkdir(parents=True, exist_ok=True)
        half = len(batch.lines) // 2
        for number, lines in enumerate((batch.lines[:half], batch.lines[half:])):
            written = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            if lines:
                (folder / f"predictions-{number}.jsonl").write_bytes(written)
        payload["outputInfo"] = {"gcsOutputDirectory": directory}
    job = types.BatchJob.model_validate(batches._BatchJob_from_vertex(payload))
    assert job.display_name == batch.metadata["displayName"]
    return payload


def job_listing(jobs: list[dict[str, Any]], token: str | None) -> dict[str, Any]:
    payload: dict[str, Any] = {"batchPredictionJobs": jobs} if jobs else {}
    if token:
        payload["nextPageToken"] = token
    types.ListBatchJobsResponse.model_validate(batches._ListBatchJobsResponse_from_vertex(payload))
    return payload


def prediction(custom_id: str, end: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """A line of predictions: the request again, and an answer or a sentence."""
    request = {**body, "labels": {**body["labels"], "switchgear_id": custom_id}}
    if end == "succeeded":
        return {
            "request": request,
            "response": answer,
            "status": "",
            "processed_time": "2026-11-22T09:00:00Z",
        }
    status = {"errored": 503, "invalid": 400}.get(end, 500)
    said = json.dumps(error(status, "", f"this request has {end}"))
    return {"request": request, "response": {}, "status": "" if end == "odd" else f"Error: {said}"}
