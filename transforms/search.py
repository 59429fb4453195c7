"""Search over a run's vectors: exact, streaming, in the vector space that they were made in."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import InputError, first_line
from transforms.embed.embedder import Embeddings, VectorSpace
from transforms.layout import RESULTS
from transforms.store import Store, open_store

SPACE_KEY = b"switchgear.vector_space"
BATCH_ROWS = 8192
"""Vectors that are in memory at a time; 12 MiB at 384 dimensions of float32."""


class QueryEmbedder(Protocol):
    """What search needs of an embedder."""

    @property
    def space(self) -> VectorSpace:
        """The space of the query's vector."""

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """The texts' vectors."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that was found; `score` is the cosine of its vector and the query's, in [-1, 1]."""

    document_id: str
    score: float
    columns: dict[str, Any] = field(default_factory=dict)


def search(
    output: str,
    route: str,
    query: str,
    embedder: QueryEmbedder,
    k: int = 10,
    columns: Sequence[str] = (),
    batch_rows: int = BATCH_ROWS,
) -> list[Hit]:
    """The k documents nearest to the query, best first; ties by file and row.

    Every vector of the route is compared, one record batch at a time, so memory does not grow with
    the number of documents. All files are checked before any vector is read.

    Args:
        output: the output, a folder, its file:// URI or a gs:// address.
        route: name of an embed route.
        query: words to look for.
        embedder: the one that the route's vectors were made with.
        k: number of hits at most.
        columns: further columns of the results to return with each hit.
        batch_rows: vectors in memory at a time.

    Raises:
        InputError: no results, a file of another or no vector space, an unknown column, a query
            that can't be embedded.
    """
    if k < 1:
        raise InputError(f"k = {k}; expected at least 1")
    if not query.strip():
        raise InputError("the query is empty: give some words to look for")
    store = _store_of(output)
    files = _result_files(store, route)
    for file in files:
        _check_file(store, file, embedder.space, columns)
    wanted = _query_vector(query, embedder)
    best: list[tuple[float, int, Hit]] = []  # smallest first
    seen = 0
    for batch, scores in _scored(store, files, ["document_id", "embedding", *columns], batch_rows, wanted):
        for row in _best_rows(scores, k):
            # Earlier rows win ties: the heap compares score first, then the negated position.
            entry = (float(scores[row]), -(seen + row))
            if len(best) < k or entry > best[0][:2]:
                keep = (*entry, _hit(batch, row, entry[0], columns))
                (heapq.heappush if len(best) < k else heapq.heapreplace)(best, keep)
        seen += batch.num_rows
    return [hit for _, _, hit in sorted(best, key=lambda entry: entry[:2], reverse=True)]


def _store_of(output: str) -> Store:
    if output.startswith("file://"):
        return open_store(unquote(urlsplit(output).path))
    return open_store(output)


def _result_files(store: Store, route: str) -> list[str]:
    folder = f"{RESULTS}/route={route}"
    files = sorted(path for path in store.list(folder) if path.endswith(".parquet"))
    if not files:
        raise InputError(
            f"{store.root}/{folder}: no Parquet files. Run the workload first, or name another embed route."
        )
    return files


def _check_file(store: Store, name: str, space: VectorSpace, columns: Sequence[str]) -> None:
    path = f"{store.root}/{name}"
    try:
        with store.open(name) as source:
            schema = pq.read_schema(source)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet ({error}). Settle the run again.") from error
    found = (schema.metadata or {}).get(SPACE_KEY, b"").decode("utf-8", "replace")
    if not found:
        raise InputError(
            f"{path}: holds no embeddings (no {SPACE_KEY.decode()} in its footer); name an embed route."
        )
    if found != space.fingerprint:
        raise InputError(
            f"{path}: its vectors are of another space ({found}) than the query's: {space.describe()}. "
            "Vectors of different spaces can't be compared: search with the backend and the machine kind "
            "that made them, or embed the documents again into a new output."
        )
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; it has {', '.join(schema.names)}")


def _query_vector(query: str, embedder: QueryEmbedder) -> np.ndarray:
    made = embedder.embed([query])
    if made.errors:
        raise InputError(f"the query can't be embedded: {made.errors[0]}")
    vector = made.vectors[0].astype(np.float32)
    return vector / max(float(np.linalg.norm(vector)), np.finfo(np.float32).tiny)


def _scored(
    store: Store, files: Sequence[str], names: list[str], rows: int, query: np.ndarray
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """All record batches, each with the cosines of its vectors and the query's."""
    for name in files:
        try:
            for batch in _batches(store, name, names, rows):
                scores = _cosines(batch.column("embedding"), query)
                if not np.isfinite(scores).all():
                    raise pa.ArrowInvalid("a vector has a component that is no number")
                yield batch, scores
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{store.root}/{name}: damaged ({first_line(error)}). `switchgear ledger verify` names all "
                "such files; take them from a backup, or embed the documents again into a new output."
            ) from error


def _batches(store: Store, name: str, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    with store.open(name) as source, pq.ParquetFile(source) as file:
        yield from file.iter_batches(batch_size=rows, columns=list(dict.fromkeys(columns)))


def _cosines(vectors: pa.FixedSizeListArray, query: np.ndarray) -> np.ndarray:
    matrix = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), len(query))
    matrix = matrix.astype(np.float32, copy=False)
    norms = np.sqrt(np.einsum("nd,nd->n", matrix, matrix))
    return (matrix @ query) / np.maximum(norms, np.finfo(np.float32).tiny)


def _best_rows(scores: np.ndarray, k: int) -> list[int]:
    """The rows of the k best scores, and every further row that ties with the last of them."""
    if len(scores) <= k:
        return list(range(len(scores)))
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    return np.flatnonzero(scores >= least).tolist()


def _hit(batch: pa.RecordBatch, row: int, score: float, columns: Sequence[str]) -> Hit:
    values = {name: batch.column(name)[row].as_py() for name in columns}
    return Hit(batch.column("document_id")[row].as_py(), score, values)
