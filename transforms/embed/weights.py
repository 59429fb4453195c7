"""A model's weights: one safetensors file, or shards with an index that says which tensor is where."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from schemas.errors import ModelError
from schemas.ids import canonical_json, sha256_hex
from transforms.embed.module_settings import read_object
from transforms.embed.tensors import TensorInfo, check_tensors, read_header, read_tensors

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_PICKLES = ("pytorch_model.bin", "model.pt", "pytorch_model.pt")
_SHARD = re.compile(r"[A-Za-z0-9_.-]+\.safetensors")


@dataclass(frozen=True, slots=True)
class Weights:
    """The files of a model's weights; `source` is the one that messages name."""

    source: Path
    header: Mapping[str, TensorInfo]
    where: Mapping[str, Path]

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ModelError unless every expected tensor is there, of its shape, and finite."""
        check_tensors(self.source, self.header, expected)
        for _ in self._values(expected):
            pass

    def read(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The named tensors as float32 arrays; ModelError at a NaN or infinity."""
        return dict(self._values(names))

    def sha256(self) -> str:
        """Digest of the file; of several files, of the list of their digests."""
        files = sorted(set(self.where.values()))
        digests = [file_sha256(file) for file in files]
        return digests[0] if len(digests) == 1 else sha256_hex(canonical_json(digests))

    def _values(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.where[name], []).append(name)
        for file, own in by_file.items():
            yield from read_tensors(file, own)


def find_weights(folder: Path) -> Weights:
    """The weights in a folder, their headers read and nothing else.

    Raises:
        ModelError: there are none, a shard is missing or damaged, or the index is not one.
    """
    path = folder / WEIGHTS
    if path.is_file():
        header = read_header(path)
        return Weights(path, header, dict.fromkeys(header, path))
    index = folder / INDEX
    if index.is_file():
        return _sharded(index)
    others = [name for name in _PICKLES if (folder / name).exists()]
    hint = f"copy the file there, or its shards with {INDEX}"
    if others:
        hint = f"{others[0]} is a pickle and is never loaded; save the model as safetensors"
    raise ModelError(f"{path}: no such file; {hint}.")


def _sharded(index: Path) -> Weights:
    found = read_object(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ModelError(f"{index}: no `weight_map` of tensor names and files. Copy the file again.")
    for file in found.values():
        # A path of the index must not lead out of the folder.
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise ModelError(f"{index}: {file!r} is no name of a safetensors file beside it")
    headers = {}
    for file in sorted(set(found.values())):
        shard = index.with_name(file)
        if not shard.is_file():
            raise ModelError(f"{shard}: no such file, but {index.name} names it. Copy all shards.")
        headers[shard] = read_header(shard)
    where = {
        name: index.with_name(file) for name, file in found.items() if name in headers[index.with_name(file)]
    }
    return Weights(index, {name: headers[file][name] for name, file in where.items()}, where)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
