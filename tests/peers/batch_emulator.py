"""An emulator of three batch APIs: OpenAI's, Anthropic's Message Batches, and Gemini's. It is ours.

It stands where no third-party mock does (Anthropic, Gemini), or where one can't lose responses, expire or
answer in part (OpenAI). Every payload that it sends is validated with the types of the provider's SDK
first, so that it can't drift from what the SDK reads. Its `bill` is kept apart from everything that is
tested: the prompts that were answered, by provider batch or online.

A batch waits until the test says how it ends (`finish`). All APIs, and their online calls, are served
under one loopback address.
"""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anthropic.types
import anthropic.types.messages
import openai.types
import openai.types.chat
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse

from tests.peers import batch_gemini

USAGE = (100, 20)
"""Input and output tokens of every answer."""


class DroppedError(Exception):
    """The connection ends here, without a response."""


@dataclass
class Batch:
    """A batch as the provider has it. `ends` is what became of each request, by custom id."""

    id: str
    provider: str
    requests: dict[str, dict[str, Any]]
    created_at: datetime
    metadata: dict[str, str] = field(default_factory=dict)
    status: str = "in_progress"
    ends: dict[str, str] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    cancel_asked: bool = False
    hidden_from_lists: int = 0
    input_file_id: str = ""
    endpoint: str = ""


@dataclass
class BatchEmulator:
    """The emulator; start with `BatchEmulator.start()`, end with `stop()`.

    `now` is its clock. `lose_creates` and `refuse_creates` are about the next so many submissions: the
    first are carried out and their responses lost, the others are refused with (status, type, message).
    With `garbage` everything is carried out and answered with these bytes.
    `faults` says by kind of control call (`upload`, `create`, `list`, `poll`, `results`, `cancel`) what
    comes instead of its answer, until it is taken out: a status (and nothing is done), `drop` (no response),
    `half` (the connection breaks in the middle of it), `cut` (its last bytes are missing, as in a file that
    is not whole), `empty` or `html` (such a body; all these after it was done).
    `objects` is the folder that stands for Vertex's `gs://bucket`.
    `hide_new` is for how many lists a new batch does not show up.
    """

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    lose_creates: int = 0
    lose_polls: int = 0
    lose_uploads: int = 0
    refuse_creates: list[tuple[int, str, str]] = field(default_factory=list)
    hide_new: int = 0
    text: Callable[[str], str] = lambda prompt: f"answer to {prompt}"
    batches: list[Batch] = field(default_factory=list)
    bill: Counter[str] = field(default_factory=Counter)
    online: Counter[str] = field(default_factory=Counter)
    seen: list[tuple[str, str]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    results_url: str | None = None
    redirect_to: str | None = None
    garbage: bytes | None = None
    faults: dict[str, int | str] = field(default_factory=dict)
    objects: Path = Path("/nonexistent")
    _files: dict[str, bytes] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _server: Any = None

    @classmethod
    def start(cls, **settings: Any) -> BatchEmulator:
        """One that listens at a free port of 127.0.0.1."""
        emulator = cls(**settings)
        handler = type("Handler", (_Handler,), {"emulator": emulator})
        emulator._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=emulator._server.serve_forever, args=(0.01,), daemon=True).start()
        return emulator

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def base_url(self, provider: str) -> str:
        """The base URL of a provider's API."""
        paths = {"openai": "/v1", "gemini": "/v1beta", "vertex": "/v1beta1", "anthropic": ""}
        return self.url + paths[provider]

    def of(self, provider: str) -> list[Batch]:
        """The batches that were made at a provider."""
        return [batch for batch in self.batches if batch.provider == provider]

    def finish(
        self,
        batch: Batch,
        ends: Callable[[str], str] = lambda _prompt: "succeeded",
        status: str | None = None,
        *,
        extra: tuple[dict[str, Any], ...] = (),
        backwards: bool = True,
    ) -> None:
        """End a batch: `ends` gives each prompt's end, and answers are billed.

        Ends are `succeeded`, `errored`, `invalid`, `expired`, `cancelled`, `missing` (no line comes),
        `missing_billed` (answered and billed, and no line comes) and `odd` (a line nobody understands).
        `extra` are further lines; `backwards` turns their order around.
        """
        with self._lock:
            make = _LINES[batch.provider]
            for custom_id, body in batch.requests.items():
                prompt = prompt_of(body)
                end = batch.ends[custom_id] = ends(prompt)
                if end in ("succeeded", "missing_billed"):
                    self.bill[prompt] += 1
                if not end.startswith("missing"):
                    batch.lines.append(make(custom_id, end, body, self.text(prompt)))
            batch.lines.extend(extra)
            if backwards:
                batch.lines.reverse()
            batch.status = status or _DONE[batch.provider]

    # What the handler asks for; each gives the payload, validated.

    def create(self, provider: str, requests: dict[str, Any], **values: Any) -> dict[str, Any]:
        if self.refuse_creates:
            status, kind, message = self.refuse_creates.pop(0)
            raise RefusedError(status, kind, message)
        batch = Batch(
            id=f"{_IDS[provider]}{len(self.batches):04d}",
            provider=provider,
            requests=requests,
            created_at=self.now(),
            status=_NEW.get(provider, "in_progress"),
            hidden_from_lists=self.hide_new,
            **values,
        )
        self.batches.append(batch)
        if self.lose_creates:
            self.lose_creates -= 1
            raise DroppedError
        return self.payload(batch)

    def payload(self, batch: Batch) -> dict[str, Any]:
        if batch.provider == "gemini":
            return batch_gemini.operation(batch)
        if batch.provider == "vertex":
            return batch_gemini.prediction_job(batch, self.objects)
        return _anthropic_batch(self, batch) if batch.provider == "anthropic" else _openai_batch(batch)

    def find(self, batch_id: str) -> Batch:
        for batch in self.batches:
            if batch.id == batch_id:
                return batch
        raise RefusedError(404, "not_found_error", f"no batch {batch_id}")

    def polled(self, batch_id: str) -> dict[str, Any]:
        if self.lose_polls:
            self.lose_polls -= 1
            raise DroppedError
        return self.payload(self.find(batch_id))

    def listed(self, provider: str, after: str | None, limit: int) -> list[Batch]:
        newest = list(reversed(self.of(provider)))
        shown = [batch for batch in newest if batch.hidden_from_lists <= 0]
        for batch in newest:
            batch.hidden_from_lists -= 1
        ids = [batch.id for batch in shown]
        start = ids.index(after) + 1 if after in ids else 0
        return shown[start : start + limit]

    def cancel(self, batch_id: str) -> dict[str, Any]:
        batch = self.find(batch_id)
        batch.cancel_asked = True
        words = {"anthropic": "canceling", "openai": "cancelling", "gemini": "BATCH_STATE_RUNNING"}
        batch.status = words.get(batch.provider, "JOB_STATE_CANCELLING")
        return {} if batch.provider in ("gemini", "vertex") else self.payload(batch)

    def upload(self, body: bytes, provider: str = "openai") -> dict[str, Any]:
        if self.lose_uploads:
            self.lose_uploads -= 1
            raise DroppedError
        start = body.index(b"{")
        content = body[start : body.rindex(b"}") + 1]
        file_id = f"{'files/' if provider == 'gemini' else 'file-'}{len(self._files):04d}"
        self._files[file_id] = content
        if provider == "gemini":
            return batch_gemini.uploaded(file_id, len(content), self.now())
        return _checked(
            openai.types.FileObject,
            {
                "id": file_id,
                "bytes": len(content),
                "created_at": int(self.now().timestamp()),
                "filename": "batch.jsonl",
                "object": "file",
                "purpose": "batch",
                "status": "processed",
            },
        )

    def openai_requests(self, file_id: str, endpoint: str) -> dict[str, Any]:
        """The requests of an uploaded file; like the provider, every line must be a whole one."""
        lines = [json.loads(line) for line in self._files[file_id].splitlines()]
        assert all(set(line) == {"custom_id", "method", "url", "body"} for line in lines)
        assert all((line["method"], line["url"]) == ("POST", endpoint) for line in lines)
        requests = {line["custom_id"]: line["body"] for line in lines}
        assert len(requests) == len(lines), "custom ids must be unique"
        return requests

    def gemini_requests(self, file_id: str) -> dict[str, Any]:
        """The requests of an uploaded file."""
        lines = [json.loads(line) for line in self._files[file_id].split(b"\n")]
        assert all(set(line) == {"key", "request"} for line in lines)
        assert len({line["key"] for line in lines}) == len(lines), "keys must be unique"
        return {line["key"]: line["request"] for line in lines}

    def file(self, file_id: str) -> bytes:
        batch = self.find(file_id.removeprefix("output-").removeprefix("error-"))
        wanted = file_id.startswith("output-")
        lines = [line for line in batch.lines if (line.get("response") is not None) == wanted]
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    def answer_online(self, provider: str, body: dict[str, Any]) -> dict[str, Any]:
        prompt = prompt_of(body)
        self.bill[prompt] += 1
        self.online[prompt] += 1
        return _ANSWERS[provider](body, self.text(prompt))


class RefusedError(Exception):
    """An error response."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.body = {"type": "error", "error": {"type": kind, "code": kind, "message": message}}


def prompt_of(body: dict[str, Any]) -> str:
    """The text that a request asks about, of whichever API."""
    if "contents" in body or "content" in body:
        return batch_gemini.prompt_of(body)
    if "input" in body:
        return body["input"]
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _checked(model: Any, payload: dict[str, Any]) -> dict[str, Any]:
    model.model_validate(payload)
    return payload


def _message(body: dict[str, Any], text: str) -> dict[str, Any]:
    return _checked(
        anthropic.types.Message,
        {
            "id": "msg_01",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [{"type": "text", "text": text, "citations": None}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": USAGE[0], "output_tokens": USAGE[1]},
        },
    )


def _completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return _checked(
        openai.types.chat.ChatCompletion,
        {
            "id": "chatcmpl-01",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": USAGE[0], "completion_tokens": USAGE[1], "total_tokens": sum(USAGE)},
        },
    )


def _embedding(body: dict[str, Any]) -> dict[str, Any]:
    """A vector that its text alone decides."""
    values = [float(len(body["input"])), *[0.5] * (body["dimensions"] - 1)]
    assert body["encoding_format"] == "base64"
    vector = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    payload = {
        "object": "list",
        "model": body["model"],
        "data": [{"object": "embedding", "index": 0, "embedding": values}],
        "usage": {"prompt_tokens": USAGE[0], "total_tokens": USAGE[0]},
    }
    _checked(openai.types.CreateEmbeddingResponse, payload)  # the type knows lists of numbers only
    return {**payload, "data": [{"object": "embedding", "index": 0, "embedding": vector}]}


def _openai_answer(body: dict[str, Any], text: str) -> dict[str, Any]:
    return _embedding(body) if "input" in body else _completion(body, text)


def _gemini_answer(body: dict[str, Any], text: str) -> dict[str, Any]:
    return batch_gemini.content(body, text, "gemini-x", USAGE)


def _gemini_line(custom_id: str, end: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    return batch_gemini.line(custom_id, end, _gemini_answer(body, text))


def _anthropic_line(custom_id: str, end: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    error = {"type": "overloaded_error", "message": "try again"}
    if end == "invalid":
        error = {"type": "invalid_request_error", "message": "max_tokens: too large"}
    results: dict[str, dict[str, Any]] = {
        "succeeded": {"type": "succeeded", "message": _message(body, text)},
        "errored": {"type": "errored", "error": {"type": "error", "error": error, "request_id": "req_1"}},
        "invalid": {"type": "errored", "error": {"type": "error", "error": error, "request_id": "req_1"}},
        "expired": {"type": "expired"},
        "cancelled": {"type": "canceled"},
    }
    if end == "odd":  # a type that no SDK knows yet
        return {"custom_id": custom_id, "result": {"type": "postponed"}}
    return _checked(MessageBatchIndividualResponse, {"custom_id": custom_id, "result": results[end]})


def _openai_line(custom_id: str, end: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    """A line of the output or error file; the SDK has no type for it, so its body alone is validated."""
    line: dict[str, Any] = {
        "id": f"batch_req_{custom_id}",
        "custom_id": custom_id,
        "response": None,
        "error": None,
    }
    if end == "succeeded":
        answer = _openai_answer(body, text)
        line["response"] = {"status_code": 200, "request_id": "req_1", "body": answer}
    elif end in ("errored", "invalid"):
        status, kind = (500, "server_error") if end == "errored" else (400, "invalid_request_error")
        error = {"message": f"{kind} happened", "type": kind, "param": None, "code": None}
        line["response"] = {"status_code": status, "request_id": "req_1", "body": {"error": error}}
    elif end in ("expired", "cancelled"):
        line["error"] = {"code": f"batch_{end}", "message": f"this request was not executed: batch {end}"}
    return line


def _anthropic_batch(emulator: BatchEmulator, batch: Batch) -> dict[str, Any]:
    ended = batch.status == "ended"
    names = {"errored": "errored", "invalid": "errored", "expired": "expired", "cancelled": "canceled"}
    counts = Counter(names.get(end, "succeeded") for end in batch.ends.values())
    total = len(batch.requests)
    url = emulator.results_url or f"{emulator.url}/v1/messages/batches/{batch.id}/results"
    payload = {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": batch.status,
        "request_counts": {
            "processing": 0 if ended else total,
            **{name: counts[name] for name in ("succeeded", "errored", "canceled", "expired")},
        },
        "created_at": batch.created_at.isoformat(),
        "expires_at": (batch.created_at + timedelta(hours=24)).isoformat(),
        "ended_at": emulator.now().isoformat() if ended else None,
        "cancel_initiated_at": emulator.now().isoformat() if batch.cancel_asked else None,
        "archived_at": None,
        "results_url": url if ended else None,
    }
    known = batch.status in ("in_progress", "canceling", "ended")
    MessageBatch.model_validate(payload if known else {**payload, "processing_status": "in_progress"})
    return payload


_OPENAI_STATUSES = (
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled",
)  # fmt: skip


def _openai_batch(batch: Batch) -> dict[str, Any]:
    has = {
        kind: any((line.get("response") is not None) == kind for line in batch.lines)
        for kind in (True, False)
    }
    failed = batch.status == "failed"
    payload = {
        "id": batch.id,
        "object": "batch",
        "completion_window": "24h",
        "created_at": int(batch.created_at.timestamp()),
        "endpoint": batch.endpoint,
        "input_file_id": batch.input_file_id,
        "status": batch.status,
        "output_file_id": f"output-{batch.id}" if has[True] else None,
        "error_file_id": f"error-{batch.id}" if has[False] else None,
        "errors": {
            "object": "list",
            "data": [{"code": "token_limit_exceeded", "message": "too many enqueued"}],
        }
        if failed
        else None,
        "metadata": batch.metadata,
        "request_counts": {
            "total": len(batch.requests),
            "completed": sum(end == "succeeded" for end in batch.ends.values()),
            "failed": sum(end != "succeeded" for end in batch.ends.values()),
        },
    }
    known = batch.status in _OPENAI_STATUSES
    openai.types.Batch.model_validate(payload if known else {**payload, "status": "in_progress"})
    return payload


ID_FIELDS = {"openai": "custom_id", "anthropic": "custom_id", "gemini": "key"}
"""What a result line says whose it is in."""


def _vertex_line(custom_id: str, end: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    return batch_gemini.prediction(custom_id, end, body, _gemini_answer(body, text))


_LINES = {
    "openai": _openai_line, "anthropic": _anthropic_line, "gemini": _gemini_line, "vertex": _vertex_line,
}  # fmt: skip
_NEW = {"gemini": "BATCH_STATE_PENDING", "vertex": "JOB_STATE_PENDING"}
_ANSWERS = {"openai": _openai_answer, "anthropic": _message, "gemini": _gemini_answer}
_IDS = {"openai": "batch_", "anthropic": "msgbatch_", "gemini": "batches/", "vertex": batch_gemini.JOBS}
_DONE = {"openai": "completed", "anthropic": "ended", "gemini": "BATCH_STATE_SUCCEEDED",
         "vertex": "JOB_STATE_SUCCEEDED"}  # fmt: skip
_KINDS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
    500: "api_error", 503: "overloaded_error",
}  # fmt: skip
_KEY_HEADERS = ("authorization", "x-api-key", "x-goog-api-key")


def kind_of(method: str, path: str) -> str:
    """Which control call it is; empty for a call online."""
    last = path.rpartition("/")[2]
    if method == "GET":
        if last in ("results", "content") or last.endswith(":download"):
            return "results"
        return "list" if last in ("batches", "batchPredictionJobs") else "poll"
    if last.endswith("cancel"):
        return "cancel"
    if last == "files":
        return "upload"
    return "create" if last == "batches" or "atch" in last else ""


class _Handler(BaseHTTPRequestHandler):
    emulator: BatchEmulator
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        emulator = self.emulator
        parts = urlsplit(self.path)
        self._headers: dict[str, str] = {}
        with emulator._lock:
            emulator.seen.append((self.command, parts.path))
            emulator.keys.update(self.headers.get(name) or "" for name in _KEY_HEADERS)
            fault = emulator.faults.get(kind_of(self.command, parts.path))
            try:
                if isinstance(fault, int):
                    raise RefusedError(fault, _KINDS[fault], f"control call refused with {fault}")
                status, payload = 200, self._route(parts.path, parse_qs(parts.query), body)
                if fault == "drop":
                    raise DroppedError
            except RefusedError as error:
                status, payload = error.status, error.body
                if "v1beta" in parts.path:
                    payload = batch_gemini.error(status, error.kind, str(error))
                    self._headers["x-goog-upload-status"] = "final"
            except DroppedError:
                self.close_connection = True
                return
        if emulator.redirect_to is not None:
            status = 307
            self._headers["location"] = f"{emulator.redirect_to}{self.path}"
        if emulator.garbage is not None:
            payload = emulator.garbage
        self._send(status, payload, fault)

    def _send(self, status: int, payload: Any, fault: int | str | None) -> None:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        payload = data if fault else payload
        data = {"empty": b"", "html": b"<html>later</html>", "cut": data[:-7]}.get(str(fault), data)
        self.send_response(status)
        self.send_header("content-type", "application/x-jsonl" if payload is data else "application/json")
        self.send_header("content-length", str(len(data)))
        for name, value in self._headers.items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "half":
            self.close_connection = True
            data = data[: len(data) // 2]
        self.wfile.write(data)

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        if path.startswith("/v1beta1/"):
            return self._route_vertex(path.removeprefix("/v1beta1/"), query, body)
        if "v1beta" in path:
            return self._route_gemini(path, query, body)
        return self._route_others(path, query, body)

    def _route_gemini(self, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        emulator = self.emulator
        segments = path.replace(":", "/:").strip("/").split("/")
        match [self.command, *segments]:
            case ["POST", "upload", "v1beta", "files"]:
                return self._upload(query, body)
            case ["POST", "v1beta", "models", _, ":generateContent" | ":embedContent"]:
                return emulator.answer_online("gemini", json.loads(body))
            case ["POST", "v1beta", "models", model, ":batchGenerateContent" | ":asyncBatchEmbedContent"]:
                asked = json.loads(body)["batch"]
                source = asked["inputConfig"]
                file_id = source.get("fileName") or source["file_name"]
                return emulator.create(
                    "gemini",
                    emulator.gemini_requests(file_id),
                    metadata={"displayName": asked["displayName"], "model": f"models/{model}"},
                    input_file_id=file_id,
                )
            case ["GET", "v1beta", "batches"]:
                token = query.get("pageToken", [None])[0]
                shown = emulator.listed("gemini", token, 2)
                more = shown[-1].id if len(shown) == 2 else None
                return batch_gemini.listing([emulator.payload(batch) for batch in shown], more)
            case ["GET", "v1beta", "files", name, ":download"]:
                lines = emulator.find(f"batches/{name.removeprefix('results-')}").lines
                return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            case ["POST", "v1beta", "batches", number, ":cancel"]:
                return emulator.cancel(f"batches/{number}")
            case ["GET", "v1beta", "batches", number]:
                return emulator.polled(f"batches/{number}")
        raise RefusedError(404, "not_found_error", f"no {self.command} {path}")

    def _route_vertex(self, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        emulator = self.emulator
        if path == batch_gemini.JOBS.rstrip("/"):
            if self.command == "POST":
                asked = json.loads(body)
                requests = batch_gemini.prediction_requests(asked, emulator.objects)
                return emulator.create("vertex", requests, metadata=batch_gemini.asked_of_a_job(asked))
            shown = emulator.listed("vertex", query.get("pageToken", [None])[0], 2)
            jobs = [emulator.payload(batch) for batch in shown]
            return batch_gemini.job_listing(jobs, shown[-1].id if len(shown) == 2 else None)
        if path.endswith(":cancel"):
            return emulator.cancel(path.removesuffix(":cancel"))
        return emulator.polled(path)

    def _upload(self, query: dict[str, list[str]], body: bytes) -> dict[str, Any]:
        """The resumable protocol: a first request gives an address, the file goes there."""
        command = self.headers["x-goog-upload-command"]
        if command == "start":
            self._headers["x-goog-upload-url"] = f"{self.emulator.url}/upload/v1beta/files?upload_id=1"
            return {}
        assert (command, query["upload_id"]) == ("upload, finalize", ["1"])
        self._headers["x-goog-upload-status"] = "final"
        return self.emulator.upload(body, "gemini")

    def _route_others(self, path: str, query: dict[str, list[str]], body: bytes) -> Any:  # noqa: C901
        emulator = self.emulator
        segments = path.strip("/").split("/")[1:]
        match [self.command, *segments]:
            case ["POST", "messages"]:
                return emulator.answer_online("anthropic", json.loads(body))
            case ["POST", "chat", "completions"] | ["POST", "embeddings"]:
                return emulator.answer_online("openai", json.loads(body))
            case ["POST", "files"]:
                return emulator.upload(body)
            case ["GET", "files", file_id, "content"]:
                return emulator.file(file_id)
            case ["POST", "batches"]:
                asked = json.loads(body)
                file_id = asked["input_file_id"]
                return emulator.create(
                    "openai",
                    emulator.openai_requests(file_id, asked["endpoint"]),
                    metadata=asked["metadata"],
                    input_file_id=file_id,
                    endpoint=asked["endpoint"],
                )
            case ["POST", "messages", "batches"]:
                listed = {each["custom_id"]: each["params"] for each in json.loads(body)["requests"]}
                return emulator.create("anthropic", listed)
            case ["GET", "batches"] | ["GET", "messages", "batches"]:
                return self._list("openai" if len(segments) == 1 else "anthropic", query)
            case ["GET", "messages", "batches", batch_id, "results"]:
                lines = emulator.find(batch_id).lines
                return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            case ["POST", *_, "batches", batch_id, "cancel"]:
                return emulator.cancel(batch_id)
            case ["GET", *_, "batches", batch_id]:
                return emulator.polled(batch_id)
        raise RefusedError(404, "not_found_error", f"no {self.command} {path}")

    def _list(self, provider: str, query: dict[str, list[str]]) -> dict[str, Any]:
        limit = min(int(query.get("limit", ["20"])[0]), 2)  # small pages, so that paging is seen to work
        after = query.get("after" if provider == "openai" else "after_id", [None])[0]
        shown = self.emulator.listed(provider, after, limit)
        payload: dict[str, Any] = {
            "data": [self.emulator.payload(batch) for batch in shown],
            "first_id": shown[0].id if shown else None,
            "last_id": shown[-1].id if shown else None,
            "has_more": len(shown) == limit,
        }
        return {"object": "list", **payload} if provider == "openai" else payload
