"""Objects of Cloud Storage: their addresses, what a listing says of them, their checksums."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

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


def crc32c_of(data: bytes) -> str:
    """CRC32C as Cloud Storage writes it: base64 of four bytes, big endian."""
    value: int = google_crc32c.value(data)
    return base64.b64encode(value.to_bytes(4, "big")).decode()
