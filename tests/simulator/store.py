"""An output store in memory whose every operation can be the last, fail, or fail although it worked.

It watches what readers would see: nothing that is not committed, nothing torn, nothing that changes.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import PreconditionFailedError, StoreError
from tests.simulator.clock import pause
from tests.simulator.world import KilledError, Process, World
from transforms.commit_file import packed_in, unpacked
from transforms.layout import LEDGER
from transforms.store import LocalStore


@dataclass(slots=True)
class _Object:
    data: bytes
    durable: bool = True
    made_at: float = 0.0


@dataclass
class Objects:
    """What the store holds, and what readers have seen of it."""

    world: World
    root: str
    objects: dict[str, _Object] = field(default_factory=dict)
    commits: dict[str, dict[str, Any]] = field(default_factory=dict)  # records as first seen, by path
    committed: dict[str, bytes] = field(default_factory=dict)  # and their objects
    named: dict[str, tuple[str, str]] = field(default_factory=dict)  # final name → digest and commit's path
    shown: dict[str, bytes] = field(default_factory=dict)  # results as first seen
    noted: set[str] = field(default_factory=set)  # of them, those that the audit has heard of

    on_commit: Callable[[dict[str, Any]], None] = lambda record: None

    def __post_init__(self) -> None:
        self.world.on_power_cut.append(self._lose_power)

    def _lose_power(self) -> None:
        for path, thing in list(self.objects.items()):
            if path.startswith("compacted/") and self.world.source.random() < 0.2:
                thing.data = (
                    thing.data[: len(thing.data) // 2] + b"\0" + thing.data[len(thing.data) // 2 + 1 :]
                )
                self.world.seen.add("compacted commits damaged")
            if thing.durable:
                continue
            if self.world.source.random() < 0.5:
                del self.objects[path]
            else:
                thing.data = thing.data[: self.world.source.randrange(len(thing.data) + 1)]
                thing.durable = True

    def look(self, path: str) -> None:
        """A reader looks at what just changed."""
        thing = self.objects.get(path)
        if path.startswith("commits/"):
            self._look_at_commit(path, thing)
        elif path.startswith("failures/") and thing is not None:
            self._look_at_failures(path, thing.data)
        if path.startswith("results/"):
            if thing is not None and path not in self.named:
                self.world.violate("readers see committed rows only", f"{path} is in no commit record")
            elif thing is not None and self.named[path][0] != sha256(thing.data).hexdigest():
                self.world.violate("readers see whole files only", f"{path} is not what was committed")
            before = self.shown.setdefault(path, thing.data if thing else b"")
            if thing is None or thing.data != before:
                self.world.violate("what is committed never changes", f"{path} changed or went")

    def _look_at_commit(self, path: str, thing: _Object | None) -> None:
        if path in self.committed:
            if thing is None or thing.data != self.committed[path]:
                self.world.violate("what is committed never changes", f"{path} was replaced or deleted")
            return
        assert thing is not None
        self.committed[path] = thing.data
        record = self.commits[path] = record_in(thing.data)
        self.on_commit(record)
        for part in record["parts"]:
            if part["final"]:
                self.named[part["final"]] = (part["sha256"], path)

    def _look_at_failures(self, path: str, data: bytes) -> None:
        """What is shown of an attempt is what its commit record has, whole."""
        shown, expected = pq.ParquetFile(io.BytesIO(data)), []
        for batch_id, attempt in _attempts_in(shown.schema_arrow.metadata[b"switchgear.attempts"]):
            committed = self.committed.get(f"commits/{batch_id}.{attempt:04d}.json")
            if committed is None:
                self.world.violate("readers see committed rows only", f"{path}: {batch_id}, {attempt}")
                return
            expected += failures_in(committed)
        if shown.read(use_threads=False).to_pylist() != expected:
            self.world.violate("readers see whole files only", f"{path} is not what was committed")


class _Part(io.BytesIO):
    """A staged object that is being written."""

    def __init__(self, store: ProcessStore, path: str) -> None:
        super().__init__()
        self._store, self.name = store, path

    def write(self, data: Any) -> int:
        written = bytes(data)
        self._store.append(self.name, written)
        return len(written)


class ProcessStore:
    """The store as one process uses it; the production code's `Store`."""

    def __init__(self, objects: Objects, process: Process) -> None:
        self.root = objects.root
        self._all = objects
        self._objects = objects.objects
        self._process = process

    def _step(self, kind: str, path: str) -> bool:
        """Take a step; whether the operation is to fail after it has worked."""
        world = self._process.world
        self._process.check()
        if world.pauses and world.source.random() < world.pauses:
            pause(world.source.choice((0.0, 0.002, 0.3)))
        code = world.step(self._process, kind, path)
        if code > 0:
            raise OSError(code, os.strerror(code), path)
        return code < 0

    def _done(self, lost: bool, path: str) -> None:
        self._all.look(path)
        self._process.check()  # the look may have ended the world
        if lost:
            raise StoreError(f"{path}: the connection broke off before the answer came")

    def read(self, path: str) -> bytes:
        self._step("read", path)
        return self._get(path).data

    def _get(self, path: str) -> _Object:
        if path not in self._objects:
            raise FileNotFoundError(path)
        return self._objects[path]

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        data = self.read(path)
        return data, sha256(data).hexdigest()

    def exists(self, path: str) -> bool:
        self._step("exists", path)
        return path in self._objects

    def create(self, path: str, data: bytes) -> bool:
        lost = self._step("create", path)
        if path in self._objects:
            return False
        self._objects[path] = _Object(data, made_at=_now())
        self._done(lost, path)
        return True

    def swap(self, path: str, data: bytes, generation: str) -> str:
        _, found = self.read_versioned(path)
        if found != generation:
            raise PreconditionFailedError(path)
        self.put(path, data)
        return sha256(data).hexdigest()

    def put(self, path: str, data: bytes) -> None:
        """Create or replace; no production code does so, seeded defects do."""
        lost = self._step("create", path)
        self._objects[path] = _Object(data)
        self._done(lost, path)

    def stage(self, path: str) -> IO[bytes]:
        self._step("stage", path)
        if path in self._objects:
            raise FileExistsError(path)
        self._objects[path] = _Object(b"", durable=False, made_at=_now())
        return _Part(self, path)

    def append(self, path: str, data: bytes) -> None:
        """Write to a staged object; a dying or failing process leaves a part of it."""
        kept = len(data)
        try:
            self._step("write part", path)
        except (OSError, KilledError):
            kept = self._process.world.source.randrange(len(data) + 1)
            raise
        finally:
            if path in self._objects:
                self._objects[path].data += data[:kept]

    def finish(self, stream: IO[bytes]) -> None:
        lost = self._step("finish part", stream.name)
        if stream.name not in self._objects:
            raise FileNotFoundError(stream.name)
        self._objects[stream.name].durable = True
        self._done(lost, stream.name)

    def publish(self, staged: str, final: str) -> None:
        lost = self._step("publish", final)
        if staged not in self._objects:
            if final not in self._objects:
                raise StoreError(f"{final} can't be published: neither it nor {staged} exists")
            return
        self._objects[final] = self._objects.pop(staged)
        self._done(lost, final)

    def open(self, path: str) -> IO[bytes]:
        data = self.read(path)
        return io.BytesIO(data if data.startswith(b"PAR1") else _as_parquet(data))

    def list(self, prefix: str) -> Iterator[str]:
        self._step("list", prefix)
        found = sorted(path for path in self._objects if path.startswith(f"{prefix}/"))
        world = self._process.world
        if world.lag_s:
            new = _now() - world.lag_s
            kept = [p for p in found if self._objects[p].made_at < new or world.source.random() < 0.5]
            world.seen |= {"lagging listing"} if kept != found else set()
            found = kept
        yield from found

    def folders(self, prefix: str) -> Iterator[str]:
        if prefix == LEDGER:  # which are no objects here
            yield from LocalStore(self.root).folders(prefix)
            return
        self._step("list", prefix)
        yield from sorted({path.split("/")[1] for path in self._objects if path.startswith(f"{prefix}/")})

    def delete(self, path: str) -> None:
        lost = self._step("delete", path)
        if self._objects.pop(path, None) is not None:
            self._done(lost, path)

    def prune(self, prefix: str) -> None:
        self._step("prune", prefix)


def _now() -> float:
    return asyncio.get_running_loop().time()


@lru_cache(64)
def _as_parquet(data: bytes) -> bytes:
    """Parts are staged as Arrow's stream format, a quarter of the time; readers want Parquet."""
    sink = pa.BufferOutputStream()
    table = pa.ipc.open_stream(data).read_all()
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    return sink.getvalue().to_pybytes()


def record_in(data: bytes) -> dict[str, Any]:
    """The commit record of an object."""
    record: dict[str, Any] = json.loads(data.partition(b"\n")[0])
    return record


@lru_cache(64)
def failures_in(data: bytes) -> list[dict[str, Any]]:
    """The failures that travel with a commit record; not to be changed."""
    tail = data.partition(b"\n")[2]
    return unpacked(packed_in(tail)).to_pylist() if tail else []


def _attempts_in(written: bytes) -> Iterator[tuple[str, int]]:
    keys = base64.b64decode(written)
    for start in range(0, len(keys), 20):
        yield keys[start : start + 16].hex(), int.from_bytes(keys[start + 16 : start + 20], "big")


@lru_cache(64)
def read_part(data: bytes) -> list[dict[str, Any]]:
    """The rows of a part; not to be changed."""
    if data.startswith(b"PAR1"):
        return pq.read_table(pa.BufferReader(data), use_threads=False).to_pylist()
    return pa.ipc.open_stream(data).read_all().to_pylist()
