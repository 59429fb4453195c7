"""A `Store` in a bucket of Google Cloud Storage, by generation preconditions.

What may be tried again, and what a lost acknowledgement means:

- reads and listings: always;
- `create` (only if there is no such object) and `swap` (only at a generation): a further try that finds the
  precondition gone compares what is there with what was sent. The same bytes: the first try had succeeded.
  So whoever must know that an object is his own puts something of his own in it;
- `publish` and `delete`: always, they are idempotent.

Every upload carries its CRC32C: the service refuses content that has changed on its way, which is sent again.
What it says it has stored is compared besides, and replaced if it is not what was sent. Every whole object
that is read is compared with the service's CRC32C; of ranges there is none.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from google.api_core import exceptions as api

from schemas.errors import PreconditionFailedError, StoreError
from transforms.gcs.client import ChecksumError, Patience, is_refused, is_transient, open_client, trouble
from transforms.gcs.objects import ObjectInfo, crc32c_of, split_address
from transforms.gcs.uploads import WHOLE_BYTES, StoredDamagedError, holds, upload
from transforms.ranges import RangesFile

_RANGE_BYTES = 1 << 20
T = TypeVar("T")


class GcsStore:
    """See the module. Thread-safe. Paths are below `gs://bucket/prefix`."""

    def __init__(self, root: str, *, patience: Patience | None = None, page_size: int = 1000) -> None:
        name, prefix = split_address(root)
        self.root = root.rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._patience = patience or Patience.configured()
        self._page_size = page_size
        self._client = open_client()
        self._bucket = self._client.bucket(name)

    def read(self, path: str) -> bytes:
        """See `Store`."""
        return self.read_versioned(path)[0]

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        """See `Store`."""
        return self._try(path, lambda: self._download(path))

    def read_at(self, path: str, generation: str) -> bytes:
        """The bytes of an object that is at `generation`, compared with its CRC32C.

        Raises:
            FileNotFoundError: it is not there, or at another generation.
        """
        return self._try(path, lambda: self._download(path, int(generation)))[0]

    def read_range(self, path: str, start: int, length: int, generation: str) -> bytes:
        """Bytes `start` to `start + length` of an object that is at `generation`; fewer at its end.

        Raises:
            FileNotFoundError: it is not there, or at another generation.
        """
        blob = self._bucket.blob(self._prefix + path, generation=int(generation))

        def fetch() -> bytes:
            found: bytes = blob.download_as_bytes(
                start=start,
                end=start + length - 1,
                raw_download=True,
                checksum=None,
                retry=None,
                timeout=self._patience.timeout,
            )
            if len(found) > length:
                raise ChecksumError(f"{self._shown(path)}: {len(found)} bytes came, {length} were asked for")
            return found

        return self._try(path, fetch)

    def info(self, path: str) -> ObjectInfo:
        """Size and generation of an object; FileNotFoundError if there is none."""
        return _info(self._try(path, lambda: self._reload(path)), path)

    def exists(self, path: str) -> bool:
        """See `Store`."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def create(self, path: str, data: bytes) -> bool:
        """See `Store` and the module."""
        return self._write(path, data, 0) is not None

    def swap(self, path: str, data: bytes, generation: str) -> str:
        """See `Store` and the module."""
        following = self._write(path, data, int(generation))
        if following is None:
            raise PreconditionFailedError(f"{self._shown(path)} is no longer at {generation}")
        return following

    def stage(self, path: str) -> IO[bytes]:
        """See `Store`; what is written is uploaded by `finish`."""
        return _Staged(path)

    def finish(self, stream: IO[bytes]) -> None:
        """See `Store`.

        Raises:
            StoreError: another writer has used the name.
        """
        assert isinstance(stream, _Staged)
        if not self.create(stream.path, stream.getvalue()):
            raise StoreError(f"{self._shown(stream.path)} is there already: the name was used twice")
        stream.close()

    def publish(self, staged: str, final: str) -> None:
        """See `Store`: a copy on the server, only if there is no such object, then the staged one goes."""
        try:
            self._try(staged, lambda: self._copy(staged, final))
        except FileNotFoundError:
            if not self.exists(final):
                raise StoreError(
                    f"{self._shown(final)} can't be published: neither it nor its staged part "
                    f"{self._shown(staged)} exists. A committed part was deleted by hand; restore it, or use "
                    "a new output folder"
                ) from None
            return
        self.delete(staged)

    def open(self, path: str) -> IO[bytes]:
        """See `Store`: small objects whole and checked, large ones by ranges of one generation."""
        found = self.info(path)
        if found.size <= WHOLE_BYTES:
            return io.BytesIO(self.read(path))

        def fetch(start: int, length: int) -> bytes:
            return self.read_range(found.path, start, length, found.generation)

        return io.BufferedReader(RangesFile(fetch, found.size), _RANGE_BYTES)

    def list(self, prefix: str) -> Iterator[str]:
        """See `Store`."""
        for found in self.entries(prefix):
            yield found.path

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects under a folder, page by page, sorted by name."""
        for blob in self._pages(prefix, None, "items(name,size,generation,crc32c),nextPageToken"):
            for item in blob:
                yield _info(item, item.name.removeprefix(self._prefix))

    def folders(self, prefix: str) -> Iterator[str]:
        """See `Store`."""
        pages = self._pages(prefix, "/", "prefixes,nextPageToken")
        for page in pages:
            for name in page.prefixes:
                yield name.rstrip("/").rsplit("/", 1)[1]

    def delete(self, path: str) -> None:
        """See `Store`."""
        blob = self._bucket.blob(self._prefix + path)
        try:
            self._try(path, lambda: blob.delete(retry=None, timeout=self._patience.timeout))
        except FileNotFoundError:
            return

    def prune(self, prefix: str) -> None:
        """See `Store`: there are no folders here."""

    def _shown(self, path: str) -> str:
        return f"{self.root}/{path}"

    def _try(self, path: str, work: Callable[[], T]) -> T:
        """Do something with retries; FileNotFoundError for an object that is not there."""
        try:
            return self._patience.retry(work)
        except api.NotFound as error:
            if "bucket does not exist" in str(error):
                raise trouble(self._shown(path), error) from None
            raise FileNotFoundError(f"{self._shown(path)} is not there") from None
        except Exception as error:
            raise trouble(self._shown(path), error) from error

    def _download(self, path: str, generation: int | None = None) -> tuple[bytes, str]:
        blob = self._bucket.blob(self._prefix + path, generation=generation)
        data: bytes = blob.download_as_bytes(
            raw_download=True, checksum=None, retry=None, timeout=self._patience.timeout
        )
        if not blob.crc32c or not blob.generation:  # not every answer says them
            generation = blob.generation
            blob.reload(retry=None, timeout=self._patience.timeout)
            if generation and str(generation) != str(blob.generation):
                raise ChecksumError(f"{self._shown(path)} changed while it was read")
        if blob.crc32c != crc32c_of(data):
            raise ChecksumError(f"{self._shown(path)}: what came is not what is stored (CRC32C differs)")
        return data, str(blob.generation)

    def _reload(self, path: str) -> Any:
        blob = self._bucket.blob(self._prefix + path)
        blob.reload(retry=None, timeout=self._patience.timeout)
        return blob

    def _write(self, path: str, data: bytes, expected: int) -> str | None:
        """The new generation; None if the object is at another than `expected` (0: must not be there)."""
        at, unsure = expected, len(data) > WHOLE_BYTES  # whose chunks the library has tried more than once

        def attempt() -> str | None:
            nonlocal unsure, at
            try:
                return upload(self._bucket.blob(self._prefix + path), data, at, self._patience)
            except api.PreconditionFailed:
                return self._generation_if_same(path, data) if unsure else None
            except StoredDamagedError as error:
                at = error.generation  # it is ours, and the next try goes over it
                raise
            except Exception as error:
                unsure = unsure or (is_transient(error) and not is_refused(error))
                raise

        try:
            return self._try(path, attempt)
        except FileNotFoundError:
            if expected:
                return None  # an object that is gone is at no generation
            raise StoreError(f"{self._shown(path)} can't be written: there is no such bucket") from None

    def _generation_if_same(self, path: str, data: bytes) -> str | None:
        """The object's generation if it holds just these bytes: an earlier try had written it."""
        blob = self._bucket.blob(self._prefix + path)
        try:
            blob.reload(retry=None, timeout=self._patience.timeout)
        except api.NotFound:
            return None
        return str(blob.generation) if holds(blob, data) else None

    def _copy(self, staged: str, final: str) -> None:
        source = self._bucket.blob(self._prefix + staged)
        target = self._bucket.blob(self._prefix + final)
        token = None
        try:
            while True:  # large copies between locations come in steps
                token, _, _ = target.rewrite(
                    source, token=token, if_generation_match=0, retry=None, timeout=self._patience.timeout
                )
                if token is None:
                    return
        except api.PreconditionFailed:
            return  # whoever came first published the same part

    def _pages(self, prefix: str, delimiter: str | None, fields: str) -> Iterator[Any]:
        folder = f"{self._prefix}{prefix}/" if prefix else self._prefix
        token: str | None = None

        def page() -> tuple[Any, str | None]:
            found = self._client.list_blobs(
                self._bucket,
                prefix=folder or None,
                delimiter=delimiter,
                page_size=self._page_size,
                page_token=token,
                fields=fields,
                retry=None,
                timeout=self._patience.timeout,
            )
            return next(found.pages, None), found.next_page_token

        while True:
            try:
                items, token = self._try(prefix, page)
            except FileNotFoundError:
                raise StoreError(f"{self.root}: there is no such bucket; create it, or mend it") from None
            if items is not None:
                yield items
            if token is None:
                return


class _Staged(io.BytesIO):
    """A staged object that is being written."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path


def _info(blob: Any, path: str) -> ObjectInfo:
    return ObjectInfo(path, int(blob.size or 0), str(blob.generation), blob.crc32c or "")
