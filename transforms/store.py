"""Where outputs live: a small contract over named objects, and the local file system behind it.

Cloud Storage behind the same contract is in `transforms.gcs.store`.

Three operations carry everything that must hold under crashes and races:

- `create`: an object comes into being whole, or not at all, and only if it was not there;
- `swap`: an object is replaced only if it is still at the generation that was read;
- `publish`: a staged object gets its final name, at once and idempotently.

Paths are relative to the store's root, with forward slashes, and are made by us alone: nothing
that was read from data ever becomes a path.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from schemas.errors import PreconditionFailedError, StoreError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}")


class Store(Protocol):
    """Named objects under one root."""

    root: str

    def read(self, path: str) -> bytes:
        """The object's bytes; FileNotFoundError if there is none."""

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        """The object's bytes and generation; FileNotFoundError if there is none."""

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""

    def create(self, path: str, data: bytes) -> bool:
        """Create the object whole and durably; False, and nothing changed, if it was there.

        Over a network an acknowledgement can be lost, and the same bytes that are found there then count
        as this creation: who must know that it was his puts something of his own in them.
        """

    def swap(self, path: str, data: bytes, generation: str) -> str:
        """Replace the object if it is at `generation`; the new generation.

        Raises:
            PreconditionFailedError: it is at another one, or gone.
        """

    def stage(self, path: str) -> IO[bytes]:
        """A new object to write to; it is durable once `finish` has returned."""

    def finish(self, stream: IO[bytes]) -> None:
        """Close a staged object's stream and make its bytes durable."""

    def publish(self, staged: str, final: str) -> None:
        """Give a staged object its final name; nothing happens if that was done before.

        Raises:
            StoreError: neither name exists.
        """

    def open(self, path: str) -> IO[bytes]:
        """The object, to be read at random."""

    def list(self, prefix: str) -> Iterator[str]:
        """The paths under a folder ("": all), in no order."""

    def folders(self, prefix: str) -> Iterator[str]:
        """The names of the folders directly in a folder, in no order."""

    def delete(self, path: str) -> None:
        """Delete the object; nothing happens if there is none."""

    def prune(self, prefix: str) -> None:
        """Take away empty folders, where a store has such; nobody may be writing under `prefix`."""


class LocalStore:
    """A `Store` in a folder of the local file system.

    `create` writes a temporary file, syncs it and links it to its name; a link fails when the name
    is taken, so of several creators one wins. Folders are synced after names change in them.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._synced_folders: set[str] = set()

    def local_path(self, path: str) -> Path:
        """The file behind a path of this store."""
        return Path(self.root, path)

    def read(self, path: str) -> bytes:
        """See `Store`."""
        return self.local_path(path).read_bytes()

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        """See `Store`; the generation is the content's digest."""
        data = self.read(path)
        return data, _generation(data)

    def exists(self, path: str) -> bool:
        """See `Store`."""
        return self.local_path(path).exists()

    def create(self, path: str, data: bytes) -> bool:
        """See `Store`."""
        target = self.local_path(path)
        temporary = self._write_temporary(target, data)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        _sync_folder(target.parent)
        return True

    def swap(self, path: str, data: bytes, generation: str) -> str:
        """See `Store`; the comparison and the change are one under a lock beside the file."""
        target = self.local_path(path)
        with _locked(target.with_name(f".{target.name}.lock")):
            try:
                _, current = self.read_versioned(path)
            except FileNotFoundError:
                current = "none"
            if current != generation:
                raise PreconditionFailedError(f"{target} is at {current}, not at {generation}")
            temporary = self._write_temporary(target, data)
            os.replace(temporary, target)
            _sync_folder(target.parent)
        return _generation(data)

    def stage(self, path: str) -> IO[bytes]:
        """See `Store`."""
        target = self.local_path(path)
        self._make_folder(target.parent)
        return open(target, "xb")

    def finish(self, stream: IO[bytes]) -> None:
        """See `Store`."""
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
        _sync_folder(Path(stream.name).parent)

    def publish(self, staged: str, final: str) -> None:
        """See `Store`."""
        source, target = self.local_path(staged), self.local_path(final)
        self._make_folder(target.parent)
        try:
            os.rename(source, target)
        except FileNotFoundError:
            if not target.exists():
                raise StoreError(
                    f"{target} can't be published: neither it nor its staged part {source} exists. "
                    "A committed part was deleted by hand; restore it, or use a new output folder"
                ) from None
            return
        _sync_folder(target.parent)
        _remove_if_empty(source.parent)

    def open(self, path: str) -> IO[bytes]:
        """See `Store`."""
        return open(self.local_path(path), "rb")

    def list(self, prefix: str) -> Iterator[str]:
        """See `Store`; temporary files are left out."""
        base = self.local_path(prefix)
        for folder, _, names in os.walk(base):
            relative = os.path.relpath(folder, self.root)
            for name in names:
                if not name.startswith("."):
                    yield name if relative == "." else f"{relative}/{name}".replace(os.sep, "/")

    def folders(self, prefix: str) -> Iterator[str]:
        """See `Store`."""
        with suppress(FileNotFoundError), os.scandir(self.local_path(prefix)) as entries:
            yield from (entry.name for entry in entries if entry.is_dir())

    def delete(self, path: str) -> None:
        """See `Store`."""
        self.local_path(path).unlink(missing_ok=True)

    def prune(self, prefix: str) -> None:
        """See `Store`."""
        for folder, _, _ in os.walk(self.local_path(prefix), topdown=False):
            _remove_if_empty(Path(folder))

    def _write_temporary(self, target: Path, data: bytes) -> Path:
        self._make_folder(target.parent)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")  # as _TEMPORARY has it
        try:
            with open(temporary, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _make_folder(self, folder: Path) -> None:
        """Create a folder, its name durable; known ones cost nothing."""
        if str(folder) in self._synced_folders:
            return
        missing = [f for f in (folder, *folder.parents) if not f.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for created in missing:
            _sync_folder(created.parent)
        self._synced_folders.add(str(folder))


def sweep_temporaries(root: str, folders: Iterable[str]) -> int:
    """Delete what crashed writers have left half in some folders of an output; how many files that were.

    Nobody may be writing there. Object storage has none: an object is there whole or not at all.
    """
    swept = 0
    for folder in () if is_remote(root) else folders:
        for where, _, names in os.walk(Path(root, folder)):
            for name in filter(_TEMPORARY.fullmatch, names):
                Path(where, name).unlink(missing_ok=True)
                swept += 1
    return swept


def create_by_digest(store: Store, path: str, data: bytes) -> None:
    """Create an object that is named after its bytes; one that has others was damaged, and is replaced."""
    if not store.create(path, data) and store.read(path) != data:
        store.delete(path)
        store.create(path, data)


def is_remote(address: str) -> bool:
    """Whether an address is one of object storage, and not a path."""
    return "://" in address


def open_store(root: str) -> Store:
    """The store behind an output address: a folder, or `gs://bucket/folder`.

    Raises:
        StoreError: an address of a kind that is not supported.
        ConfigurationError: there are no credentials for it.
    """
    if root.startswith("gs://"):
        from transforms.gcs.store import GcsStore

        return GcsStore(root)
    if is_remote(root):
        raise StoreError(f"{root}: no such kind of output; give a folder, or gs://BUCKET/FOLDER")
    return LocalStore(root)


def _generation(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems can't sync folders
            raise
    finally:
        os.close(descriptor)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty, or another was faster
        folder.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel frees it when the process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
