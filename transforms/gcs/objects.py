"""Objects of Cloud Storage: their addresses, what a listing says of them, their checksums, their ranges."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import google_crc32c

from schemas.errors import StoreError

Fetch = Callable[[str, int, int, str], bytes]
"""Path, start, length and generation in, bytes out."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing shows it: path in its store, size in bytes, generation, checksum in base64."""

    path: str
    size: int
    generation: str
    crc32c: str = ""


def split_address(address: str) -> tuple[str, str]:
    """Bucket and object name (or prefix, without a slash at its end) of a gs:// address.

    Raises:
        StoreError: it names no bucket, or has an empty or relative part.
    """
    bucket, _, name = address.removeprefix("gs://").partition("/")
    name = name.rstrip("/")
    parts = name.split("/") if name else []
    if not address.startswith("gs://") or not bucket or any(part in ("", ".", "..") for part in parts):
        raise StoreError(f"{address!r} is no address in Cloud Storage: give gs://BUCKET/FOLDER")
    return bucket, name


class Ranges(io.RawIOBase):
    """One generation of a large object, read by ranges."""

    def __init__(self, fetch: Fetch, found: ObjectInfo) -> None:
        super().__init__()
        self._fetch = fetch
        self._found = found
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._found.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._found.size - self._position)
        if length <= 0:
            return 0
        data = self._fetch(self._found.path, self._position, length, self._found.generation)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def crc32c_of(data: bytes) -> str:
    """CRC32C as Cloud Storage writes it: base64 of four bytes, big endian."""
    value: int = google_crc32c.value(data)
    return base64.b64encode(value.to_bytes(4, "big")).decode()
