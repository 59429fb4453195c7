"""The program of a reader process: it reads strangers' files under limits, and answers on a pipe.

A request is one frame: four bytes of length and JSON. An answer is one frame, and behind a frame that
says so an Arrow IPC stream. Nothing is pickled either way, and the process knows no secrets.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa

from transforms.probe_footer import read_footer
from transforms.probe_rows import RowGroupRows
from transforms.ranges import RangesFile

_PROGRESS_S = 1.0
_CUT_OFF = 3
_KEPT_BACK = 64 << 20
# Of the memory, a fourth may be handed over: the process that asked holds it at the same time.
_HANDED_OVER = 4
_TOO_MUCH = "it needs more memory than limits.reader_bytes allows; raise that, or lower limits.batch_rows"


def main() -> None:
    """Serve until the other end closes the pipe. Arguments: memory in bytes, seconds for a step."""
    memory, seconds = int(sys.argv[1]), float(sys.argv[2])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(memory)
    _Server(answers, seconds, memory // _HANDED_OVER).serve(sys.stdin.buffer)


def _limit_memory(allowed: int) -> None:
    """Let the process grow until `allowed` bytes are resident.

    Address space that was mapped by now and is not resident comes on top; some is kept back for the
    pages of libraries that become resident later.
    """
    mapped = resident = 0
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as stream:
            mapped, resident = (int(v) * resource.getpagesize() for v in stream.read().split()[:2])
    resource.setrlimit(resource.RLIMIT_AS, (mapped + max(0, allowed - resident - _KEPT_BACK),) * 2)


class _Server:
    def __init__(self, answers: BinaryIO, seconds: float, handed_over: int) -> None:
        self._answers = answers
        self._seconds = seconds
        self._handed_over = handed_over
        self._rows: RowGroupRows | None = None
        self._last_schema = b""
        self._told_at = 0.0
        self._requests: BinaryIO | None = None
        self._elsewhere: int | None = None  # the size of the file that is asked about, if it is not here
        self._operations: dict[str, Callable[[dict[str, Any]], None]] = {
            "footer": self._footer,
            "schema": self._schema,
            "rows": self._read_rows,
        }

    def serve(self, requests: BinaryIO) -> None:
        """Answer requests one by one."""
        self._requests = requests
        while head := requests.read(4):
            request = json.loads(requests.read(struct.unpack("<I", head)[0]))
            self._step()
            try:
                self._operations[request["op"]](request)
            except MemoryError:
                self._fail(_TOO_MUCH)
            except Exception as error:
                self._fail(str(error).strip().split("\n")[0] or type(error).__name__)

    def _step(self) -> None:
        """Begin a step: seconds of this process's time from now on, then it is ended."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(usage.ru_utime + usage.ru_stime + self._seconds) + 2
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
        self._told_at = time.monotonic()

    def _on_the_way(self) -> None:
        if time.monotonic() - self._told_at > _PROGRESS_S:
            self._step()
            self._tell({"on_the_way": True})

    def _footer(self, request: dict[str, Any]) -> None:
        self._note(request)
        footer = read_footer(self._open(request["path"]), request["size"], request["columns"])
        schema = footer.schema.serialize().to_pybytes()
        answer: dict[str, Any] = {"groups": footer.groups}
        if schema != self._last_schema:  # the files of a folder mostly have one
            answer["schema"] = base64.b64encode(schema).decode()
            self._last_schema = schema
        self._tell(answer)

    def _note(self, request: dict[str, Any]) -> None:
        self._elsewhere = request.get("elsewhere")

    def _open(self, path: str) -> str | RangesFile:
        """What pyarrow is to open: a path, or a file whose ranges are asked for."""
        return path if self._elsewhere is None else RangesFile(self._fetch, self._elsewhere)

    def _fetch(self, start: int, length: int) -> bytes:
        """A range of the file that is asked about, from whoever asked."""
        assert self._requests is not None
        self._tell({"fetch": [start, length]})
        (size,) = struct.unpack("<I", self._requests.read(4))
        return self._requests.read(size)

    def _schema(self, request: dict[str, Any]) -> None:
        """Which columns are read from now on, and as what."""
        if self._rows is not None:
            self._rows.close()
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(request["schema"])))
        self._rows = RowGroupRows(schema, self._open)
        self._tell({})

    def _read_rows(self, request: dict[str, Any]) -> None:
        assert self._rows is not None
        self._note(request)
        try:
            table = self._rows.read(
                request["uri"], request["group"], request["first"], request["count"], self._on_the_way
            )
            table.validate()
            if table.nbytes > self._handed_over:
                raise MemoryError
        except Exception:
            self._rows.close()
            raise
        self._tell({"rows": table.num_rows})
        try:
            with pa.ipc.new_stream(self._answers, table.schema) as stream:
                stream.write_table(table)
            self._answers.flush()
        except BaseException:
            os._exit(_CUT_OFF)  # half an answer is out: only the end of the pipe can follow it

    def _fail(self, sentence: str) -> None:
        self._tell({"error": sentence})

    def _tell(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer, separators=(",", ":")).encode()
        self._answers.write(struct.pack("<I", len(data)) + data)
        self._answers.flush()
