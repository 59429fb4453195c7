"""Objects in a bucket that is nowhere: listed, and fetched by ranges that are counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator

from transforms.gcs.objects import ObjectInfo

BUCKET = "gs://bucket"


class Objects:
    """`count` objects, each with the bytes that `data` gives for its number.

    `requests` counts the ranges that were asked for of each name, `most_at_once` how many of them were under
    way at the same time; `before` is called within each.
    """

    def __init__(
        self, count: int, data: Callable[[int], bytes], before: Callable[[int], object] = lambda number: None
    ) -> None:
        self._count = count
        self._data = data
        self._before = before
        self._guard = threading.Lock()
        self._at_once = 0
        self.most_at_once = 0
        self.listed = 0
        self.requests: Counter[str] = Counter()

    def list(self) -> Iterator[ObjectInfo]:
        """As a listing shows them, one after the other."""
        for number in range(self._count):
            self.listed = number + 1
            yield ObjectInfo(f"{BUCKET}/in/{number:07}.parquet", len(self._data(number)), str(number + 1))

    def fetch(self, name: str, start: int, length: int, generation: str) -> bytes:
        """A range of an object, as `GcsStore.read_range` gives it."""
        number = int(name.removeprefix("in/").removesuffix(".parquet"))
        assert generation == str(number + 1)
        with self._guard:
            self.requests[name] += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self._before(number)
            return self._data(number)[start : start + length]
        finally:
            with self._guard:
                self._at_once -= 1
