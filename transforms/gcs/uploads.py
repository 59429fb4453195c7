"""One try at uploading an object, and whether it arrived as it was sent."""

from __future__ import annotations

import base64
import hashlib
import io
from http import HTTPStatus
from typing import Any

from google.api_core import exceptions as api
from google.cloud.storage.retry import DEFAULT_RETRY

from schemas.errors import StoreError
from transforms.gcs.client import ChecksumError, Patience, SessionLostError, UploadRefusedError
from transforms.gcs.objects import crc32c_of

WHOLE_BYTES = 8 << 20
"""Objects up to this size go and come in one piece. Larger ones are uploaded resumably, in chunks of this
size, and read by ranges."""

_OF_A_SESSION = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


class StoredDamagedError(ChecksumError):
    """An object of ours lies there, at `generation`, and is not what was sent."""

    def __init__(self, where: str, generation: int) -> None:
        super().__init__(f"{where}: what was stored is not what was sent (CRC32C differs)")
        self.generation = generation


def upload(blob: Any, data: bytes, expected: int, patience: Patience) -> str:
    """Upload an object if it is at generation `expected` (0: not there); its new generation.

    The service compares the content with the CRC32C that it is told. An interrupted chunk of a large object
    is sent again, and nothing before it.

    Raises:
        UploadRefusedError, SessionLostError: the same upload may be begun anew.
        StoredDamagedError: a service that compares nothing has stored something else.
        GoogleAPICallError: what else the service says.
    """
    where = f"gs://{blob.bucket.name}/{blob.name}"
    checksum, large = crc32c_of(data), len(data) > WHOLE_BYTES
    if large:
        blob.chunk_size = WHOLE_BYTES
    try:
        blob.upload_from_file(
            io.BytesIO(data),
            size=len(data),
            content_type="application/octet-stream",
            if_generation_match=expected,
            # What the library finds damaged at the end of a resumable upload, it would delete by its name,
            # whoever's object that is by then.
            checksum=None if large else "crc32c",
            crc32c_checksum_value=checksum if large else None,
            retry=DEFAULT_RETRY.with_timeout(patience.total_s) if large else None,
            timeout=patience.timeout,
        )
    except api.GoogleAPICallError as error:
        passing = _passing(where, error)
        if passing is None:
            raise
        raise passing from error
    if blob.crc32c != checksum:
        raise StoredDamagedError(where, int(blob.generation))
    return str(blob.generation)


def _passing(where: str, error: api.GoogleAPICallError) -> StoreError | None:
    """What an answer means after which an upload may be begun anew; None for any other.

    Content that has another checksum than was said is answered with 400, a session that is gone with 404 or
    410, a chunk that is of no use because an earlier try of it had come through with 400. Sources:
    https://cloud.google.com/storage/docs/data-validation and .../docs/resumable-uploads.
    """
    said = str(error)
    if error.code == HTTPStatus.BAD_REQUEST and "crc32c" in said.lower():
        return UploadRefusedError(f"{where}: what came there is not what was sent (CRC32C differs)")
    if error.code in _OF_A_SESSION and "upload_id=" in said:
        return SessionLostError(f"{where}: the session of the upload is gone, or out of step")
    return None


def holds(blob: Any, data: bytes) -> bool:
    """Whether an object, as the service describes it, has just these bytes."""
    digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    same = (blob.size, blob.crc32c) == (len(data), crc32c_of(data))
    return same and blob.md5_hash in (None, digest)
