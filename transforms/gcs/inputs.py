"""Input files in Cloud Storage: finding them, and the ranges that reader processes ask for.

A reader process has no network and no credentials: whoever asked it to read a file hands it the ranges
that it wants of that one file.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice

from schemas.errors import StoreError
from transforms.gcs.objects import Fetch, ObjectInfo, split_address
from transforms.gcs.store import GcsStore
from transforms.probe_footers import Located

GENERATION_PREFIX = "gcs:"
BLOCK_BYTES = 4 << 20
"""What is fetched at a time: pages of a column are asked for a megabyte at a time, one after the other. A
file of that size at most comes whole, and is compared with its checksum."""

_BLOCKS = 8
_TAIL_BYTES = 64 << 10  # what pyarrow reads first of a file's end
MOST_END_BYTES = 256 << 10
"""Of a longer footer the reader asks for the rest when it comes to it."""

_GLOB = re.compile(r"[*?\[]")


def find_objects(uri: str) -> Iterator[ObjectInfo]:
    """The objects behind an input address, by name: one object, a folder's *.parquet, or a glob.

    What an address with a glob's signs names as it stands comes first, as on a disk.
    Their paths are whole gs:// addresses. Names that begin with `_` or `.` are left out of folders. They
    come as the listing's pages do: a long one is never in memory as a whole.
    """
    bucket, name = split_address(uri)
    store, root = store_of(f"gs://{bucket}"), f"gs://{bucket}/"
    found: Iterable[ObjectInfo] = _object_or_folder(store, name)
    if glob := _GLOB.search(name):
        as_it_stands = list(islice(found, 1))
        found = chain(as_it_stands, found if as_it_stands else _matching(store, name, glob.start()))
    return (ObjectInfo(f"{root}{o.path}", o.size, o.generation) for o in found)


def _matching(store: GcsStore, name: str, sign: int) -> Iterator[ObjectInfo]:
    """The objects that a glob matches; `sign` is where the first of its signs stands."""
    pattern = re.compile(_translate(name))
    folder = name[:sign].rpartition("/")[0]
    return (o for o in store.entries(folder) if pattern.fullmatch(o.path))


def _object_or_folder(store: GcsStore, name: str) -> Iterator[ObjectInfo]:
    if name:
        try:
            yield store.info(name)
            return
        except FileNotFoundError:
            pass
    yield from (o for o in store.entries(name) if _is_document_file(o.path, name))


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
            inside = piece[1:-1].replace("\\", "\\\\").replace("[", "\\[")
            out.append("[" + inside.replace("!", "^", piece[1] == "!") + "]")
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
            store, start = store_of(f"gs://{bucket}"), number * BLOCK_BYTES
            wanted = min(BLOCK_BYTES, found.size - start)
            if wanted == found.size:
                block = store.read_at(name, found.generation)
            else:
                block = store.read_range(name, start, wanted, found.generation)
            if len(block) != wanted:
                raise StoreError(f"{uri}: {len(block)} of {wanted} bytes came from {start} on")
            self._blocks[key] = block
        self._blocks.move_to_end(key)
        while len(self._blocks) > _BLOCKS:
            self._blocks.popitem(last=False)
        return block


class ObjectEnd:
    """A listed object whose end was fetched ahead, so that its footer is read without another request.

    `fetch` is that of a bucket: name, start, length, generation. Of a footer that does not fit into what
    is fetched first, the rest is fetched too, up to `MOST_END_BYTES`.
    """

    def __init__(self, found: ObjectInfo, fetch: Fetch) -> None:
        self._size, self._generation = found.size, found.generation
        self._fetch = fetch
        self._end = b""
        with suppress(StoreError, OSError):  # what can't be had is said when it is asked for
            first = min(_TAIL_BYTES, found.size)
            self._end = self._range(found.path, found.size - first, first)
            wanted = min(_footer_bytes(self._end), found.size)
            if first < wanted <= MOST_END_BYTES:
                self._end = self._range(found.path, found.size - wanted, wanted - first) + self._end

    def size(self, _uri: str) -> int:
        """The size of the object."""
        return self._size

    def fetch(self, uri: str, start: int, length: int) -> bytes:
        """A range, of the end that was fetched if it lies in it; see `Ranges.fetch`."""
        end = min(start + length, self._size)
        before = self._size - len(self._end)
        if self._end and start >= before:
            return self._end[start - before : end - before]
        return self._range(uri, start, end - start)

    def _range(self, uri: str, start: int, length: int) -> bytes:
        data = self._fetch(split_address(uri)[1], start, length, self._generation)
        if len(data) != length:
            raise StoreError(f"{uri}: {len(data)} of {length} bytes came from {start} on")
        return data


def locate_in(fetch: Fetch) -> Callable[[ObjectInfo], Located | str]:
    """Fetches the ends of listed objects of a bucket, for `transforms.files.describe`."""

    def locate(found: ObjectInfo) -> Located | str:
        if not found.size:
            return f"{found.path}: the object is empty (0 bytes)"
        generation = f"{GENERATION_PREFIX}{found.generation}"
        return Located(found.path, found.size, generation, elsewhere=ObjectEnd(found, fetch))

    return locate


def _footer_bytes(end: bytes) -> int:
    """How long a Parquet file says that its footer is, with what stands behind it; 0 if it is none.

    https://parquet.apache.org/docs/file-format/: four bytes of length, little endian, and `PAR1`.
    """
    return 8 + int.from_bytes(end[-8:-4], "little") if end[-4:] == b"PAR1" and len(end) >= 8 else 0
