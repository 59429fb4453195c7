"""A file whose bytes are fetched by ranges, to be read at random."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

FetchRange = Callable[[int, int], bytes]
"""Start and length in, that many bytes out."""


class RangesFile(io.RawIOBase):
    """A file of `size` bytes; every read that is not empty is one `fetch`."""

    def __init__(self, fetch: FetchRange, size: int) -> None:
        super().__init__()
        self._fetch = fetch
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        data = self._fetch(self._position, wanted)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """What is left, in one range: io's own way asks for 8 KiB at a time."""
        return b"".join(iter(self.read, b""))

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
