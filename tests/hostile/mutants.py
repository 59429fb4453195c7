"""Damaged Parquet files: small sound ones of several encodings, with some bytes changed by a seed."""

import io
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 120
_OVERWRITES = (b"\xff\xff\xff\xff", b"\x80\x80\x80\x80", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff")


def _sound(**options: object) -> bytes:
    sink = io.BytesIO()
    table = pa.table(
        {
            "id": [f"d{i}" for i in range(ROWS)],
            "text": [f"lorem ipsum {i} " * 5 for i in range(ROWS)],
            "size": list(range(ROWS)),
            "list": [[i, i + 1] for i in range(ROWS)],
            "struct": [{"a": i, "b": str(i)} for i in range(ROWS)],
        }
    )
    pq.write_table(table, sink, row_group_size=ROWS // 2, **options)
    return sink.getvalue()


DELTA = {"id": "DELTA_BYTE_ARRAY", "text": "DELTA_LENGTH_BYTE_ARRAY", "size": "DELTA_BINARY_PACKED"}
SOUND = (
    _sound(),
    _sound(compression="zstd", use_dictionary=False),
    _sound(compression="none", use_dictionary=False, column_encoding=DELTA),
    _sound(compression="gzip", data_page_version="2.0"),
    _sound(compression="none", write_page_checksum=True),
)


def mutant(seed: int) -> bytes:
    """A file with 1 to 16 changes, in its footer alone, in its pages or anywhere; some are cut off."""
    random = Random(seed)
    data = bytearray(random.choice(SOUND))
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    low, high = random.choice([(0, len(data)), (footer, len(data) - 8), (4, footer)])
    for _ in range(random.choice([1, 1, 2, 4, 16])):
        _change(data, random.randrange(low, high), random)
    if random.randrange(10) == 0:
        del data[random.randrange(len(data)) :]
    return bytes(data)


def _change(data: bytearray, at: int, random: Random) -> None:
    kind = random.randrange(4)
    if kind == 0:
        data[at] ^= 1 << random.randrange(8)
    elif kind == 1:
        data[at] = random.choice([0, 0xFF, 0x7F, 0x80])
    elif kind == 2:
        data[at : at + 4] = random.choice(_OVERWRITES)[: len(data) - at]
    else:
        data[at] = random.randrange(256)
