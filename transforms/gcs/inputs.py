"""Input files in Cloud Storage: finding them, and the ranges that reader processes ask for.

A reader process has no network and no credentials: whoever asked it to read a file hands it the ranges
that it wants of that one file.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from schemas.errors import StoreError
from transforms.gcs.objects import ObjectInfo, split_address
from transforms.gcs.store import GcsStore

GENERATION_PREFIX = "gcs:"
BLOCK_BYTES = 4 << 20
"""What is fetched at a time: pages of a column are asked for a megabyte at a time, one after the other."""

_BLOCKS = 8
_TAIL_BYTES = 64 << 10  # what pyarrow reads first of a file's end
_MOST_TAILS = 256
_AT_ONCE = 32
_GLOB = re.compile(r"[*?\[]")


def find_objects(uri: str) -> list[ObjectInfo]:
    """The objects behind an input address, by name: one object, a folder's *.parquet, or a glob.

    Their paths are whole gs:// addresses. Names that begin with `_` or `.` are left out of folders.
    """
    bucket, name = split_address(uri)
    store, root = store_of(f"gs://{bucket}"), f"gs://{bucket}/"
    if _GLOB.search(name):
        fixed = name[: _GLOB.search(name).start()].rpartition("/")[0]  # type: ignore[union-attr]
        pattern = re.compile(_translate(name))
        found: Iterable[ObjectInfo] = (o for o in store.entries(fixed) if pattern.fullmatch(o.path))
    else:
        try:
            found = [store.info(name)] if name else []
        except FileNotFoundError:
            found = []
        found = found or [o for o in store.entries(name) if _is_document_file(o.path, name)]
    return [ObjectInfo(f"{root}{o.path}", o.size, o.generation) for o in found]


def _is_document_file(path: str, folder: str) -> bool:
    inside = path.removeprefix(folder).strip("/").split("/")
    return path.endswith(".parquet") and not any(part.startswith(("_", ".")) for part in inside)


def _translate(pattern: str) -> str:
    """A glob as a regular expression: `**/` spans folders, `*` and `?` stay within one."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    out = []
    for piece in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", pattern, re.DOTALL):
        if piece in parts:
            out.append(parts[piece])
        elif len(piece) > 1:
            out.append("[" + piece[1:-1].replace("\\", "\\\\").replace("!", "^", piece[1] == "!") + "]")
        else:
            out.append(re.escape(piece))
    return "".join(out)


def store_of(address: str) -> GcsStore:
    """The store of a bucket; connections are the process's."""
    return GcsStore(address)


def info_of(uri: str) -> ObjectInfo:
    """Size and generation of an object now; FileNotFoundError if it is not there."""
    bucket, name = split_address(uri)
    return store_of(f"gs://{bucket}").info(name)


class Ranges:
    """Ranges of objects, all of one generation of each. One for each reader; used by one thread at a time.

    A few blocks are kept: neighbouring columns and batches ask for the same ones.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, ObjectInfo] = OrderedDict()
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def fix(self, uri: str, size: int, generation: str) -> None:
        """Say which generation of an object is read; any other is not there."""
        self._known[uri] = ObjectInfo(uri, size, generation)
        self._known.move_to_end(uri)
        while len(self._known) > _BLOCKS:
            self._known.popitem(last=False)

    def size(self, uri: str) -> int:
        """The size of an object, whose generation is fixed from here on."""
        if uri not in self._known:
            found = info_of(uri)
            self.fix(uri, found.size, found.generation)
        return self._known[uri].size

    def fetch(self, uri: str, start: int, length: int) -> bytes:
        """A range; shorter at the object's end.

        Raises:
            FileNotFoundError: it is not there any more, or was replaced.
            StoreError: it can't be read.
        """
        end = min(start + length, self.size(uri))
        pieces = []
        for number in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            block = self._block(uri, number)
            first = number * BLOCK_BYTES
            pieces.append(block[max(0, start - first) : end - first])
        return b"".join(pieces)

    def _block(self, uri: str, number: int) -> bytes:
        found = self._known[uri]
        key = (f"{uri}#{found.generation}", number)
        block = self._blocks.get(key)
        if block is None:
            bucket, name = split_address(uri)
            start = number * BLOCK_BYTES
            wanted = min(BLOCK_BYTES, found.size - start)
            block = store_of(f"gs://{bucket}").read_range(name, start, wanted, found.generation)
            if len(block) != wanted:
                raise StoreError(f"{uri}: {len(block)} of {wanted} bytes came from {start} on")
            self._blocks[key] = block
        self._blocks.move_to_end(key)
        while len(self._blocks) > _BLOCKS:
            self._blocks.popitem(last=False)
        return block


class Tails:
    """The ends of many objects, fetched side by side before their footers are read one by one."""

    def __init__(self, objects: Iterable[ObjectInfo]) -> None:
        self._objects = {found.path: found for found in objects}
        self._tails: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def prepare(self, uris: Iterable[str]) -> None:
        """Fetch the ends of some of them; what can't be had is said when it is asked for."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            fetched = dict(pool.map(self._tail, uris))
        with self._lock:
            if len(self._tails) > _MOST_TAILS * _AT_ONCE:
                self._tails.clear()
            self._tails.update({uri: tail for uri, tail in fetched.items() if tail is not None})

    def _tail(self, uri: str) -> tuple[str, bytes | None]:
        size = self._objects[uri].size
        start = max(0, size - _TAIL_BYTES)
        try:
            return uri, self._range(uri, start, size - start)
        except (StoreError, OSError):
            return uri, None

    def size(self, uri: str) -> int:
        """The size of an object."""
        return self._objects[uri].size

    def fetch(self, uri: str, start: int, length: int) -> bytes:
        """A range, of the end that was prepared if it lies in it; see `Ranges.fetch`."""
        size = self._objects[uri].size
        end = min(start + length, size)
        tail = self._tails.get(uri)
        if tail is not None and start >= size - len(tail):
            return tail[start - size + len(tail) : end - size + len(tail)]
        return self._range(uri, start, end - start)

    def _range(self, uri: str, start: int, length: int) -> bytes:
        bucket, name = split_address(uri)
        return store_of(f"gs://{bucket}").read_range(name, start, length, self._objects[uri].generation)
