"""Twelve small files that ask for far more than they are, each valid enough to be opened."""

import io
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

TEXT = pa.schema([("id", pa.int64()), ("text", pa.string())])


def _write(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"compression": "zstd", **options})
    return sink.getvalue()


def _repeated(value: str, count: int) -> pa.Array:
    indices = pa.array([0], pa.int32()).take(pa.nulls(count, pa.int32()).fill_null(0))
    return pa.DictionaryArray.from_arrays(indices, pa.array([value]))


def one_enormous_text() -> bytes:
    """300 million characters in one cell."""
    table = pa.table({"id": [1], "text": pa.array(["A" * 300_000_000], pa.large_string())})
    return _write(table, use_dictionary=False, write_statistics=False)


def enormous_text_behind_good_rows() -> bytes:
    """Twenty good rows, and one of 300 million characters."""
    texts = [*(f"good {i}" for i in range(20)), "A" * 300_000_000]
    table = pa.table({"id": list(range(21)), "text": pa.array(texts, pa.large_string())})
    return _write(table, use_dictionary=False, write_statistics=False)


def one_long_text_in_a_million_rows() -> bytes:
    """A dictionary of one entry of a megabyte, pointed at a million times."""
    table = pa.table({"id": pa.nulls(1_000_000, pa.int64()), "text": _repeated("A" * 1_000_000, 1_000_000)})
    return _write(table, row_group_size=1_000_000, store_schema=False)


def ten_million_short_texts() -> bytes:
    """A few kilobytes that hold ten million texts of a thousand characters."""
    table = pa.table({"id": pa.nulls(10_000_000, pa.int64()), "text": _repeated("A" * 1000, 10_000_000)})
    return _write(table, row_group_size=10_000_000, store_schema=False, write_statistics=False)


def a_hundred_million_nulls() -> bytes:
    """Rows that take no bytes."""
    sink = io.BytesIO()
    nulls = pa.table({"id": pa.nulls(20_000_000, pa.int64()), "text": pa.nulls(20_000_000, pa.string())})
    with pq.ParquetWriter(sink, TEXT, compression="zstd") as writer:
        for _ in range(5):
            writer.write_table(nulls, row_group_size=20_000_000)
    return sink.getvalue()


def a_list_of_a_hundred_million() -> bytes:
    """One row whose list has 100 million items."""
    items = pa.nulls(100_000_000, pa.int8())
    lists = pa.ListArray.from_arrays(pa.array([0, 100_000_000], pa.int32()), items)
    return _write(pa.table({"id": [1], "text": ["x"], "extra": lists}))


def deep_nesting() -> bytes:
    """A type of ninety levels."""
    kind: pa.DataType = pa.int8()
    for _ in range(90):
        kind = pa.struct([("f", kind)])
    return _write(pa.table({"id": [1], "text": ["x"], "extra": pa.nulls(1, kind)}), store_schema=False)


def twenty_thousand_columns() -> bytes:
    """More columns than anybody has."""
    return _write(pa.table({"id": [1], "text": ["x"], **{f"c{i}": [None] for i in range(20_000)}}))


def wide_struct() -> bytes:
    """One needed column of five thousand leaves, in many row groups."""
    kind = pa.struct([(f"f{i}", pa.int8()) for i in range(5_000)])
    table = pa.table({"id": [1, 2, 3], "text": ["x"] * 3, "extra": pa.nulls(3, kind)})
    return _write(table, row_group_size=1)


def _patched(find: Callable[[pq.FileMetaData], int], value: int) -> bytes:
    """A sound file in whose footer one number (of as many bytes) is another."""
    sound = _write(pa.table({"id": list(range(300)), "text": [f"text {i}" for i in range(300)]}))
    metadata = pq.read_metadata(io.BytesIO(sound))
    footer = len(sound) - 8 - int.from_bytes(sound[-8:-4], "little")
    old, new = _zigzag(find(metadata)), _zigzag(value)
    body = sound[footer:-8].replace(old, new)
    return sound[:footer] + body + len(body).to_bytes(4, "little") + b"PAR1"


def _zigzag(value: int) -> bytes:
    """A number as Thrift's compact protocol writes it."""
    value, out = value << 1, bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def a_lie_about_rows() -> bytes:
    """A footer that claims 2⁴⁰ rows."""
    return _patched(lambda metadata: metadata.num_rows, 1 << 40)


def a_lie_about_bytes() -> bytes:
    """A footer that claims a column of 2⁴⁵ bytes."""
    return _patched(lambda metadata: metadata.row_group(0).column(1).total_uncompressed_size, 1 << 45)


def a_page_that_stands_twice() -> bytes:
    """A footer that claims more compressed bytes than the file has."""
    return _patched(lambda metadata: metadata.row_group(0).column(1).total_compressed_size, 1 << 30)


BOMBS = (
    one_enormous_text,
    enormous_text_behind_good_rows,
    one_long_text_in_a_million_rows,
    ten_million_short_texts,
    a_hundred_million_nulls,
    a_list_of_a_hundred_million,
    deep_nesting,
    twenty_thousand_columns,
    wide_struct,
    a_lie_about_rows,
    a_lie_about_bytes,
    a_page_that_stands_twice,
)
