"""What worker processes and the embedder host say to each other: frames of a local socket.

A frame is a byte that says what it is, and what follows. Texts and vectors are Arrow, the rest is JSON:
nothing that is received is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

import schemas.errors
from schemas.errors import SwitchgearError, first_line
from schemas.ids import canonical_json
from transforms.embed.embeddings import Embeddings, EmbedStats
from transforms.embed.space import VectorSpace

OPENED, PROGRESS, ANSWER, ERROR = b"o", b"p", b"a", b"e"
_STATS = b"stats"


@dataclass(frozen=True, slots=True)
class Opening:
    """Which embedder a connection is for: its backend, and what `open_embedder` is told besides."""

    backend: dict[str, Any]
    base_dir: str
    cache_dir: str | None
    lengths: dict[str, Any] | None = None

    def to_bytes(self) -> bytes:
        """As it is sent, the first thing on a connection."""
        return canonical_json(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Opening:
        """As it was sent."""
        return cls(**json.loads(data))


def pack_texts(texts: Sequence[str]) -> bytes:
    """Texts as they are sent. A lone surrogate arrives as one; what is no string arrives as None."""
    raw = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else None for text in texts]
    return _ipc(pa.record_batch({"text": pa.array(raw, pa.large_binary())}))


def unpack_texts(data: bytes) -> list[Any]:
    """The texts that were packed."""
    return [
        None if raw is None else raw.decode("utf-8", "surrogatepass")
        for raw in _batch(data).column("text").to_pylist()
    ]


def pack_answer(made: Embeddings, stats: EmbedStats) -> bytes:
    """Vectors of a request and what they took, as a frame."""
    count, dim = made.vectors.shape
    element = pa.float32() if made.vectors.dtype == np.float32 else pa.float16()
    flat = pa.array(np.ascontiguousarray(made.vectors).ravel(), element)
    batch = pa.record_batch(
        {
            "vector": pa.FixedSizeListArray.from_arrays(flat, dim),
            "token_count": pa.array(made.token_counts, pa.int32()),
            "truncated": pa.array(made.truncated, pa.bool_()),
            "device_seconds": pa.array(made.device_seconds, pa.float64()),
            "chunks": pa.array(made.piece_counts, pa.int32()),
            "error": pa.array([made.errors.get(row) for row in range(count)], pa.string()),
        }
    )
    return ANSWER + _ipc(batch.replace_schema_metadata({_STATS: canonical_json(asdict(stats))}))


def unpack_answer(data: bytes) -> tuple[Embeddings, EmbedStats]:
    """The vectors that were packed, without the frame's first byte."""
    batch = _batch(data)
    vectors = batch.column("vector")
    flat = vectors.flatten().to_numpy(zero_copy_only=True)
    errors = batch.column("error")
    made = Embeddings(
        flat.reshape(len(batch), vectors.type.list_size),
        batch.column("token_count").to_numpy(),
        batch.column("truncated").to_numpy(zero_copy_only=False),
        batch.column("device_seconds").to_numpy(),
        {row: reason for row, reason in enumerate(errors.to_pylist()) if reason is not None},
        batch.column("chunks").to_numpy(),
    )
    return made, EmbedStats(**json.loads(batch.schema.metadata[_STATS]))


def pack_space(space: VectorSpace, device_kind: str = "") -> bytes:
    """The frame that says that an embedder is open, and on which kind of devices."""
    return OPENED + canonical_json({"space": asdict(space), "device_kind": device_kind})


def unpack_space(data: bytes) -> tuple[VectorSpace, str]:
    """The space of the embedder that was opened and its devices, without the frame's first byte."""
    told = json.loads(data)
    return VectorSpace(**told["space"]), told["device_kind"]


def pack_progress(texts: int) -> bytes:
    """The frame that says that the host is alive, and how many texts of the request are through."""
    return PROGRESS + texts.to_bytes(8, "big")


def unpack_progress(data: bytes) -> int:
    """Texts that are through."""
    return int.from_bytes(data, "big")


def pack_error(error: BaseException) -> bytes:
    """The frame of what a request was answered with instead."""
    text = (
        str(error) if isinstance(error, SwitchgearError) else f"{type(error).__name__}: {first_line(error)}"
    )
    return ERROR + canonical_json({"class": type(error).__name__, "message": text})


def unpack_error(data: bytes) -> Exception:
    """The error to raise: one of ours is the same here, anything else a RuntimeError."""
    told = json.loads(data)
    kind = getattr(schemas.errors, told["class"], None)
    ours = isinstance(kind, type) and issubclass(kind, SwitchgearError)
    try:
        return kind(told["message"]) if ours and kind is not None else RuntimeError(told["message"])
    except TypeError:  # one that takes more than a message
        return SwitchgearError(told["message"])


def _ipc(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _batch(data: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()
