"""Reader processes: where strangers' Parquet files are read, so that none of them can end a run.

pyarrow aborts the whole process on about one in a thousand damaged footers, and a file of 15 kB can
ask for gigabytes. So files are opened in processes of their own that have a limit on memory and time,
no secrets, and can die; see .github/adr/010-strangers-files-are-read-in-processes-of-their-own.md.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from transforms.store import is_remote

READER_BYTES = 1 << 30
READER_SECONDS = 60.0
_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")
_SETTINGS = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
_PROGRAM = "import sys; sys.path.append({root!r}); from transforms.probe_child import main; main()"
_MAX_FRAME = 256 << 20
_IDLE = 8


class ReaderError(Exception):
    """A reader could not do what it was asked to; it lives on."""


class ReaderDiedError(ReaderError):
    """A reader died of what it was asked to do, or was ended because it took too long."""


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """What a reader process may use: resident bytes, and seconds until it must have answered."""

    memory: int = READER_BYTES
    seconds: float = READER_SECONDS


class Elsewhere(Protocol):
    """Files that a reader process can't open itself: it asks for their ranges."""

    def size(self, uri: str) -> int:
        """The size of a file in bytes."""

    def fetch(self, uri: str, start: int, length: int) -> bytes:
        """A range of it; shorter at its end."""


class Reader:
    """One reader process. Not thread-safe. After `ReaderDiedError` it is of no more use."""

    def __init__(self, limits: ReaderLimits) -> None:
        self.limits = limits
        self.elsewhere: Elsewhere | None = None  # where gs:// files are fetched from
        self._deadline = 0.0
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        program = _PROGRAM.format(root=str(Path(__file__).resolve().parents[1]))
        asked, self._requests = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program, str(limits.memory), str(limits.seconds)],
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # pyarrow's last words may quote the file
            env={**environment, **_SETTINGS},
            bufsize=0,
        )
        os.close(asked)
        self._schema: pa.Schema | None = None
        self._footer_schema: pa.Schema | None = None
        self.alive = True
        self.is_midway = False  # in an answer, of which the rest is still in the pipe

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def footer(
        self, path: str, size: int, columns: tuple[str, ...]
    ) -> tuple[pa.Schema, tuple[tuple[int, int], ...]]:
        """A file's schema, and rows and uncompressed bytes (of some columns) of its row groups.

        Raises:
            ReaderError: it is no Parquet file, or its footer claims what can't be.
            ReaderDiedError: the reader died of it.
        """
        answer = self._ask_about(path, {"op": "footer", "path": path, "size": size, "columns": columns})
        if "schema" in answer:
            encoded = base64.b64decode(answer["schema"])
            self._footer_schema = pa.ipc.read_schema(pa.py_buffer(encoded))
        self.is_midway = False
        return self._footer_schema, tuple((rows, uncompressed) for rows, uncompressed in answer["groups"])

    def rows(self, schema: pa.Schema, uri: str, group: int, first: int, count: int) -> pa.Table:
        """Rows of a row group from `first` on as a schema's types, one chunk a column; fewer at its end.

        Raises:
            ReaderError: they can't be read.
            ReaderDiedError: the reader died of them.
        """
        if schema is not self._schema:
            encoded = base64.b64encode(schema.serialize().to_pybytes()).decode()
            self._ask({"op": "schema", "schema": encoded})
            self._schema = schema
        self._ask_about(uri, {"op": "rows", "uri": uri, "group": group, "first": first, "count": count})
        try:
            with pa.PythonFile(_Pipe(self), "r") as pipe, pa.ipc.open_stream(pipe) as stream:
                table = stream.read_all()
        except pa.ArrowException:
            raise self._died() from None
        self.is_midway = False
        return table if table.num_rows and table.column(0).num_chunks == 1 else table.combine_chunks()

    def close(self) -> None:
        """End the process."""
        if not self.alive:
            return
        self.alive = False
        os.close(self._requests)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.kill()
        self._process.wait()

    def __del__(self) -> None:
        if getattr(self, "alive", False):
            self.close()

    def _ask_about(self, uri: str, request: dict[str, Any]) -> dict[str, Any]:
        """Ask about a file, of which the reader is handed ranges if it can't open it itself."""
        if not is_remote(uri):
            return self._ask(request)
        if self.elsewhere is None:
            from transforms.gcs.inputs import Ranges

            self.elsewhere = Ranges()
        return self._ask({**request, "elsewhere": self.elsewhere.size(uri)}, uri)

    def _ask(self, request: dict[str, Any], uri: str = "") -> dict[str, Any]:
        """The answer's first frame; who has read the rest of it says that the reader is midway no more."""
        self.is_midway = True
        self._send(json.dumps(request).encode())
        answer = self._frame()
        while "on_the_way" in answer or "fetch" in answer:
            if "fetch" in answer:
                self._hand_over(uri, *answer["fetch"])
            answer = self._frame()
        if "error" in answer:
            self.is_midway = False
            raise ReaderError(str(answer["error"]))
        return answer

    def _send(self, data: bytes) -> None:
        self._deadline = time.monotonic() + self.limits.seconds
        unsent = memoryview(struct.pack("<I", len(data)) + data)
        try:
            while unsent:
                unsent = unsent[os.write(self._requests, unsent) :]
        except OSError:
            raise self._died() from None

    def _hand_over(self, uri: str, start: int, length: int) -> None:
        """A range of the one file that is asked about. A reader that wants anything else is not believed."""
        if self.elsewhere is None or not uri or not 0 <= start <= start + length <= start + _MAX_FRAME:
            raise self._died()
        try:
            data = self.elsewhere.fetch(uri, start, length)
        except BaseException:
            self.close()  # it waits for bytes that don't come
            raise
        self._send(data)

    def _frame(self) -> dict[str, Any]:
        (length,) = struct.unpack("<I", self.receive(4))
        if length > _MAX_FRAME:
            raise self._died()
        try:
            frame: dict[str, Any] = json.loads(self.receive(length))
        except ValueError:
            raise self._died() from None
        self._deadline = time.monotonic() + self.limits.seconds
        return frame

    def receive(self, count: int) -> bytearray:
        """So many bytes of the answer, until the deadline."""
        assert self._process.stdout is not None
        if count > self.limits.memory:
            raise self._died()
        data = bytearray(count)
        view, got, descriptor = memoryview(data), 0, self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while got < count:
            left = self._deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                self.close()
                raise ReaderDiedError(f"the reader was ended: no answer after {self.limits.seconds:g} s")
            size = os.readv(descriptor, [view[got:]])
            if not size:
                raise self._died()
            got += size
        return data

    def _died(self) -> ReaderDiedError:
        """What to say of a process that is gone, or no longer to be trusted."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = 0
        self.close()
        if code == -signal.SIGXCPU:
            return ReaderDiedError(f"the reader was ended: more than {self.limits.seconds:g} s of CPU time")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return ReaderDiedError(f"the reader died: {how}")


class _Pipe:
    """The answers' pipe as a file for pyarrow."""

    closed = False

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def read(self, count: int) -> bytearray:
        return self._reader.receive(count)

    def close(self) -> None:
        """The pipe stays open for the next answer."""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


class _Idle:
    """Readers that nobody uses at the moment: a new one takes a fifth of a second to start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._readers: list[Reader] = []

    def take(self, limits: ReaderLimits) -> Reader:
        with self._lock:
            if self._owner != os.getpid():  # a fork shares its parent's pipes: leave them alone
                self._owner, self._readers = os.getpid(), []
            for reader in self._readers:
                if reader.limits == limits:
                    self._readers.remove(reader)
                    return reader
        return Reader(limits)

    def give_back(self, reader: Reader) -> None:
        reader.elsewhere = None
        with self._lock:
            is_whole = reader.alive and not reader.is_midway
            if is_whole and len(self._readers) < _IDLE and self._owner == os.getpid():
                self._readers.append(reader)
                return
        if reader.alive:
            reader.close()

    def close(self) -> None:
        with self._lock:
            readers, self._readers = self._readers, []
        if self._owner == os.getpid():
            for reader in readers:
                reader.close()


_IDLE_READERS = _Idle()
atexit.register(_IDLE_READERS.close)


def take_reader(limits: ReaderLimits) -> Reader:
    """A reader, idle or new; `leave_reader` hands it back."""
    return _IDLE_READERS.take(limits)


def leave_reader(reader: Reader) -> None:
    """Hand a reader back, so that others can use it; one in the middle of an answer is ended."""
    _IDLE_READERS.give_back(reader)
