"""Embedding models in Cloud Storage: fetched once into this machine's cache, each file checked.

Only what a model needs is fetched: JSON and safetensors, in the folder and the folders directly in it.
Pickles are left where they are.
"""

from __future__ import annotations

import base64
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c

from schemas.errors import ModelError, StoreError
from schemas.ids import canonical_json, sha256_hex
from transforms.gcs.objects import ObjectInfo
from transforms.gcs.store import GcsStore

PIECE_BYTES = 16 << 20
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)?[A-Za-z0-9_][A-Za-z0-9_.-]*\.(?:json|safetensors)")


def fetch_model(address: str, cache: Path) -> Path:
    """The local folder of a model, fetched if these generations of its files are not there yet.

    Raises:
        ModelError: there is no such folder, it can't be read, or a file arrives damaged.
    """
    try:
        store = GcsStore(address)
        objects = [found for found in store.entries("") if _NAME.fullmatch(found.path)]
        if not objects:
            raise ModelError(
                f"model_path = {address!r}: no .json or .safetensors in that folder. Give "
                "gs://BUCKET/FOLDER of a model that was saved as safetensors"
            )
        key = canonical_json([address, *([o.path, o.generation] for o in objects)])
        folder = cache / "models" / sha256_hex(key)[:32]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _fetch_all(store, objects, folder)
    except (StoreError, OSError) as error:
        raise ModelError(f"model_path = {address!r}: {error}") from None
    return folder


def _fetch_all(store: GcsStore, objects: list[ObjectInfo], folder: Path) -> None:
    """All files under another name first: the folder is there whole, or not at all."""
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        for found in objects:
            target = draft / found.path
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch(store, found, target)
        os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _fetch(store: GcsStore, found: ObjectInfo, target: Path) -> None:
    checksum = 0
    with target.open("wb") as stream:
        for start in range(0, found.size, PIECE_BYTES):
            piece = store.read_range(
                found.path, start, min(PIECE_BYTES, found.size - start), found.generation
            )
            checksum = google_crc32c.extend(checksum, piece)
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    arrived = base64.b64encode(checksum.to_bytes(4, "big")).decode()
    if arrived != found.crc32c:
        raise StoreError(
            f"{store.root}/{found.path} arrived damaged (CRC32C {arrived}, stored is {found.crc32c}): "
            "run again"
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Of the processes of this machine, one fetches."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
