"""A table of a run as a Parquet file, written a piece at a time."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.layout import STAGING
from transforms.store import Store

PIECE = 16_384
"""Rows that are made, kept in memory and written at a time."""


def write_pieces(store: Store, path: str, schema: pa.Schema, pieces: Iterable[pa.Table]) -> None:
    """Write a file that is there whole, or not at all; durable when this returns.

    For the holder of the output's lock: what a crash leaves half is staged, and swept by the next run.
    """
    staged = f"{STAGING}/table.{secrets.token_hex(8)}/{path.rsplit('/', 1)[-1]}"
    stream = store.stage(staged)
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for piece in pieces:
            if len(piece):
                writer.write_table(piece, PIECE)
    store.finish(stream)
    store.publish(staged, path)
