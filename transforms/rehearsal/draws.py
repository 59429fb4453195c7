"""Chance that is none: numbers that depend on a key and a label alone, so that a rehearsal repeats itself."""

from __future__ import annotations

from hashlib import blake2b

KEY_BYTES = 16


def request_key(seed: int, path: str, body: bytes) -> bytes:
    """The 16 bytes that everything about one request is drawn from."""
    digest = blake2b(f"{seed}\0{path}\0".encode(), digest_size=KEY_BYTES)
    digest.update(body)
    return digest.digest()


def draw(key: bytes, label: str) -> int:
    """A number in [0, 2**64)."""
    return int.from_bytes(blake2b(label.encode(), key=key, digest_size=8).digest(), "big")


def fraction(key: bytes, label: str) -> float:
    """A number in [0, 1)."""
    return (draw(key, label) >> 11) / float(1 << 53)


def token(key: bytes, label: str, length: int) -> str:
    """`length` hexadecimal digits (at most 64), for ids as providers give them."""
    return blake2b(label.encode(), key=key, digest_size=32).hexdigest()[:length]
