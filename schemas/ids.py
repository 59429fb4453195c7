"""Identifiers and digests: pure functions, the same input always gives the same id."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

BATCH_ID_VERSION = "batch/1"
_KEY_SUM_MODULUS = 1 << 128


def sha256_hex(data: bytes | memoryview) -> str:
    """SHA-256 of `data`, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def batch_id(uri: str, generation: str, row_group: int, first_row: int, row_count: int) -> str:
    """The id of a batch: 32 hexadecimal digits, derived from where its rows stand and nothing else."""
    return next(batch_ids(uri, generation, row_group, [(first_row, row_count)])).hex()


def batch_ids(uri: str, generation: str, row_group: int, rows: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The ids of batches of one row group, given first row and number of rows of each, as 16 bytes."""
    parts = (BATCH_ID_VERSION, uri, generation, str(row_group), "")
    place = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass"))
    for first_row, row_count in rows:
        digest = place.copy()
        digest.update(b"%d\0%d" % (first_row, row_count))
        yield digest.digest()[:16]


def row_key(row_group_row: int, route: str) -> int:
    """128-bit key of one (row, route) pair of a batch, for `key_sum`."""
    digest = hashlib.sha256(f"{row_group_row}\0{route}".encode()).digest()
    return int.from_bytes(digest[:16], "big")


def key_sum(keys: Iterable[int]) -> int:
    """Order-free sum of keys modulo 2**128: equal for equal multisets, whatever their order."""
    return sum(keys) % _KEY_SUM_MODULUS


def new_run_id(now: datetime) -> str:
    """A fresh run id that sorts by start time, for example `20261122T091500123Z-1f3a9c`."""
    return f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}Z-{secrets.token_hex(3)}"


def stable_fraction(document_id: str, salt: str) -> float:
    """A number in [0, 1) that depends on the document id and the salt alone, for weighted splits."""
    digest = hashlib.sha256(f"{salt}\0{document_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / float(1 << 56)
