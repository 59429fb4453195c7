"""The PyPI package `gcp-storage-emulator` made strict: a stand-in for Cloud Storage where Go is not at hand.

As it comes, version 2022.6.11 to 2026 ignores every generation precondition (of sixteen "create-only"
writers sixteen win), knows one generation of reads, no pages in listings and no 416. This adds:

- `ifGenerationMatch` on uploads (resumable ones when they end, too), copies, rewrites, reads and deletes;
- `generation` on reads: another one is 404;
- `pageToken`, `maxResults` and sorting in listings; 416 for ranges behind the end;
- multipart bodies taken byte by byte (the package parses them as mail), keep-alive, threads under one lock;
- `x-goog-generation` and `x-goog-hash` on downloads, of ranges without the hash.

Where it still differs from Cloud Storage: one process in memory, no credentials, no quotas, no soft delete,
no versions of an object besides the live one, and the whole service stands still during an operation.

`python -m tests.peers.strict_gcs PORT` serves until its standard input is closed.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import threading
from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

_LOCK = threading.RLock()
_EXPECTED: dict[str, tuple[str, str, int]] = {}  # of resumable uploads: bucket, name, generation
_PART = re.compile(rb"\r\n\r\n")


def _query(request: Any, key: str) -> str | None:
    return (request.query.get(key) or [None])[0]


def _generation(storage: Any, bucket: str, name: str) -> int:
    try:
        return int(storage.get_file_obj(bucket, name)["generation"])
    except NotFound:
        return 0


def _refuse(response: Any, code: HTTPStatus, reason: str) -> None:
    response.status = code
    response.json({"error": {"code": int(code), "message": reason, "errors": [{"reason": reason}]}})


def _target(kind: str, request: Any) -> tuple[str, str]:
    """Bucket and name of the object that a precondition is about."""
    params = request.params
    if kind in ("copy", "rewrite"):
        return params["dest_bucket_name"], params["dest_object_id"]
    if kind == "insert":
        data = request.data if isinstance(request.data, dict) else {}
        return params["bucket_name"], _query(request, "name") or data.get("meta", data)["name"]
    return params["bucket_name"], params["object_id"]


def _guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler that heeds preconditions and generations, one at a time."""
    kind = handler.__name__

    @wraps(handler)
    def guarded(request: Any, response: Any, storage: Any) -> None:
        request.data  # noqa: B018 - the body must be drained whatever comes of it
        with _LOCK:
            expected, place = _expectation(kind, request)
            if expected is not None and _generation(storage, *place) != expected:
                _refuse(response, HTTPStatus.PRECONDITION_FAILED, "conditionNotMet")
                return
            wanted = _query(request, "generation") if kind in ("get", "download", "delete") else None
            if wanted is not None and _generation(storage, *_target(kind, request)) != int(wanted):
                _refuse(response, HTTPStatus.NOT_FOUND, "No such object")
                return
            handler(request, response, storage)
            if kind == "insert" and _query(request, "uploadType") == "resumable":
                _remember_upload(request, response)
            if _query(request, "alt") == "media" or kind == "download":
                _finish_download(request, response, storage)

    return guarded


def _expectation(kind: str, request: Any) -> tuple[int | None, tuple[str, str]]:
    if kind == "upload_partial":
        found = _EXPECTED.get(str(_query(request, "upload_id")))
        return (None, ("", "")) if found is None else (found[2], found[:2])
    value = _query(request, "ifGenerationMatch")
    return (None, ("", "")) if value is None else (int(value), _target(kind, request))


def _remember_upload(request: Any, response: Any) -> None:
    upload = parse_qs(urlparse(response["Location"]).query)["upload_id"][0]
    value = _query(request, "ifGenerationMatch")
    if value is not None:
        _EXPECTED[upload] = (*_target("insert", request), int(value))


def _finish_download(request: Any, response: Any, storage: Any) -> None:
    if response.status.value >= 300:
        return
    found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
    response["X-Goog-Generation"] = str(found["generation"])
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        span, total = response["Content-Range"].split()[1].split("/")
        if int(span.split("-")[0]) >= int(total):
            response.status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            response.write_file(b"")


def _list(request: Any, response: Any, storage: Any) -> None:
    with _LOCK:
        objects.ls(request, response, storage)
    if response.status != HTTPStatus.OK:
        return
    found = json.loads(response._content)
    entries = [(item["name"], item) for item in found["items"]]
    entries += [(prefix, None) for prefix in found.get("prefixes") or ()]
    entries.sort(key=lambda entry: entry[0].encode())
    token = _query(request, "pageToken")
    if token:
        last = base64.urlsafe_b64decode(token).decode()
        entries = [entry for entry in entries if entry[0] > last]
    size = int(_query(request, "maxResults") or 1000)
    page = {
        "kind": "storage#objects",
        "items": [item for _, item in entries[:size] if item is not None],
        "prefixes": [name for name, item in entries[:size] if item is None],
    }
    if len(entries) > size:
        page["nextPageToken"] = base64.urlsafe_b64encode(entries[size - 1][0].encode()).decode()
    response.json(page)


def _read_data(handler: Any, query: Any) -> Any:
    kind = handler.headers.get("Content-Type") or ""
    if not kind.startswith("multipart/related"):
        return _PACKAGE_READS(handler, query)
    body = server._read_raw_data(handler)
    mark = b"--" + kind.split("boundary=")[1].strip("\"'").encode()
    parts = body.split(mark)  # the client's mark is random: no content holds it
    meta, content = (_PART.split(part, 1)[1].removesuffix(b"\r\n") for part in parts[1:3])
    return {"meta": json.loads(meta), "content": content, "content-type": "application/octet-stream"}


_PACKAGE_READS = server._read_data


def install() -> None:
    """Make the package strict, in this process."""
    strict = []
    for pattern, handlers in server.HANDLERS:
        checked = {}
        for method, handler in handlers.items():
            is_of_objects = getattr(handler, "__module__", "") == objects.__name__
            checked[method] = (
                _list if handler is objects.ls else _guarded(handler) if is_of_objects else handler
            )
        strict.append((pattern, checked))
    server.HANDLERS = tuple(strict)
    server._read_data = _read_data
    server.server.HTTPServer = ThreadingHTTPServer
    server.RequestHandler.protocol_version = "HTTP/1.1"
    server.RequestHandler.wbufsize = -1
    server.RequestHandler.disable_nagle_algorithm = True


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    install()
    with server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True):
        print("ready", flush=True)
        sys.stdin.read()
